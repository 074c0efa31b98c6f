"""Several tasks trained as one job over one shared backbone."""
