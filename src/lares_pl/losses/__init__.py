"""Losses and rewards: pure functions that know no trainer."""
