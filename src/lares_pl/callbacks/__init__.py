"""Lightning callbacks and the W&B logger: progress, tracking, FLOPs, depth sweep, shutdown, predictions."""
