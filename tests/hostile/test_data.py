"""Damaged and malicious interactions, datasets, item text and histories."""

from __future__ import annotations

import gzip
import io
import pickle
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lares_pl import Columns, LaresError, SequenceDataset, prepare
from lares_pl.data.loading.external_histories import read_histories
from lares_pl.data.prepare.source import Source
from lares_pl.data.prepare.text import TextOptions, describe_items
from tests.hostile.fuzz import Harm, bytes_of, flip, fuzz, outcome

ROWS = [(f"u{n % 4}", f"i{n % 5}", 3 + n % 3, 100 - n) for n in range(24)]
FRAME = pd.DataFrame(ROWS, columns=["user_id", "item_id", "rating", "timestamp"])


def raw(name: str) -> bytes:
    if name.endswith(".parquet"):
        buffer = io.BytesIO()
        FRAME.to_parquet(buffer)
        return buffer.getvalue()
    if name.endswith(".txt"):
        return "".join(f"{user} {item}\n" for user, item, *_ in ROWS).encode()
    text = FRAME.to_csv(sep="," if ".csv" in name else "\t", index=False).encode()
    return gzip.compress(text) if name.endswith(".gz") else text


HOSTILE_TEXT = [
    b"user_id,item_id\n\x00,\x00\nu\x00,i\n",
    b"\xff\xfeu\x00s\x00e\x00r\x00",
    b"user_id,item_id\n" + b"x" * 300_000 + b",i\n",
    b"user_id,item_id,timestamp\nu,i,1e300\nu,j,-1e300\nu,k,3\n",
    b"user_id,item_id,timestamp\nu,i,99999999999999999999999\n",
    b"user_id,item_id,timestamp\nu,i,9999-12-31\nu,i,0001-01-01\n",
    b'user_id,item_id\n"u,i\n',
    b"user_id,user_id,item_id\nu,v,i\n",
    b"user_id,item_id\nu',(SELECT 1)--,i\";DROP TABLE log\n",
    b",,,\n,,,\n",
    b"\n" * 50,
]


