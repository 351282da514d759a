"""Item text for a prepared dataset: vectors of titles and descriptions, or precomputed vectors.

The vectors come from a sentence encoder (the extra `lares-pl[text]`), a `.npy` file or a Parquet column. Items without
text get a zero vector and are counted.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from lares_pl.data.dataset.ids import id_text, plain_ids, without_zero_fraction
from lares_pl.data.prepare.columns import named_column
from lares_pl.data.prepare.readers import read_table
from lares_pl.data.prepare.source import Source
from lares_pl.errors import LaresError

USUAL_COLUMNS = ("title", "description", "text")
OWN_COLUMNS = ("item", "item_id", "count", "embedding")  # of items.parquet

Encoder = Callable[[list[str]], np.ndarray]


@dataclass(frozen=True)
class TextOptions:
    """How item text is read and encoded.

    Args:
        item: column with the item ids.
        columns: columns that make up an item's text, joined in this order: a list, or names separated by commas; None:
            `title`, `description` and `text`.
        encoder: sentence encoder: a model directory, an installed package that contains one, or a name on the Hugging Face
            hub.
        vectors: ready vectors instead: a `.npy` file with a row for each row of the table, or a column of lists in it.
        half: keep vectors in half precision.
        batch_size: texts encoded at a time.
        encoding: encoding of the table, where it is text; UTF-8, or what a byte order mark tells, where None.
    """

    item: str = "item_id"
    columns: list[str] | str | None = None
    encoder: str | None = None
    vectors: str | None = None
    half: bool = False
    batch_size: int = 64
    encoding: str | None = None


@dataclass(frozen=True)
class ItemDescriptions:
    """The columns of items.parquet other than ids and counts.

    Args:
        columns: one value per item of the catalogue; `embedding` is a fixed-size list.
        about: their description in `dataset.json`.
    """

    columns: dict[str, pa.Array] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)


def describe_items(item_ids: Sequence[Any], source: Path, options: TextOptions) -> ItemDescriptions:
    """Return text vectors and metadata of a catalogue.

    Args:
        item_ids: original ids in catalogue order, N of them.
        source: table of items (CSV, TSV, Parquet, RecBole .item), or a `.npy` of vectors whose row number is the item id.
        options: columns and encoder.

    Raises:
        LaresError: for an invalid table, or an encoder that cannot be loaded.
    """
    vectors: np.ndarray | None
    if source.suffix == ".npy":
        vectors = _read_npy(source)
        table = pd.DataFrame({options.item: np.arange(len(vectors)).astype(str)})
    else:
        table = _read_items(source, options)
        vectors = None if options.vectors is None else _ready_vectors(table, source, options)
    place = pd.Index(table[options.item]).get_indexer(pd.Index([id_text(item_id) for item_id in item_ids]))
    if (place < 0).all():
        raise LaresError(
            f"{source}: none of the {len(item_ids):,} items of the interactions is in column {options.item!r} "
            f"(ids like {table[options.item].iloc[0]!r}, the interactions' are like {str(item_ids[0])!r}); "
            "set the right column with --text.item"
        )
    if vectors is None:
        texts = _texts(table, source, options)
        of_item = np.where(place < 0, "", texts[place])
        has_text = of_item != ""
        vectors = _encode_known(of_item, has_text, options)
    else:
        has_text = place >= 0
        vectors = np.where(has_text[:, None], vectors[place], 0)
    kind = np.float16 if options.half else np.float32
    with np.errstate(over="ignore"):  # reported below
        vectors = vectors.astype(kind)
    if not np.isfinite(vectors).all():
        raise LaresError(f"{source}: some text vectors are not finite numbers{' in half precision' if options.half else ''}")
    size = vectors.shape[1]
    about = {
        "source": str(source.resolve()),
        "columns": options.columns,
        "encoder": None if options.vectors or source.suffix == ".npy" else options.encoder,
        "vectors": options.vectors,
        "size": size,
        "precision": np.dtype(kind).name,
        "items": int(has_text.sum()),
        "items_without": int((~has_text).sum()),
    }
    embedding = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), size)
    return ItemDescriptions({**_metadata(table, place, options), "embedding": embedding}, about)


# ---------------------------------------------------------------- the table


def _read_items(source: Path, options: TextOptions) -> pd.DataFrame:
    table = read_table(Source(source, encoding=options.encoding, options="text."))
    if table.empty:
        raise LaresError(f"{source}: no rows after its header; expected one an item")
    ids = named_column(table, options.item, source, "text.item")
    table[options.item] = without_zero_fraction(plain_ids(ids)).map(id_text)
    twice = table[options.item].duplicated()
    if twice.any():
        row = int(np.argmax(twice))
        raise LaresError(f"{source}: data row {row + 1} repeats item {table[options.item].iloc[row]!r}")
    return table


def _texts(table: pd.DataFrame, source: Path, options: TextOptions) -> np.ndarray:
    """The text of each row, `[rows]`; empty if there is none."""
    names = options.columns
    if isinstance(names, str):
        names = [name.strip() for name in names.split(",")]
    if names is None:
        names = [name for name in USUAL_COLUMNS if name in table.columns]
        if not names:
            raise LaresError(
                f"{source}: no column of text ({', '.join(USUAL_COLUMNS)}); it has {', '.join(map(str, table.columns))}. "
                "Set the columns to encode: --text.columns NAME,…"
            )
    parts = [named_column(table, name, source, "text.columns").fillna("").astype(str).str.strip() for name in names]
    joined = pd.concat(parts, axis=1).apply(lambda row: " ".join(text for text in row if text), axis=1)
    texts: np.ndarray = joined.to_numpy(dtype=object)
    return texts


def _metadata(table: pd.DataFrame, place: np.ndarray, options: TextOptions) -> dict[str, pa.Array]:
    """The table's other columns, in catalogue order; null for an item that is not in the table."""
    left_out = {*OWN_COLUMNS, options.item, options.vectors}
    columns = {}
    for name in table.columns:
        if name not in left_out:
            taken = table[name].take(np.maximum(place, 0)).reset_index(drop=True)
            columns[str(name)] = pa.array(taken.where(place >= 0), from_pandas=True)
    return columns


