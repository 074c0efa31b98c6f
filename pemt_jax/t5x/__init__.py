"""The same model under T5X's drivers; needs T5X."""
