"""USE: from an observation to pages, predictions and a catalogue of single pulses."""
