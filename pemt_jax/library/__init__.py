"""The expert library: experts and artefacts on disk, their cards, exchange with others."""
