"""From pages to events: classification, peaks, the decision, merging."""
