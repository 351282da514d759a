"""Damaged and malicious checkpoints, configs and files of the authors' release."""

from __future__ import annotations

import pickle
import struct
import tracemalloc
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from lares_pl import SPT, LaresError, load_stage
from lares_pl.cli.shipped_configs import with_shipped_configs
from lares_pl.data.prepare.text import TextOptions, describe_items
from lares_pl.reference.files import read_reference, read_settings
from lares_pl.stages.checkpoint import read_checkpoint
from lares_pl.stages.checkpoint_io import write_checkpoint
from tests.console import error
from tests.hostile.fuzz import EXAMPLES, Harm, flip, fuzz, fuzzed, outcome
from tests.training import data, released_spt, trainer


@pytest.fixture(scope="module")
def checkpoint(toy_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "spt.ckpt"
    fit = trainer(path.parent, max_steps=1)
    fit.fit(released_spt(), data(toy_dataset))
    fit.save_checkpoint(path)
    return path


def same(a: Any, b: Any) -> bool:
    """Whether two checkpoints have equal contents."""
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else bool(a == b)


def test_damaged_checkpoints(checkpoint: Path, tmp_path: Path) -> None:
    """A damaged file is read completely or not at all."""
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
def test_functions_named_in_a_checkpoint_are_not_called(
    place: tuple[str, ...], named: str, checkpoint: Path, toy_dataset: Path, tmp_path: Path
) -> None:
    """A class path is refused unless its class is of the expected kind."""
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


@pytest.mark.parametrize("content", [b"r\xff\xff\xff\x01", b"\x96" + (2**28).to_bytes(8, "little")])
def test_a_number_in_a_file_of_the_release_does_not_take_its_size_in_memory(content: bytes, tmp_path: Path) -> None:
    """An index of the unpickler's memo, and the length of a bytearray."""
    torch.save({"state_dict": {"x": torch.ones(2)}}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    whole = (tmp_path / "old.pth").read_bytes()
    place = whole.index(b"}", whole.index(b"}") + 1)  # of the second dict: sizes of types
    (tmp_path / "old.pth").write_bytes(whole[: place + 1] + content + b"0" + whole[place + 1 :])
    tracemalloc.start()
    try:
        outcome(lambda: read_reference(tmp_path / "old.pth"))
        assert tracemalloc.get_traced_memory()[1] < 50 * 2**20
    finally:
        tracemalloc.stop()


def test_sizes_that_exceed_the_file_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    """Sizes given in a file must not determine how much memory is allocated."""
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
