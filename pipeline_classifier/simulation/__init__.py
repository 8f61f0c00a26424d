"""Simulated observations: pulses, interference, injection."""
