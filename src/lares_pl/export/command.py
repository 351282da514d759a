"""`lares export`: from a checkpoint to a folder of programs and tables that are used without this package."""

from __future__ import annotations

import hashlib
import json
import shlex
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from lares_pl import __version__
from lares_pl.atomic_io import atomic_folder, check_folder
from lares_pl.data.dataset.prepared import SequenceDataset
from lares_pl.errors import LaresError
from lares_pl.export.formats import FORMATS, ProgramFormat
from lares_pl.export.parity import Parity, check_parity, compare, sampled_histories
from lares_pl.export.programs import Depth, FixedDepth, InputDepth, Program, item_vectors
from lares_pl.export.tracing import trace
from lares_pl.model.backbone import RecurrentBackbone
from lares_pl.model.reasoning import Reasoning
from lares_pl.runs import BEST, trained
from lares_pl.stages.checkpoint import StageCheckpoint, read_checkpoint
from lares_pl.stages.loading import load_stage
from lares_pl.stages.validation import compare_catalogues

DESCRIPTION = "export.json"

_MEANING = {
    "items": "item indices of each history, the last max_length at most, oldest first, then 0s",
    "lengths": "number of items of each history, at least 1",
    "excluded": "item indices to exclude for each history, padded with 0s",
    "depth": "number of reasoning steps, one number for all histories; below 1: none",
    "ranked_items": "item indices, best first",
    "scores": "their scores, -inf if no item was left",
    "state": "user vectors: inner products with item_vectors.npy are the scores",
}


def export(
    ckpt_path: str | None = None,
    output: str = "exported",
    format: Literal["onnx", "torch"] = "onnx",
    depth: int | Literal["input"] | None = None,
    average_steps: bool = False,
    k: int = 20,
    check: int = 256,
    dataset: str | None = None,
    overwrite: bool = False,
) -> None:
    """Write a trained model as a program that runs without this package.

    The folder is written atomically, after the program was compared with the model on histories of the dataset.

    Args:
        ckpt_path: checkpoint of a stage.
        output: folder to write.
        format: onnx (for onnxruntime and similar runtimes), or torch (a program of torch.export).
        depth: number of reasoning steps, or `input`: an input of the program. Default: the checkpoint's depth of evaluation.
        average_steps: average the scores of all steps, as the option of evaluation does.
        k: length of the ranked lists; at most the number of items.
        check: number of histories on which to compare program and model.
        dataset: dataset with the original ids and the histories to compare on; default: the checkpoint's.
        overwrite: replace an exported folder.

    Raises:
        LaresError: if something can't be exported, or program and model differ; nothing is written.

    Example:
        lares export --ckpt_path runs/beauty/rpt/checkpoints/best.ckpt --output beauty-onnx
        lares export --ckpt_path best.ckpt --depth input --format torch --output beauty-pt2
    """
    if ckpt_path is None:
        known = f" (there are {', '.join(map(str, found))})" if (found := trained()[:5]) else ""
        raise LaresError(f"lares export needs a checkpoint: --ckpt_path runs/RUN/STAGE/{BEST}{known}")
    target = Path(output).resolve()
    _check_target(target, overwrite)
    chosen = FORMATS[format]()
    chosen.check()
    if check < 1 or k < 1:
        raise LaresError(f"check and k must be at least 1, got check={check}, k={k}")
    checkpoint = read_checkpoint(ckpt_path)
    stage = load_stage(ckpt_path)
    backbone: RecurrentBackbone = stage.backbone.eval().requires_grad_(False)
    if backbone.item_vectors.dtype != torch.float32:
        backbone = backbone.float()  # onnxruntime has kernels for float32 above all
    sequences = _dataset(checkpoint, dataset)
    Reasoning(stage.evaluation_depth, average_steps=average_steps).check(backbone.config)
    steps = _depth(depth, backbone, stage.evaluation_depth, average_steps)
    k = min(k, backbone.items)
    with atomic_folder(target, lambda: _check_target(target, overwrite)) as folder:
        states, rankings = trace(chosen, backbone, steps, k, folder)
        np.save(folder / "item_vectors.npy", item_vectors(backbone).numpy())
        agreement = _compare(chosen, backbone, sequences, steps, k, check, folder)
        check_parity(agreement)
        _write_items(item_ids(sequences), folder)
        description = {
            "format": format,
            "programs": {
                f"user_state{chosen.suffix}": _signature(states, backbone, k),
                f"model{chosen.suffix}": _signature(rankings, backbone, k),
            },
            "max_length": backbone.max_length,
            "items": backbone.items,
            "hidden_size": backbone.config.hidden_size,
            "depth": "input" if isinstance(steps, InputDepth) else steps.checked[0],
            "depth_of_evaluation": stage.evaluation_depth,
            "average_steps": average_steps,
            "k": k,
            "similarity": repr(backbone.config.similarity),
            "repeat_bias": float(backbone.bias_of_repeats) if backbone.config.repeat_bias else None,
            "exclude_seen": stage.exclude_seen,
            "checkpoint": {"path": str(Path(ckpt_path).resolve()), "sha256": _checksum(Path(ckpt_path))},
            "checked": vars(agreement),
            "versions": {"lares-pl": __version__, **chosen.versions()},
            "command": shlex.join(["lares", *sys.argv[1:]]),
        }
        (folder / DESCRIPTION).write_text(json.dumps(description, indent=1) + "\n")
    print(f"exported {ckpt_path} as {output}\n  checked   {agreement}")


