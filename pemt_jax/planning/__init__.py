"""What a training run would need of a machine that nobody has rented yet."""
