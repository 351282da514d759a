"""From raw interactions to a prepared dataset."""
