"""Recommendations for histories of original ids, from a checkpoint only."""
