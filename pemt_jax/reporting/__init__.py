"""Runs as one page: records read from their folders, groups and scores, figures, the page."""
