"""Training and evaluating the cells of the study: each once, however often it is interrupted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lares_pl import SequenceDataModule, load_stage
from lares_pl.data.loading.histories import Histories
from lares_pl.data.loading.item_pairs import ItemPairs
from lares_pl.data.loading.loaders import InstanceLoader
from lares_pl.losses.rewards import ndcg, recall
from lares_pl.model.reasoning import mean_up_to_each
from lares_pl.model.recurrence import KeyedNoise
from lares_pl.stages.base import BaseStage
from study_grid import MODELS, Model, Stage

DEPTHS = (0, 1, 2, 4, 8, 16)
PROTOCOLS = ("ranked", "left out")  # what happens to items seen before


def run_grid(
    record: Path,
    folder: Path,
    data: Path,
    datasets: Sequence[str],
    models: Sequence[str],
    seeds: Sequence[int],
    device: str,
) -> None:
    """Train and evaluate every cell that has no line in the results yet; all cells of one seed before those of the next."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        for dataset in datasets:
            for name in models:
                if (dataset, name, seed) in {(line["dataset"], line["model"], line["seed"]) for line in results(record)}:
                    continue
                print(f"{dataset}, seed {seed}: {MODELS[name].label}", flush=True)
                line = run_cell(folder, (data / dataset).resolve(), dataset, name, seed, device)
                with record.open("a") as file:
                    file.write(json.dumps(line) + "\n")


def results(record: Path) -> list[dict[str, Any]]:
    """The lines of all finished cells."""
    return [json.loads(line) for line in record.read_text().splitlines()] if record.is_file() else []


def run_cell(folder: Path, data: Path, dataset: str, name: str, seed: int, device: str) -> dict[str, Any]:
    """Train what is missing of one model, evaluate it; its line of the results."""
    model, place = MODELS[name], folder / dataset / str(seed)
    place.mkdir(parents=True, exist_ok=True)
    cpu = {stage.name: train(place, data, dataset, model, stage, seed, device) for stage in model.stages}
    checkpoint = place / "runs" / model.run / model.stages[-1].name / "checkpoints" / "best.ckpt"
    stage = load_stage(checkpoint).to("cuda" if device == "gpu" else "cpu")
    found = evaluate(stage, SequenceDataModule(str(data), max_length=stage.backbone.max_length))
    learned = sum(p.numel() for p in stage.backbone.parameters())
    blocks = learned - stage.backbone.item_vectors.numel()
    return {
        "dataset": dataset, "model": name, "seed": seed, "epochs": model.epochs[dataset], "cpu_seconds": cpu,
        "parameters": learned, "parameters_without_items": blocks, **found,
    }  # fmt: skip


def train(place: Path, data: Path, dataset: str, model: Model, stage: Stage, seed: int, device: str) -> float | None:
    """One `lares fit`, unless it is finished; CPU seconds of the command, None where it was interrupted before."""
    log = place / f"{model.run}-{stage.name}.log"
    done = place / f"{model.run}-{stage.name}.json"
    if done.is_file():
        seconds: float | None = json.loads(done.read_text())["cpu_seconds"]
        return seconds
    options = {
        "--run": model.run,
        "--stage": stage.name,
        "--seed_everything": str(seed),
        "--ckpt_path": "auto",
        "--test_after_fit": "false",
        "--trainer.logger": "false",
        "--trainer.enable_progress_bar": "false",
        "--trainer.accelerator": device,
        "--trainer.devices": "1",
        **({"--trainer.max_epochs": str(model.epochs[dataset]), "--data.dataset": str(data)} if stage.budget else {}),
        **stage.options,
    }
    command = [sys.executable, "-m", "lares_pl", "fit"]
    command += [part for config in stage.configs for part in ("--config", config)]
    command += [part for pair in options.items() for part in pair]
    interrupted = log.is_file()
    with log.open("a") as file:
        process = subprocess.Popen(
            command, cwd=place, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}\nended with status {process.returncode}; see {log}")
    seconds = None if interrupted else usage.ru_utime + usage.ru_stime
    done.write_text(json.dumps({"command": command[1:], "cpu_seconds": seconds}))
    return seconds


@torch.no_grad()
def evaluate(stage: BaseStage, data: SequenceDataModule) -> dict[str, Any]:
    """Metrics of both splits and protocols at several depths.

    Args:
        stage: a trained stage.
        data: its data module.

    Returns:
        `{split: {protocol: {depth: {"recall@10": …, "ndcg@10": …}}}}`; with recurrence also `val_averaged` and `test_averaged`,
        where the scores of all steps up to a depth are averaged; and the depth of evaluation as `depth`.
    """
    stage.eval()
    metrics: dict[str, Any] = {"depth": stage.evaluation_depth}
    for split, held_out in (("val", "validation"), ("test", "test")):
        loader = InstanceLoader(data.sequences, data.sequences.held_out(held_out), 1024, data.max_length, with_seen=True)  # type: ignore[arg-type]
        ranks: dict[tuple[str, str, int], list[torch.Tensor]] = {}
        for batch in loader:
            batch = batch.to(stage.device)
            head = stage.backbone.head(batch.histories)
            assert batch.seen_rows is not None
            assert batch.seen_items is not None
            seen = {"ranked": None, "left out": ItemPairs(batch.seen_rows, batch.seen_items)}
            for (name, depth), states in states_by_depth(stage, batch.histories).items():
                for protocol in PROTOCOLS:
                    of_depth = head.rank(states, batch.targets, seen[protocol])[batch.valid]
                    ranks.setdefault((split + name, protocol, depth), []).append(of_depth)
        for (name, protocol, depth), parts in ranks.items():
            found = torch.cat(parts)
            values = {"recall@10": recall(found, 10), "ndcg@10": ndcg(found, 10)}
            of_protocol = metrics.setdefault(name, {}).setdefault(protocol, {})
            of_protocol[str(depth)] = {metric: float(value.double().mean()) for metric, value in values.items()}
    return metrics


def states_by_depth(stage: BaseStage, histories: Histories) -> dict[tuple[str, int], torch.Tensor]:
    """User states `[B, d]` at each depth: those of the last step, and with recurrence (`_averaged`) those of all steps."""
    if not stage.evaluation_depth:
        return {("", 0): stage.backbone.rollout(histories, [0])[0][0]}
    (read,), states = stage.backbone.rollout(histories, [0, max(DEPTHS)], KeyedNoise(histories))
    kinds = {"": states, "_averaged": mean_up_to_each(stage.backbone.config.similarity, states)}
    return {(name, depth): path[depth - 1] if depth else read for name, path in kinds.items() for depth in DEPTHS}
