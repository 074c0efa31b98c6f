"""One training step, the loop around it, and the evaluation of a run."""
