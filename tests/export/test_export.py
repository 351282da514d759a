"""Exported programs run without the model and give the same rankings, scores and user states."""

from __future__ import annotations

import ast
import json
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lares_pl import (
    BackboneConfig,
    BSARecBlock,
    ConcatInjection,
    ConstantDepth,
    CosineSimilarity,
    DotSimilarity,
    FMLPBlock,
    Histories,
    LaresError,
    LRUBlock,
    RotaryBlock,
    SequenceDataset,
    TedRecEmbedder,
    load_stage,
)
from lares_pl.data.loading.item_pairs import ItemPairs
from lares_pl.export.command import export
from lares_pl.export.formats import Onnx, Torch
from lares_pl.export.parity import Parity, check_parity, compare, sampled_histories
from lares_pl.export.programs import GivenLayout, GivenNoise, item_vectors
from lares_pl.model.backbone import RecurrentBackbone
from lares_pl.model.embedding import ItemText
from lares_pl.model.layout import Layout
from lares_pl.model.padded_layout import padded
from lares_pl.model.recurrence import KeyedNoise
from lares_pl.model.similarity import Similarity
from lares_pl.stages.checkpoint_io import write_checkpoint
from tests.conftest import ROOT
from tests.console import error
from tests.docs.examples import script as script_of_page
from tests.released import released_backbone
from tests.training import released_spt

LENGTH, K = 7, 5


class GRUBlock(nn.Module):
    """A custom block."""

    padding_matters = False
    causal = True

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.gru = nn.GRU(hidden_size, hidden_size, batch_first=True)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        return x + layout.unpad(self.gru(layout.pad(x))[0])


class Undecided(GRUBlock):
    """A block whose Python code depends on values."""

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        return x if float(x.abs().max()) > 100 else 2 * x


def write_stage(config: BackboneConfig, dataset: Path, path: Path) -> Path:
    """A checkpoint of an SPT stage that was never trained; its weights are large enough to tell items apart."""
    torch.manual_seed(0)
    data = SequenceDataset.load(dataset)
    stage = released_spt(config, exclude_seen=True)
    catalogue: dict[str, Any] = {
        "items": data.catalogue_size,
        "max_length": LENGTH,
        "fingerprint": data.catalogue_fingerprint,
    }
    if config.embedder.reads_text:
        catalogue["text"] = {"size": 6, "precision": "float16"}
    stage.adopt_catalogue(catalogue)
    text = getattr(stage.backbone.embedding, "text", None)
    if isinstance(text, ItemText):
        text.vectors.normal_()
    checkpoint: dict[str, Any] = {
        "state_dict": stage.state_dict(),
        "hyper_parameters": dict(stage.hparams),
        "datamodule_hyper_parameters": {"dataset": str(dataset), "max_length": LENGTH},
        "pytorch-lightning_version": "2.6.6",
    }
    stage.on_save_checkpoint(checkpoint)
    write_checkpoint(checkpoint, path)
    return path


def small(**options: Any) -> BackboneConfig:
    defaults = {"hidden_size": 8, "pre_layers": 1, "core_layers": 1, "initializer_range": 0.5, "depth": ConstantDepth(2)}
    return released_backbone(**{**defaults, **options})


def same(
    checkpoint: Path, folder: Path, depths: tuple[int, ...], format: Onnx | Torch, dataset: Path, average_steps: bool = False
) -> Parity:
    """Programs against model on histories that the export did not look at."""
    backbone = load_stage(checkpoint).backbone
    histories = sampled_histories(SequenceDataset.load(dataset), 70, LENGTH, seed=1)
    rankings, states = (format.load(folder / f"{name}{format.suffix}") for name in ("model", "user_state"))
    return compare(backbone, rankings, states, np.load(folder / "item_vectors.npy"), histories, depths, K, average_steps)


