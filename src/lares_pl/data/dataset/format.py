"""The files of a prepared dataset.

A directory with `sequences.parquet` or files in `sequences/` (a row a user: `user_id`, `items` oldest first, `timestamps`
where known), `items.parquet` (`item`, `item_id`, `count`, with item text also its table's columns and `embedding`) and
`dataset.json`, written last. Item 0 is padding. Beside them uncompressed copies for memory mapping
(`lares_pl.data.dataset.mmap_cache`).
"""

FORMAT_VERSION = 1
