"""Training: from labelled DM-time images to a checkpoint. Imports nothing from pipeline_classifier."""
