"""The tasks of the demo: sentiment in several domains."""
