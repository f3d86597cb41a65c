"""Scores: localization against masks, retrieval, and the tables that compare methods."""
