"""The files of a prepared dataset.

A directory with `sequences.parquet` or files in `sequences/` (one row per user: `user_id`, `items` oldest first, `timestamps`
if known), `items.parquet` (`item`, `item_id`, `count`; with item text also the columns of its table and `embedding`) and
`dataset.json`, written last. Item 0 is padding. Unless the split is leave-one-out, `split.parquet` has a row per user in the
same order: the number of their items that train, and of those before the test part (`training`, `before_test`). A cache of
uncompressed arrays for memory mapping is next to them (`lares_pl.data.dataset.mmap_cache`).
"""

FORMAT_VERSION = 1
SPLIT = "split.parquet"
