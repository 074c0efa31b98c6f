"""Weights in and out of neighbouring projects, one file per neighbour."""
