"""The files of a log, and their format."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote

from lares_pl.data.prepare.text_files import foreign, magic
from lares_pl.errors import LaresError

Format = Literal["inter", "csv", "tsv", "parquet", "lines"]
FORMATS: tuple[Format, ...] = ("inter", "csv", "tsv", "parquet", "lines")

_BY_SUFFIX: dict[str, Format] = {
    ".inter": "inter",
    ".item": "inter",
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".txt": "lines",
}
_COMPRESSED = (".gz", ".zst", ".bz2", ".lz4")
_NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"


@dataclass(frozen=True)
class Source:
    """A file or folder, with the properties that its names and contents do not tell.

    Args:
        path: the file, a folder of files that make up one log, or a folder of benchmark files.
        format: format of the files; None: as their names tell.
        encoding: encoding of text; None: UTF-8, or that of a byte order mark.
        separator: separator of the fields of delimited text: one or more characters, or `tab`.
        header: names of the columns, for text without a header line.
        options: prefix of the options that set these, for messages.
    """

    path: Path
    format: Format | None = None
    encoding: str | None = None
    separator: str | None = None
    header: Sequence[str] | str | None = None
    options: str = ""

    @property
    def names(self) -> list[str] | None:
        """Names of the columns, if the files have no header line."""
        names = self.header.split(",") if isinstance(self.header, str) else self.header
        return None if names is None else [name.strip() for name in names]


@dataclass(frozen=True)
class DataFile:
    """One of the files of a log.

    Args:
        path: the file.
        kind: its format.
        partition: values in the names of its folders (`user_id=7/`), by column.
    """

    path: Path
    kind: Format
    partition: dict[str, Any] = field(default_factory=dict)


def data_files(source: Source) -> list[DataFile]:
    """List the files of a log in the order of their names.

    Raises:
        LaresError: if there is no such file, its format is unknown, or a folder has files of no or several formats.
    """
    if source.path.is_dir():
        return _of_folder(source)
    if not source.path.is_file():
        raise LaresError(f"no such file: {source.path}. {_no_file(str(source.path))}")
    return [DataFile(source.path, source.format or _kind(source.path, source))]


def _no_file(path: str) -> str:
    """What to do where a path names no file."""
    if re.match(r"[a-z][a-z0-9]+:/", path):
        return "Addresses are not opened: download the file first."
    if "*" in path:
        return "A folder of files is one log: give the folder."
    return f"Give the path of a file in one of the formats {', '.join(FORMATS)}."


# ---------------------------------------------------------------- one file


def _kind(path: Path, source: Source) -> Format:
    known = _known_kind(path)
    if known in (None, "lines") and (source.separator is not None or source.header is not None):
        return "csv"
    if known is not None:
        return known
    if (what := foreign(path)) is not None:
        raise LaresError(f"{path}: {what}")
    raise LaresError(
        f"{path}: unknown file extension {path.suffix!r}; set the format: --{source.options}format "
        f"{'|'.join(FORMATS)}. Delimited text without a header line needs --{source.options}separator and "
        f"--{source.options}header"
    )


def _known_kind(path: Path) -> Format | None:
    name = _unpacked_name(path).lower()
    if name != path.name.lower() and name.endswith((".parquet", ".pq")):
        raise LaresError(f"{path}: Parquet is compressed inside already; unpack the {path.suffix} first")
    return _BY_SUFFIX.get(Path(name).suffix) or ("parquet" if magic(path) == "parquet" else None)


def _unpacked_name(path: Path) -> str:
    return path.stem if path.suffix.lower() in _COMPRESSED else path.name


# ---------------------------------------------------------------- folders


def _of_folder(source: Source) -> list[DataFile]:
    """The files of one format, with the values of folders named `column=value`."""
    _refuse_table_formats(source.path)
    found = _visible(source.path)
    kinds = {path: _known_kind(path) for path in found}
    if source.format is not None:
        named = [path for path in found if kinds[path] == source.format]
        return _partitioned(named or found, source.format, source.path)
    different = sorted({kind for kind in kinds.values() if kind is not None})
    if len(different) == 1:
        files = [path for path in found if kinds[path] is not None]
        _refuse_copies(files)
        return _partitioned(files, _kind(files[0], source), source.path)
    others = ", ".join(str(path.relative_to(source.path)) for path in found[:5]) or "none"
    if different:
        raise LaresError(
            f"{source.path}: holds files of several formats ({', '.join(different)}), such as {others}. Name the file of the "
            f"log, or the format of its files with --{source.options}format"
        )
    if found and (what := foreign(largest := max(found, key=lambda path: path.stat().st_size))) is not None:
        raise LaresError(f"{largest}: {what}")
    if found and (source.separator is not None or source.header is not None):  # as Hive writes text, without extensions
        return _partitioned(found, "csv", source.path)
    raise LaresError(
        f"{source.path} is a folder; expected Parquet or delimited text in it, or the RecBole benchmark files "
        f"NAME.train.inter, NAME.valid.inter and NAME.test.inter of one NAME, found {others}. Other files need "
        f"--{source.options}format"
    )


def _visible(folder: Path) -> list[Path]:
    """Files in a folder and below, without markers, checksums and summaries (`_SUCCESS`, `.part-0.crc`, `_metadata`)."""

    def hidden(part: str) -> bool:
        return part.startswith(".") or (part.startswith("_") and "=" not in part)

    files = [path for path in folder.rglob("*") if path.is_file()]
    return sorted(path for path in files if not any(map(hidden, path.relative_to(folder).parts)))


def _refuse_copies(files: list[Path]) -> None:
    """Raise for a file that lies there plain and compressed, which would be read twice."""
    plain = Counter(path.with_name(_unpacked_name(path)) for path in files)
    copies = [path for path in files if plain[path.with_name(_unpacked_name(path))] > 1]
    if copies:
        raise LaresError(
            f"{' and '.join(map(str, copies[:2]))} have the same name, as copies do; keep one of them in the folder"
        )


def _refuse_table_formats(folder: Path) -> None:
    """Raise for Delta Lake, Iceberg and Hudi tables, whose folders also hold files of earlier versions."""
    marks = {"_delta_log": "Delta Lake", "metadata/version-hint.text": "Iceberg", ".hoodie": "Hudi"}
    for mark, name in marks.items():
        if (folder / mark).exists():
            raise LaresError(
                f"{folder}: a {name} table ({mark}), whose folder may hold rows that were deleted since; export it as plain "
                "Parquet"
            )


def _partitioned(files: list[Path], kind: Format, root: Path) -> list[DataFile]:
    if not files:
        raise LaresError(f"{root}: no files of format {kind} in this folder")
    written = [_folder_values(path, root) for path in files]
    values: dict[str, dict[str | None, Any]] = {}
    for name in {name for of_file in written for name in of_file}:
        values[name] = _typed({of_file[name] for of_file in written if name in of_file})
    typed = [{name: values[name][value] for name, value in of_file.items()} for of_file in written]
    return [DataFile(path, kind, partition) for path, partition in zip(files, typed, strict=True)]


def _folder_values(path: Path, root: Path) -> dict[str, str | None]:
    """Parse folders `column=value` between the root and a file, as Hive, Spark, pandas and DuckDB write them."""
    pairs = [part.partition("=") for part in path.relative_to(root).parts[:-1] if "=" in part]
    return {unquote(name): None if value == _NULL_PARTITION else unquote(value) for name, _, value in pairs}


def _typed(written: set[str | None]) -> dict[str | None, Any]:
    """Convert values to integers if all of them are; `007` is text."""
    texts = [value for value in written if value is not None]
    if all(
        value.removeprefix("-").isascii() and value.removeprefix("-").isdigit() and str(int(value)) == value for value in texts
    ):
        return {value: None if value is None else int(value) for value in written}
    return {value: value for value in written}
