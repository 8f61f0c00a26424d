"""What a search finds of known pulses, and what is in an input file."""
