"""Ranking metrics from ranks, and quality by depth."""
