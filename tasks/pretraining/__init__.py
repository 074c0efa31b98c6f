"""Pretraining: span corruption, and the corpus of the mini T5."""