@pytest.fixture(scope="module")
def served(toy_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint, and what it was exported as: ONNX, the depth an input."""
    folder = tmp_path_factory.mktemp("export")
    checkpoint = write_stage(small(core_block=LRUBlock, injection=ConcatInjection()), toy_dataset, folder / "stage.ckpt")
    export(str(checkpoint), str(folder / "exported"), depth="input", k=K, check=20)
    return checkpoint, folder / "exported"


def test_onnx_with_depth_as_input(served: tuple[Path, Path], toy_dataset: Path) -> None:
    found = same(*served, depths=(0, 1, 3, 8), format=Onnx(), dataset=toy_dataset)
    assert found.difference < 1e-5
    assert found.equal == 1


@pytest.mark.parametrize(
    ("depth", "depths", "similarity"),
    [(3, (3,), CosineSimilarity()), ("input", (0, 1, 3, 8), DotSimilarity())],
    ids=["fixed", "input"],
)
def test_averaged_steps(toy_dataset: Path, tmp_path: Path, depth: Any, depths: tuple[int, ...], similarity: Similarity) -> None:
    checkpoint = write_stage(small(similarity=similarity), toy_dataset, tmp_path / "stage.ckpt")
    export(str(checkpoint), str(tmp_path / "out"), depth=depth, average_steps=True, k=K, check=20)
    assert json.loads((tmp_path / "out" / "export.json").read_text())["average_steps"]
    found = same(checkpoint, tmp_path / "out", depths, Onnx(), toy_dataset, average_steps=True)
    assert found.difference < 1e-5
    assert found.equal == 1
    last_step = same(checkpoint, tmp_path / "out", depths, Onnx(), toy_dataset)
    assert last_step.equal < 1


def test_what_can_not_be_averaged_is_refused_before_anything_is_traced(toy_dataset: Path, tmp_path: Path) -> None:
    checkpoint = write_stage(small(similarity=CosineSimilarity(), repeat_bias=True), toy_dataset, tmp_path / "stage.ckpt")
    with pytest.raises(LaresError, match=r"^trajectories, average_steps: a model of cosines and repeat_bias"):
        export(str(checkpoint), str(tmp_path / "out"), average_steps=True)


def test_onnx_with_fixed_depth_of_blocks_over_frequencies(toy_dataset: Path, tmp_path: Path) -> None:
    """TedRec's fusion, BSARec, rotary attention, cosines: models with complex numbers or padded histories."""
    mixed = small(
        embedder=TedRecEmbedder(experts=2),
        pre_block=BSARecBlock,
        core_block=RotaryBlock,
        similarity=CosineSimilarity(),
        depth=ConstantDepth(1),
    )
    checkpoint = write_stage(mixed, toy_dataset, tmp_path / "stage.ckpt")
    export(str(checkpoint), str(tmp_path / "exported"), k=K, check=20)
    found = same(checkpoint, tmp_path / "exported", (1,), Onnx(), toy_dataset)
    assert found.difference < 1e-5
    assert found.equal == 1
    vectors = np.load(tmp_path / "exported" / "item_vectors.npy")
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)


def test_onnx_with_depth_as_input_refuses_steps_over_frequencies(toy_dataset: Path, tmp_path: Path) -> None:
    checkpoint = write_stage(small(core_block=FMLPBlock), toy_dataset, tmp_path / "stage.ckpt")
    with pytest.raises(LaresError, match=r"DFT is not valid inside a loop\. Export a fixed depth"):
        export(str(checkpoint), str(tmp_path / "exported"), depth="input", k=K, check=20)
    assert not (tmp_path / "exported").exists()


def test_torch_with_depth_as_input_and_a_custom_block(toy_dataset: Path, tmp_path: Path) -> None:
    checkpoint = write_stage(small(pre_block=FMLPBlock, core_block=GRUBlock), toy_dataset, tmp_path / "stage.ckpt")
    export(str(checkpoint), str(tmp_path / "exported"), format="torch", depth="input", k=K, check=20)
    found = same(checkpoint, tmp_path / "exported", (0, 1, 3), Torch(), toy_dataset)
    assert found.difference < 1e-5
    assert found.equal == 1


