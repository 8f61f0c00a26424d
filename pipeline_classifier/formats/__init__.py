"""File formats: SIGPROC filterbanks, candidate lists and candidate files."""
