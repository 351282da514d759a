"""Files that are damaged or mean harm: each reader takes them as they are or refuses them with a `LaresError`.

Never another exception, never code out of a file, never a damaged neighbour. `LARES_FUZZ` is the number of damages tried for
each reader.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import pickle
import shutil
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lares_pl import SPT, Columns, LaresError, SequenceDataset, load_stage, prepare
from lares_pl.cli.shipped_configs import with_shipped_configs
from lares_pl.data.loading.external_histories import read_histories
from lares_pl.data.prepare.text import TextOptions, describe_items
from lares_pl.reference.files import read_reference, read_settings
from lares_pl.stages.checkpoint import read_checkpoint
from lares_pl.stages.checkpoint_io import write_checkpoint
from tests.console import error
from tests.training import FAST, SMALL, data, trainer

EXAMPLES = int(os.environ.get("LARES_FUZZ", "12"))
fuzzed = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), database=None)
Damage = Callable[[bytes], bytes]


def cut(share: float) -> Damage:
    return lambda content: content[: int(share * len(content))]


def flip(places: list[tuple[float, int]]) -> Damage:
    def damage(content: bytes) -> bytes:
        changed = bytearray(content)
        for share, bit in places:
            changed[int(share * (len(content) - 1))] ^= 1 << bit
        return bytes(changed)

    return damage


def overwrite(share: float, by: bytes) -> Damage:
    return lambda content: content[: int(share * len(content))] + by + content[int(share * len(content)) + len(by) :]


def replace(by: bytes) -> Damage:
    return lambda _: by


shares = st.floats(0, 1)
damages = st.one_of(
    st.builds(cut, shares),
    st.builds(flip, st.lists(st.tuples(shares, st.integers(0, 7)), min_size=1, max_size=4)),
    st.builds(overwrite, shares, st.binary(min_size=1, max_size=40)),
    st.builds(replace, st.binary(max_size=80)),
)


def fuzz(whole: bytes, tried: Callable[[bytes], None], times: int = EXAMPLES) -> None:
    """Try damaged forms of a file."""
    settings(fuzzed, max_examples=times)(given(damages)(lambda damage: tried(damage(whole))))()


def outcome(action: Callable[[], Any]) -> Any:
    """What it gives; None where it is refused with a message for people."""
    with contextlib.suppress(LaresError):
        return action()


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---------------------------------------------------------------- raw interactions

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


def test_columns_of_other_kinds(tmp_path: Path) -> None:
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
    """What training, prediction and text read of a dataset."""
    items, offsets, by_target, of_item = dataset.flat
    assert offsets[0] == 0
    assert offsets[-1] == len(items)
    assert (np.diff(offsets) >= 0).all()
    assert items.min(initial=1) >= 1
    assert items.max(initial=1) <= dataset.catalogue_size
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


def test_bits_that_flip_in_a_dataset_s_parquet_are_seen(described: Path, tmp_path: Path) -> None:
    """Every bit of the item lists: pages carry checksums."""
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
def test_catalogues_of_wrong_kinds(columns: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("1 a b a\n")
    prepare(str(tmp_path / "x.txt"), str(tmp_path / "out"))
    pq.write_table(pa.table(columns), tmp_path / "out" / "items.parquet")
    with pytest.raises(LaresError, match="out"):
        in_range(SequenceDataset.load(tmp_path / "out"))


@pytest.mark.parametrize("users", ["Infinity", "-1", "1e400", "[]", '"x"', "null", "1000000000000", "true", "[" * 100_000])
def test_descriptions_of_wrong_kinds(users: str, tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("1 a b a\n2 a\n")
    prepare(str(tmp_path / "x.txt"), str(tmp_path / "out"))
    path = tmp_path / "out" / "dataset.json"
    path.write_text(path.read_text().replace('"users": 2', f'"users": {users}'))
    with pytest.raises(LaresError, match="repare it again"):
        SequenceDataset.load(tmp_path / "out")


# ---------------------------------------------------------------- item text and histories


class Harm:
    """Pickled, it runs a command when it is read."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.mark}",)


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


def test_pickled_vectors_are_not_run(tmp_path: Path) -> None:
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
        found = outcome(lambda: read_histories(tmp_path / name, Columns(), known))
        if found is not None:
            in_range(SequenceDataset(found.flat, found.user_ids, found.item_ids, str(described)))

    fuzz(whole, tried)


# ---------------------------------------------------------------- checkpoints