def test_the_exported_folder_is_complete(served: tuple[Path, Path], toy_dataset: Path) -> None:
    checkpoint, folder = served
    names = {"export.json", "item_vectors.npy", "items.json", "items.parquet", "model.onnx", "user_state.onnx"}
    assert {path.name for path in folder.iterdir()} == names
    ids = SequenceDataset.load(toy_dataset).item_ids.to_pylist()
    assert json.loads((folder / "items.json").read_text()) == [None, *ids]
    table = pq.read_table(folder / "items.parquet")
    assert table.to_pydict() == {"item": list(range(1, len(ids) + 1)), "item_id": ids}
    description = json.loads((folder / "export.json").read_text())
    assert (description["depth"], description["k"], description["max_length"]) == ("input", K, LENGTH)
    assert description["exclude_seen"] is True
    assert description["checked"]["histories"] == 20
    import onnxruntime

    for name, program in description["programs"].items():
        session = onnxruntime.InferenceSession(folder / name)
        for kind, values in (("inputs", session.get_inputs()), ("outputs", session.get_outputs())):
            assert [(v["name"], v["shape"]) for v in program[kind]] == [(v.name, v.shape) for v in values]
    assert str(checkpoint.parent).encode() not in (folder / "model.onnx").read_bytes()
    assert b"lares_pl/model" not in (folder / "model.onnx").read_bytes()  # no traces of where it was made


# ---------------------------------------------------------------- serving


def definitions(code: str) -> dict[str, Any]:
    """What a script defines; it imports nothing but numpy, onnxruntime and the standard library."""
    tree = ast.parse(code)
    modules = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    modules |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    assert {module.split(".")[0] for module in modules} <= {*sys.stdlib_module_names, "numpy", "onnxruntime"}
    found: dict[str, Any] = {"__name__": "script"}
    exec(compile(code, "script.py", "exec"), found)
    return found


def expected(checkpoint: Path, history: list[int], excluded: list[int], depth: int) -> tuple[list[int], list[float]]:
    backbone = load_stage(checkpoint).backbone
    histories = Histories.from_lists([history[-LENGTH:]])
    (states,) = backbone.rollout(histories, [depth], KeyedNoise(histories))
    pairs = ItemPairs(torch.zeros(len(excluded), dtype=torch.int64), torch.tensor(excluded, dtype=torch.int64))
    scores, items = backbone.head(histories).top_k(states[-1], K, pairs)
    return items[0].tolist(), scores[0].tolist()


def test_serving_original_ids(served: tuple[Path, Path]) -> None:
    """The example's server, asked over HTTP."""
    checkpoint, folder = served
    serve = definitions((ROOT / "examples" / "serve.py").read_text())
    ids = json.loads((folder / "items.json").read_text())
    with ThreadingHTTPServer(("127.0.0.1", 0), serve["Handler"]) as server:
        server.model = serve["Model"](folder)  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        history = [3, 8, 1, 9, 30, 2, 5, 7, 11]
        asked = {"history": [*(ids[item] for item in history), "never seen"], "exclude": [ids[11], ids[7]], "depth": 3}
        url = f"http://127.0.0.1:{server.server_port}"
        with urllib.request.urlopen(urllib.request.Request(url, json.dumps(asked).encode())) as answer:
            found = json.loads(answer.read())
        for wrong in (b'{"history": "12"}', b"no JSON"):
            with pytest.raises(urllib.error.HTTPError, match="400"):
                urllib.request.urlopen(urllib.request.Request(url, wrong))
        server.shutdown()
    items, scores = expected(checkpoint, history, [11, 7], 3)
    assert [entry["item"] for entry in found] == [ids[item] for item in items]
    np.testing.assert_allclose([entry["score"] for entry in found], scores, rtol=1e-4, atol=1e-5)
    assert serve["Model"](folder).recommend(["never seen"]) == []


def test_nearest_items_by_plain_inner_products(served: tuple[Path, Path]) -> None:
    checkpoint, folder = served
    history = [3, 8, 1]
    items = np.zeros((1, LENGTH), dtype=np.int64)
    items[0, : len(history)] = history
    nearest = definitions(script_of_page("docs/export.md", "nearest.py"))["nearest"]
    found = nearest(folder, {"items": items, "lengths": np.array([3]), "depth": np.array(2)}, K)
    assert found[0].tolist() == expected(checkpoint, history, [], 2)[0]


# ---------------------------------------------------------------- noise


@given(st.lists(st.lists(st.integers(1, 2**40), min_size=1, max_size=6), min_size=1, max_size=5), st.integers(1, 9))
def test_noise_of_given_histories_equals_that_of_the_model(lists: list[list[int]], size: int) -> None:
    histories = Histories.from_lists(lists)
    layout = padded(histories, 6)
    items = layout.arrange(histories.items)
    given_layout = GivenLayout(histories.lengths, 6)
    draws = GivenNoise(items, given_layout).uniform(given_layout, size)
    assert torch.equal(draws, KeyedNoise(histories).uniform(layout, size))


