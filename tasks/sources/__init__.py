"""Where the examples of a task come from: TFDS, JSON lines, caches."""
