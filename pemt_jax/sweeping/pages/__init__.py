"""A sweep as a page and as tables: numbers from its results, beside published ones."""