@pytest.fixture(scope="module")
def checkpoint(toy_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "spt.ckpt"
    fit = trainer(path.parent, max_steps=1)
    fit.fit(SPT(SMALL, optimizer=FAST), data(toy_dataset))
    fit.save_checkpoint(path)
    return path


def same(a: Any, b: Any) -> bool:
    """Whether two checkpoints hold the same."""
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else bool(a == b)


def test_damaged_checkpoints(checkpoint: Path, tmp_path: Path) -> None:
    """What is read of a damaged file is all that was written, or nothing."""
    whole, before = checkpoint.read_bytes(), read_checkpoint(checkpoint)

    def tried(content: bytes) -> None:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.ckpt"
        path.write_bytes(content)
        found = outcome(lambda: read_checkpoint(path))
        if found is not None:
            assert same(found.weights, before.weights)
            for part in ("settings", "catalogue", "data"):
                assert same(getattr(found, part), getattr(before, part))

    for place in np.linspace(0.01, 0.99, 20):  # most of the file is weights, which torch reads as they come
        tried(flip([(place, 3)])(whole))
    fuzz(whole, tried, 10 * EXAMPLES)


junk = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([-1, 0, 1, 7, 2**62, 2**70, float("nan"), "", "x", "os.system", "subprocess.Popen", "/etc/passwd"]),
    st.builds(dict, **{"class_path": st.sampled_from(["os.system", "subprocess.Popen", "nn", "lares_pl.SPT", "no.Such"])}),
    st.just([]),
    st.just({}),
    st.just({1: 2}),
    st.just(torch.ones(2)),
)


