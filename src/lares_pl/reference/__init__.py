"""Checkpoints of the authors' release (RecBole code): names, settings and files, to ours and back."""
