"""Formats that are not read: what they are, by the first bytes of a file, and how to convert them."""

from __future__ import annotations

_CONVERT = "convert it to Parquet, such as with DuckDB (COPY (FROM 'FILE') TO 'log.parquet') or with pandas"
_PICKLE = "a pickle, which is never opened; write the table as Parquet (to_parquet)"

_BY_BYTES = (
    (b"version https://git-lfs", "a Git LFS pointer in place of the file; fetch the file with `git lfs pull`"),
    (b"PK\x03\x04", "a zip archive or an Excel workbook; unpack it, or save the sheet as CSV UTF-8"),
    (b"\xd0\xcf\x11\xe0", "an Excel workbook; save the sheet as CSV UTF-8"),
    (b"\xfd7zXZ\0", "compressed by xz; unpack it first"),
    (b"ARROW1", "an Arrow (Feather) file; convert it to Parquet: pandas.read_feather(FILE).to_parquet('log.parquet')"),
    (
        b"\xff\xff\xff\xff",
        "an Arrow stream, as Hugging Face datasets save it; convert it to Parquet: "
        "datasets.load_from_disk(FOLDER).to_parquet('log.parquet')",
    ),
    (b"ORC", "an ORC file; convert it to Parquet: pandas.read_orc(FILE).to_parquet('log.parquet')"),
    (b"Obj\x01", "an Avro file; convert it to Parquet"),
    (b"SQLite format 3", "an SQLite database; export its table as CSV or Parquet"),
    (b"\x93NUMPY", "a NumPy array; write it as a table with named columns, CSV or Parquet"),
    (b"\x80\x04", _PICKLE),
    (b"\x80\x05", _PICKLE),
)
_BY_TEXT = (
    ((b"{", b"[{", b"[\n"), f"JSON; {_CONVERT}"),
    ((b"<!doctype", b"<html", b"<?xml"), "HTML or XML, perhaps a page in place of the file; save the table as CSV"),
)
FIRST_BYTES = 300  # as many are looked at


def foreign_format(head: bytes) -> str | None:
    """Describe a format that is not read, with what to do about it; None if the bytes are of no such format.

    Args:
        head: the first bytes of the file, decompressed.
    """
    if head[257:262] == b"ustar":
        return "a tar archive; unpack it first"
    if head[8:12] == b"DUCK":
        return "a DuckDB database; export its table: COPY name TO 'log.parquet'"
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    found = [what for first, what in _BY_BYTES if head.startswith(first)]
    found += [what for starts, what in _BY_TEXT if text.startswith(starts)]
    return found[0] if found else None