@pytest.mark.parametrize("name", ["x.csv", "x.tsv", "x.inter", "x.txt", "x.parquet", "x.csv.gz"])
def test_raw_interactions(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    whole = raw(name)

    def tried(content: bytes) -> None:
        folder = tmp_path_factory.mktemp("raw")
        (folder / name).write_bytes(content)
        outcome(lambda: prepare(str(folder / name), str(folder / "out")))
        made = sorted(path.name for path in folder.iterdir())
        assert made in ([name], ["out", name]), made
        if "out" in made:
            in_range(SequenceDataset.load(folder / "out"))
        shutil.rmtree(folder)

    for content in [] if name.endswith((".parquet", ".gz")) else HOSTILE_TEXT:
        tried(content)
    fuzz(whole, tried)


def test_columns_of_other_types(tmp_path: Path) -> None:
    odd = [
        pa.array([[1], [2], [3]]),
        pa.array([b"a", b"\xff", b"c"]),
        pa.array([{"a": 1}, {"a": 2}, {"a": 3}]),
        pa.array([None, None, None]),
        pa.array([1.5, float("nan"), 3.0]),
        pa.array([2**64 - 1, 1, 2], type=pa.uint64()),
        pa.array([True, False, True]),
        pa.array([1, 2, 3], type=pa.duration("s")),
        pa.array([1, 2, 3], type=pa.timestamp("ns")),
        pa.array(["1", "2", "3"]).cast(pa.decimal128(5, 2)),
    ]
    for number, values in enumerate(odd):
        for column in range(4):
            columns = [pa.array([1, 2, 3])] * 4
            columns[column] = values
            pq.write_table(pa.table(columns, names=["user_id", "item_id", "rating", "timestamp"]), tmp_path / "x.parquet")
            out = tmp_path / f"{number}-{column}"
            outcome(partial(prepare, str(tmp_path / "x.parquet"), str(out)))
            if out.exists():
                in_range(SequenceDataset.load(out))


# ---------------------------------------------------------------- prepared datasets


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared dataset with text vectors."""
    folder = tmp_path_factory.mktemp("described")
    (folder / "x.tsv").write_bytes(raw("x.tsv"))
    vectors = [[float(item), 1.0] for item in range(5)]
    pd.DataFrame({"item_id": [f"i{n}" for n in range(5)], "v": vectors}).to_parquet(folder / "items.parquet")
    prepare(str(folder / "x.tsv"), str(folder / "out"), item_text=str(folder / "items.parquet"), text=TextOptions(vectors="v"))
    return folder / "out"


def in_range(dataset: SequenceDataset) -> None:
    """Read everything that training, prediction and text read from a dataset."""
    items, offsets, validation, test, by_target, of_item = dataset.flat
    assert offsets[0] == 0
    assert offsets[-1] == len(items)
    assert (np.diff(offsets) >= 0).all()
    assert items.min(initial=1) >= 1
    assert items.max(initial=1) <= dataset.catalogue_size
    assert len(validation) == len(test) == dataset.users
    assert ((offsets[:-1] <= validation) & (validation <= test) & (test <= offsets[1:])).all()
    assert by_target.max(initial=0) < len(items)
    assert of_item[-1] == len(by_target)
    assert len(of_item) == dataset.catalogue_size + 2
    assert len(dataset.user_ids) == dataset.users
    vectors = dataset.text_vectors()
    assert vectors is None or len(vectors) == dataset.catalogue_size + 1


PARTS = ["dataset.json", "items.parquet", "sequences.parquet", "flat/made-from.json"]
PARTS += [f"flat/{name}.npy" for name in ("items", "offsets", "by_target", "of_item")]


@pytest.mark.parametrize("part", PARTS)
def test_prepared_datasets(part: str, described: Path, toy_dataset: Path, tmp_path: Path) -> None:
    others = {name: content for name, content in bytes_of(described).items() if name != part and "flat" not in name}

    def tried(content: bytes) -> None:
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        shutil.copytree(described, tmp_path / "out")
        (tmp_path / "out" / part).write_bytes(content)
        outcome(lambda: in_range(SequenceDataset.load(tmp_path / "out")))
        after = bytes_of(tmp_path / "out")
        assert {name: after[name] for name in others} == others
        assert not list((tmp_path / "out").glob(".*"))
        if not part.startswith("flat"):
            assert after[part] == content

    tried((toy_dataset / part).read_bytes())
    whole = (described / part).read_bytes()
    fuzz(whole, tried)


def test_flipped_bits_in_parquet_are_detected(described: Path, tmp_path: Path) -> None:
    """Every bit of the item lists, because pages have checksums."""
    shutil.copytree(described, tmp_path / "out")
    path = tmp_path / "out" / "sequences.parquet"
    whole = path.read_bytes()
    column = pq.read_metadata(path).row_group(0).column(1)
    assert column.path_in_schema.startswith("items")
    start = column.dictionary_page_offset or column.data_page_offset
    shutil.rmtree(tmp_path / "out" / "flat")
    for place in range(start, start + column.total_compressed_size):
        path.write_bytes(flip([(place / (len(whole) - 1) + 1e-9, 3)])(whole))
        found = outcome(lambda: SequenceDataset.load(tmp_path / "out"))
        assert found is None or np.array_equal(found.items, SequenceDataset.load(described).items)
        shutil.rmtree(tmp_path / "out" / "flat", ignore_errors=True)


@pytest.mark.parametrize(
    "columns",
    [
        {"item": ["1", "2"], "item_id": ["a", "b"]},
        {"item": [[1], [2]], "item_id": ["a", "b"]},
        {"item": ["1", None], "item_id": ["a", "b"]},
        {"item": [1, 2], "item_id": ["a", None]},
        {"item": [2, 1], "item_id": ["a", "b"]},
        {"item": [1, 2]},
        {"item": [1, 2], "item_id": ["a", "b"], "embedding": ["x", "y"]},
        {"item": [1, 2], "item_id": ["a", "b"], "embedding": [[1.0], [1.0, 2.0]]},
    ],
)
def test_catalogues_of_wrong_types(columns: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("1 a b a\n")
    prepare(str(tmp_path / "x.txt"), str(tmp_path / "out"))
    pq.write_table(pa.table(columns), tmp_path / "out" / "items.parquet")
    with pytest.raises(LaresError, match="out"):
        in_range(SequenceDataset.load(tmp_path / "out"))


@pytest.mark.parametrize("users", ["Infinity", "-1", "1e400", "[]", '"x"', "null", "1000000000000", "true", "[" * 100_000])
def test_descriptions_of_wrong_types(users: str, tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("1 a b a\n2 a\n")
    prepare(str(tmp_path / "x.txt"), str(tmp_path / "out"))
    path = tmp_path / "out" / "dataset.json"
    path.write_text(path.read_text().replace('"users": 2', f'"users": {users}'))
    with pytest.raises(LaresError, match="repare it again"):
        SequenceDataset.load(tmp_path / "out")


# ---------------------------------------------------------------- item text and histories


def test_item_text(tmp_path: Path) -> None:
    ids = [f"i{n}" for n in range(5)]
    np.save(tmp_path / "v.npy", np.ones((5, 3), dtype=np.float32))
    table = pa.table({"item_id": ids, "title": ids, "v": [[1.0, 2.0]] * 5})
    pq.write_table(table, tmp_path / "t.parquet")

    def tried(name: str, options: TextOptions, content: bytes) -> None:
        (tmp_path / name).write_bytes(content)
        found = outcome(lambda: describe_items(["0", *ids], tmp_path / name, options))
        assert found is None or len(found.columns["embedding"]) == 6

    for name, options in (("v.npy", TextOptions()), ("t.parquet", TextOptions(vectors="v"))):
        fuzz((tmp_path / name).read_bytes(), partial(tried, name, options))


def test_pickled_vectors_are_not_executed(tmp_path: Path) -> None:
    mark = tmp_path / "harm"
    np.save(tmp_path / "v.npy", np.array([Harm(mark)], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "z", a=np.ones(3))
    (tmp_path / "z.npz").rename(tmp_path / "z.npy")
    (tmp_path / "p.npy").write_bytes(pickle.dumps(Harm(mark)))
    (tmp_path / "e.npy").write_bytes(b"")
    for name in ("v", "z", "p", "e"):
        with pytest.raises(LaresError, match=f"{name}.npy"):
            describe_items(["0"], tmp_path / f"{name}.npy", TextOptions())
    shutil.copy(tmp_path / "v.npy", tmp_path / "x.parquet")
    with pytest.raises(LaresError):
        prepare(str(tmp_path / "x.parquet"), str(tmp_path / "out"))
    assert not mark.exists()


@pytest.mark.parametrize("name", ["x.tsv", "x.parquet"])
def test_histories(name: str, described: Path, tmp_path: Path) -> None:
    known, whole = SequenceDataset.load(described), raw(name)

    def tried(content: bytes) -> None:
        (tmp_path / name).write_bytes(content)
        found = outcome(lambda: read_histories(Source(tmp_path / name), Columns(), known))
        if found is not None:
            in_range(SequenceDataset(found.flat, found.user_ids, found.item_ids, str(described)))

    fuzz(whole, tried)
