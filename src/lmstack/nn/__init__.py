"""The parts of a transformer, usable on their own."""
