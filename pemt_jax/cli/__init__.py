"""Command lines: flags and gin into a configuration, errors into one sentence."""
