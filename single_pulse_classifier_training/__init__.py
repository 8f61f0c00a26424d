"""LEARN: from labelled DM-time images to a checkpoint. Imports nothing of pipeline_classifier."""
