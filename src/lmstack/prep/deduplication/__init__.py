"""Finding what a corpus holds more than once."""
