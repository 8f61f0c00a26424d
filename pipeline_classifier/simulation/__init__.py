"""Simulated observations: noise, pulses and interference; injection of pulses into real observations."""
