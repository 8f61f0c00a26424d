"""Files on disk: filterbanks and candidate lists, told by their content."""