# ---------------------------------------------------------------- precomputed vectors


def _ready_vectors(table: pd.DataFrame, source: Path, options: TextOptions) -> np.ndarray:
    """Vectors of the table's rows, `[rows, p]`."""
    assert options.vectors is not None
    if not options.vectors.endswith(".npy"):
        column = named_column(table, options.vectors, source, "text.vectors")
        lengths = {len(value) if isinstance(value, (list, np.ndarray)) else -1 for value in column}
        if len(lengths) != 1 or lengths <= {-1, 0}:
            raise LaresError(f"{source}: column {options.vectors!r} does not contain lists of equal length")
        try:
            return np.stack([np.asarray(value, dtype=np.float32) for value in column])
        except (ValueError, TypeError) as error:
            raise LaresError(f"{source}: column {options.vectors!r} does not contain lists of numbers: {error}") from error
    vectors = _read_npy(Path(options.vectors))
    if len(vectors) != len(table):
        raise LaresError(f"{options.vectors} contains {len(vectors):,} vectors for the {len(table):,} rows of {source}")
    return vectors


def _read_npy(path: Path) -> np.ndarray:
    try:
        vectors: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # numpy raises whatever damaged bytes lead to
        raise LaresError(f"{path}: cannot be read as a .npy array: {error}") from error
    if not isinstance(vectors, np.ndarray):
        raise LaresError(f"{path}: an archive of arrays; expected one array [items, size], as numpy.save writes it")
    if vectors.ndim != 2 or vectors.dtype.kind not in "fiu" or 0 in vectors.shape:
        raise LaresError(f"{path}: an array {list(vectors.shape)} of {vectors.dtype}; expected numbers [items, size]")
    return vectors


# ---------------------------------------------------------------- the encoder


def _encode_known(texts: np.ndarray, has_text: np.ndarray, options: TextOptions) -> np.ndarray:
    """Vectors `[N, p]` of texts `[N]`; equal texts are encoded once, missing ones are zero."""
    if not has_text.any():
        raise LaresError("no item has any text: set the columns with --text.columns")
    encode = load_encoder(options.encoder, options.batch_size)
    codes, different = pd.factorize(texts[has_text])
    encoded = np.asarray(encode(list(different)), dtype=np.float32)
    vectors = np.zeros((len(texts), encoded.shape[1]), dtype=np.float32)
    vectors[has_text] = encoded[codes]
    return vectors


def load_encoder(name: str | None, batch_size: int) -> Encoder:
    """Load an encoder: a function from texts to vectors `[n, p]`.

    Args:
        name: a model directory, an installed package that contains one, or a name on the Hugging Face hub.
        batch_size: texts per batch.

    Raises:
        LaresError: if there is no such model, or the extra `text` is not installed.
    """
    if name is None:
        raise LaresError(
            "item text needs a sentence encoder: --text.encoder takes a model directory, an installed package that contains "
            "one, or a model on the Hugging Face hub such as sentence-transformers/all-MiniLM-L6-v2; or give precomputed "
            "vectors with --text.vectors"
        )
    if importlib.util.find_spec("sentence_transformers") is None:
        raise LaresError("encoding item text needs sentence-transformers: pip install 'lares-pl[text]'")
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging

    show = sys.stderr.isatty()
    if not show:
        logging.disable_progress_bar()
    place = _model_directory(name)
    try:
        model = SentenceTransformer(str(place or name))
    except Exception as error:  # any error of the hub's client and the model's files
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        tried = "" if place else " (there is no such directory or installed package, so the Hugging Face hub was asked)"
        raise LaresError(f"--text.encoder {name}: cannot be loaded{tried}: {reason}") from error
    return lambda texts: model.encode(texts, batch_size=batch_size, convert_to_numpy=True, show_progress_bar=show)


def _model_directory(name: str) -> Path | None:
    """The path of a model on this machine."""
    if Path(name).is_dir():
        return Path(name)
    package = name.replace("-", "_")
    found = importlib.util.find_spec(package) if package.isidentifier() else None
    for folder in (found.submodule_search_locations or []) if found else []:
        for mark in ("modules.json", "config.json"):
            places = sorted(Path(folder).rglob(mark), key=lambda path: len(path.parts))
            if places:
                return places[0].parent
    return None
