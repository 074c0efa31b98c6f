"""An expert folded into its base: a T5 that needs nothing of this package."""
