"""Tasks as tokens: cached, bucketed by length, batched by step number."""