def places_in(value: Any, before: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inside = (
        [place for key, item in value.items() for place in places_in(item, (*before, key))] if isinstance(value, dict) else []
    )
    return [before, *inside]


def changed(value: Any, place: tuple[Any, ...], by: Any) -> Any:
    if not place:
        return by
    return {key: changed(item, place[1:], by) if key == place[0] else item for key, item in value.items()}


def test_checkpoints_with_other_entries(checkpoint: Path, tmp_path: Path) -> None:
    content = torch.load(checkpoint, weights_only=True)
    read = {key: content[key] for key in ("lares", "hyper_parameters", "datamodule_hyper_parameters", "state_dict")}
    places = places_in(read)
    number = iter(range(10**6))

    @settings(fuzzed, max_examples=5 * EXAMPLES)
    @given(st.sampled_from(places), junk)
    def tried(place: tuple[Any, ...], by: Any) -> None:
        path = tmp_path / f"{next(number)}.ckpt"
        write_checkpoint(changed(read, place, by), path)
        outcome(lambda: load_stage(path))
        path.unlink()

    tried()


def test_code_in_a_checkpoint_is_not_run(checkpoint: Path, toy_dataset: Path, tmp_path: Path) -> None:
    mark = tmp_path / "harm"
    content = torch.load(checkpoint, weights_only=True)
    torch.save({**content, "x": Harm(mark)}, tmp_path / "zip.ckpt")
    torch.save({**content, "x": Harm(mark)}, tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    (tmp_path / "bare.ckpt").write_bytes(pickle.dumps(Harm(mark)))
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "program.ckpt")
    for name in ("zip", "old", "bare", "program"):
        path = tmp_path / f"{name}.ckpt"
        for read in (read_checkpoint, load_stage):
            with pytest.raises(LaresError, match=f"{name}.ckpt"):
                read(path)
        outcome(partial(read_reference, path))
        assert f"{name}.ckpt" in error(tmp_path, "test", "--ckpt_path", str(path), "--data.dataset", str(toy_dataset))
        options = ["--data.dataset", str(toy_dataset), "--model.init_from", str(path)]
        assert f"{name}.ckpt" in error(tmp_path, "fit", "--config", "spt.yaml", *options)
        assert "checkpoint" in error(tmp_path, "fit", "--config", "spt.yaml", "--ckpt_path", str(path))
        assert not mark.exists()


@pytest.mark.parametrize(
    ("place", "named"),
    [
        (("lares", "class_path"), "os.system"),
        (("lares", "class_path"), "subprocess.Popen"),
        (("lares", "class_path"), "torch.nn.Linear"),
        (("hyper_parameters", "backbone", "core_block"), "system"),
        (("hyper_parameters", "backbone", "core_block"), "Popen"),
        (("hyper_parameters", "backbone", "core_block"), "as text"),
        (("hyper_parameters", "backbone", "core_block"), "inside"),
        (("hyper_parameters", "backbone", "depth"), "Popen"),
        (("hyper_parameters", "backbone", "similarity"), "system"),
        (("hyper_parameters", "optimizer"), "system"),
        (("hyper_parameters", "optimizer"), "Popen"),
        (("hyper_parameters", "scheduler"), "system"),
        (("hyper_parameters", "_instantiator"), "lightning.pytorch.cli.instantiate_module"),
        (("datamodule_hyper_parameters", "columns"), "Popen"),
    ],
)
def test_what_a_checkpoint_names_is_not_called(
    place: tuple[str, ...], named: str, checkpoint: Path, toy_dataset: Path, tmp_path: Path
) -> None:
    """A class path is looked up and refused unless it is of the kind that belongs there."""
    mark = tmp_path / "harm"
    system = {"class_path": "os.system", "init_args": {"command": f"touch {mark}"}}
    popen = {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", str(mark)]}}
    linear = {"class_path": "torch.nn.Linear", "init_args": {"out_features": 16, "device": popen, "dtype": str(popen)}}
    by = {"system": system, "Popen": popen, "as text": yaml.safe_dump(system), "inside": linear}.get(named, named)
    content = torch.load(checkpoint, weights_only=True)
    content["hyper_parameters"]["_instantiator"] = None
    content["datamodule_hyper_parameters"]["columns"] = None
    content = changed(content, place, by)
    for key, added in (("hyper_parameters", "_instantiator"), ("datamodule_hyper_parameters", "columns")):
        if content[key][added] is None:
            del content[key][added]
    path = tmp_path / "x.ckpt"
    write_checkpoint(content, path)
    with pytest.raises(LaresError):
        read_checkpoint(path) if place[0] == "datamodule_hyper_parameters" else load_stage(path)
    outcome(lambda: SPT.load_from_checkpoint(path))
    assert not mark.exists()
    options = ["--data.dataset", str(toy_dataset), "--trainer.accelerator", "cpu"]
    error(tmp_path, "test", "--ckpt_path", str(path), *options)
    assert not mark.exists()


# ---------------------------------------------------------------- configs and the authors' files

HOSTILE_YAML = [
    "!!python/object/apply:os.system ['touch {mark}']",
    "model: !!python/object/apply:os.system ['touch {mark}']",
    "model: {{class_path: SPT, init_args: {{backbone: {{core_block: {{class_path: os.system, init_args: "
    "{{command: touch {mark}}}}}}}}}}}",
    "model: {{class_path: subprocess.Popen, init_args: {{args: [touch, '{mark}']}}}}",
    "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
    + "".join(f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)),
    "a: &a [*a]",
    "- 1\n- 2",
    "1: 2",
    "model: 3",
    "trainer: x",
    "trainer: {{max_epochs: {{a: 1}}}}",
    "\x00",
    "[" * 5000,
]


@pytest.mark.parametrize("number", range(len(HOSTILE_YAML)))
def test_hostile_configs(number: int, toy_dataset: Path, tmp_path: Path) -> None:
    mark = tmp_path / "harm"
    text = HOSTILE_YAML[number]
    (tmp_path / "x.yaml").write_text(text.format(mark=mark) if "{" in text else text)
    error(tmp_path, "fit", "--config", "spt.yaml", "--config", "x.yaml", "--data.dataset", str(toy_dataset))
    assert not mark.exists()


def test_damaged_configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    whole = b"model:\n  class_path: SPT\n  init_args: {alpha: 0.1, backbone: {hidden_size: 16}}\ndata: {batch_size: 3}\n"

    def tried(content: bytes) -> None:
        Path("x.yaml").write_bytes(content)
        outcome(lambda: with_shipped_configs(["--config", "x.yaml"]))
        outcome(lambda: read_settings(Path("x.yaml")))

    fuzz(whole, tried, 5 * EXAMPLES)


def test_damaged_files_of_the_release(tmp_path: Path) -> None:
    state = {"item_embedding.weight": torch.ones(3, 4), "position_embedding.weight": torch.ones(2, 4)}
    torch.save({"state_dict": state, "config": {"n_heads": 2}}, tmp_path / "x.pth")
    torch.save({"state_dict": state}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)

    def tried(name: str, content: bytes) -> None:
        (tmp_path / name).write_bytes(content)
        outcome(lambda: read_reference(tmp_path / name))

    for name in ("x.pth", "old.pth"):
        fuzz((tmp_path / name).read_bytes(), partial(tried, name), 5 * EXAMPLES)


def test_sizes_that_no_file_holds(checkpoint: Path, tmp_path: Path) -> None:
    """Numbers in a file are not memory to be taken."""
    content = torch.load(checkpoint, weights_only=True)
    for place, by in (
        (("lares", "catalogue", "items"), 2**40),
        (("lares", "catalogue", "max_length"), 2**40),
        (("hyper_parameters", "backbone", "hidden_size"), 2**40),
    ):
        write_checkpoint(changed(content, place, by), tmp_path / "x.ckpt")
        with pytest.raises(LaresError, match=r"x\.ckpt"):
            load_stage(tmp_path / "x.ckpt")
    header = b"\x93NUMPY\x01\x00" + struct.pack("<H", 118)
    shape = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776, 4), }"
    (tmp_path / "v.npy").write_bytes(header + shape.ljust(117) + b"\n")
    with pytest.raises(LaresError, match=r"v\.npy"):
        describe_items(["0"], tmp_path / "v.npy", TextOptions())
