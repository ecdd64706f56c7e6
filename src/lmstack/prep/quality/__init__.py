"""Rules and models that tell good text from bad, with the thresholds of the papers as defaults."""
