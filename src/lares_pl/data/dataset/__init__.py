"""The prepared dataset: a directory of Parquet files, read through memory-mapped arrays."""
