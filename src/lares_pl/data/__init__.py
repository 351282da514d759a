"""From raw interactions to batches."""
