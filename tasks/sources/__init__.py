"""Where the rows of a task come from: TFDS, JSON lines, caches."""
