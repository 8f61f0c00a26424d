"""Evaluation: how a search recovers known pulses, and whether an input file can be searched."""