def item_ids(sequences: SequenceDataset) -> pa.Array:
    """Original ids of items 1 … N."""
    return sequences.item_ids


def _check_target(target: Path, overwrite: bool) -> None:
    ours = (DESCRIPTION, "model.*", "user_state.*", "items.*", "item_vectors.npy")
    check_folder(target, "exported model", DESCRIPTION, ours, overwrite)


def _dataset(checkpoint: StageCheckpoint, named: str | None) -> SequenceDataset:
    """The dataset of a checkpoint, or another one with the same catalogue."""
    folder = named or checkpoint.data.get("dataset")
    if folder is None:
        raise LaresError(f"{checkpoint.path} names no dataset, which has the original ids: --dataset DIR")
    sequences = SequenceDataset.load(folder)
    found = {
        "items": sequences.catalogue_size,
        "max_length": checkpoint.catalogue["max_length"],
        "fingerprint": sequences.catalogue_fingerprint,
    }
    compare_catalogues(checkpoint.catalogue, found, str(folder))
    return sequences


def _depth(asked: int | Literal["input"] | None, backbone: RecurrentBackbone, usual: int, average_steps: bool) -> Depth:
    if asked == "input" and backbone.core_blocks:
        return InputDepth(usual, average_steps)
    steps = usual if asked is None else asked
    if isinstance(steps, str) or (steps > 0 and not backbone.core_blocks):
        raise LaresError(f"depth {asked} asked of a model without core-block (core_layers: 0): its only depth is 0")
    if steps < 0:
        raise LaresError(f"depth must not be negative, got {steps}")
    return FixedDepth(steps, average_steps)


def _compare(
    chosen: ProgramFormat,
    backbone: RecurrentBackbone,
    sequences: SequenceDataset,
    depth: Depth,
    k: int,
    count: int,
    folder: Path,
) -> Parity:
    """Compare the written programs with the model."""
    histories = sampled_histories(sequences, count, backbone.max_length)
    rankings, states = (chosen.load(folder / f"{name}{chosen.suffix}") for name in ("model", "user_state"))
    vectors = np.load(folder / "item_vectors.npy")
    return compare(backbone, rankings, states, vectors, histories, depth.checked, k, depth.average_steps)


def _write_items(ids: pa.Array, folder: Path) -> None:
    """Write the original id of each item: as a Parquet table, and as a JSON list."""
    numbers = pa.array(np.arange(1, len(ids) + 1, dtype=np.int32))
    pq.write_table(pa.table({"item": numbers, "item_id": ids}), folder / "items.parquet", compression="zstd")
    (folder / "items.json").write_text(
        json.dumps([None, *ids.to_pylist()], ensure_ascii=False, default=str) + "\n", encoding="utf-8"
    )


def _signature(program: Program, backbone: RecurrentBackbone, k: int) -> dict[str, Any]:
    """Describe inputs and outputs."""
    length, size = backbone.max_length, backbone.config.hidden_size
    shapes: dict[str, list[str | int]] = {
        "items": ["batch", length],
        "lengths": ["batch"],
        "excluded": ["batch", "excluded_items"],
        "depth": [],
        "ranked_items": ["batch", k],
        "scores": ["batch", k],
        "state": ["batch", size],
    }

    def described(name: str) -> dict[str, Any]:
        kind = "float32" if name in ("scores", "state") else "int64"
        return {"name": name, "shape": shapes[name], "dtype": kind, "meaning": _MEANING[name]}

    return {"inputs": list(map(described, program.inputs)), "outputs": list(map(described, program.outputs))}


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