# ---------------------------------------------------------------- refusals


def test_programs_that_differ_from_the_model_are_detected(toy_dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison with fake programs: correct ones, and ones with one error each."""
    backbone = RecurrentBackbone(40, LENGTH, small()).eval().requires_grad_(False)
    vectors = item_vectors(backbone).numpy()

    def states(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        histories = Histories.from_padded(torch.from_numpy(inputs["items"]))
        return {"state": backbone.rollout(histories, [2], KeyedNoise(histories))[0][-1].numpy()}

    def rankings(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        scores = states(inputs)["state"] @ vectors.T
        np.put_along_axis(scores, np.pad(inputs["excluded"], ((0, 0), (1, 0))), -np.inf, axis=1)
        ranked = np.argsort(-scores, axis=1)[:, :K]
        return {"ranked_items": ranked, "scores": np.take_along_axis(scores, ranked, axis=1)}

    histories = sampled_histories(SequenceDataset.load(toy_dataset), 9, LENGTH)

    def found(**wrong: Any) -> Parity:
        parts = {"rankings": rankings, "states": states, "vectors": vectors, **wrong}
        return compare(backbone, parts["rankings"], parts["states"], parts["vectors"], histories, (2,), K)

    shown: list[tuple[Any, ...]] = []

    def bar(batches: Iterator[Histories], total: int, desc: str, **_: Any) -> Iterator[Histories]:
        for number, batch in enumerate(batches):
            shown.append((desc, number, total, len(batch)))
            yield batch

    with monkeypatch.context() as patched:
        patched.setattr("lares_pl.export.parity.tqdm", bar)
        right = found()
    assert shown == [("comparing", 0, 2, 1), ("comparing", 1, 2, 8)]
    check_parity(right)
    assert right.equal == 1
    wrong: list[dict[str, Any]] = [
        {"states": lambda inputs: {"state": states(inputs)["state"] * 1.01}},
        {"vectors": np.roll(vectors, 1, axis=0)},
        {"rankings": lambda inputs: {**rankings(inputs), "ranked_items": rankings(inputs)["ranked_items"][:, ::-1]}},
        {"rankings": lambda inputs: {**rankings(inputs), "scores": rankings(inputs)["scores"] + np.float32(0.01)}},
        {"rankings": lambda inputs: rankings({**inputs, "excluded": 0 * inputs["excluded"]})},
        {"rankings": lambda inputs: {**rankings(inputs), "scores": np.full((len(inputs["items"]), K), np.nan)}},
    ]
    for part in wrong:
        with pytest.raises(LaresError, match="differs from the model"):
            check_parity(found(**part))


def test_a_block_that_cannot_be_traced_is_named(toy_dataset: Path, tmp_path: Path) -> None:
    checkpoint = write_stage(small(core_block=Undecided), toy_dataset, tmp_path / "stage.ckpt")
    with pytest.raises(LaresError, match=r"core_block tests\.export\.test_export\.Undecided can't be exported \(\w+:"):
        export(str(checkpoint), str(tmp_path / "exported"), format="torch", depth="input")
    assert [path.name for path in tmp_path.iterdir()] == ["stage.ckpt"]


def test_invalid_requests_are_refused_before_any_work(served: tuple[Path, Path], toy_dataset: Path, tmp_path: Path) -> None:
    checkpoint, folder = served
    path = str(checkpoint)
    assert "lares export needs a checkpoint" in error(tmp_path, "export")
    assert "--overwrite true replaces it" in error(tmp_path, "export", "--ckpt_path", path, "--output", str(folder))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    assert "contains no exported model" in error(
        tmp_path, "export", "--ckpt_path", path, "--output", "mine", "--overwrite", "true"
    )
    assert "depth must not be negative" in error(tmp_path, "export", "--ckpt_path", path, "--depth", "-1")
    said = error(tmp_path, "export", "--ckpt_path", path, "--depth", "deep")
    assert "depth: Expected a whole number or 'input'. Got value: deep" in said
    plain = write_stage(small(core_layers=0, depth=ConstantDepth(0)), toy_dataset, tmp_path / "plain.ckpt")
    for depth in ("input", "2"):
        assert "its only depth is 0" in error(tmp_path, "export", "--ckpt_path", str(plain), "--depth", depth)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "plain.ckpt"]
