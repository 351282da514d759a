"""Conversion of checkpoints from and to the authors' release (RecBole code): names, settings and files."""
