"""Searches without gradients over what a run could start from."""
