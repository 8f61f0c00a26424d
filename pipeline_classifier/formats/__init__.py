"""File formats: SIGPROC filterbanks and candidate lists."""
