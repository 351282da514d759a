"""`lares demo`: the whole road in one go, with the commands a person would type, and a summary at the end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from lares_pl.atomic_io import move_aside, write_json
from lares_pl.errors import LaresError

DEPTHS = (1, 2, 4, 8)
FOLDER = Path("runs") / "demo"


def demo(data: str | None = None) -> None:
    """Prepare, pre-train (SPT), post-train (RPT), test at several depths and predict, on a CPU in a few minutes.

    Everything is kept in runs/demo; what is there already is moved aside.

    Args:
        data: file with interactions of your own, in a format `lares prepare` reads; the embedded data where not given.

    Example:
        lares demo
        lares demo --data ml-100k.inter
    """
    if data is not None and not Path(data).is_file():
        raise LaresError(f"no such file: {data}")
    if data is not None and FOLDER.resolve() in Path(data).resolve().parents:
        raise LaresError(f"{data} lies in {FOLDER}, which the demonstration moves aside; put it elsewhere")
    if (former := move_aside(FOLDER)) is not None:
        print(f"{FOLDER} was there already: moved it to {former}")
    optimum = None
    source = data
    if source is None:
        from lares_pl.data.synthetic import Process, write_interactions

        process = Process()
        optimum = process.optimum()
        source = str(FOLDER / "interactions.tsv")
        write_interactions(process, Path(source))
        print(f"embedded data: {process.users} users, {process.items} items -> {source}")
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # tensors so small that a second thread costs more than it gives
    dataset = str(FOLDER / "dataset")
    run = ["--run", "demo", "--trainer.accelerator", "cpu", "--trainer.devices", "1"]
    _lares("prepare", source, "--output", dataset)
    _lares("fit", "--config", "spt.yaml", "--config", "small.yaml", *run, "--data.dataset", dataset)
    _lares(
        "fit",
        "--config",
        "rpt.yaml",
        "--config",
        "small-rpt.yaml",
        *run,
        "--trainer.max_steps",
        "60",
        "--trainer.val_check_interval",
        "20",
    )
    best = str(FOLDER / "rpt" / "checkpoints" / "best.ckpt")
    by_depth = ndcg_by_depth(best, dataset)
    _lares("predict", "--ckpt_path", best, "--output", str(FOLDER / "predictions.parquet"))

    report = json.loads((FOLDER / "rpt" / "test.json").read_text())
    summary = {
        "popularity": popularity_ndcg(dataset),
        "spt": report["before"]["metrics"]["test/ndcg@10"],
        "rpt": report["metrics"]["test/ndcg@10"],
        "optimum": optimum,
        "depth": by_depth,
    }
    write_json(FOLDER / "summary.json", summary)
    print(_table(summary))


def _lares(*arguments: str) -> None:
    """Run a command as a person would, and show it."""
    print(f"\n$ lares {' '.join(arguments)}", flush=True)
    status = subprocess.run([sys.executable, "-m", "lares_pl", *arguments], check=False).returncode
    if status:
        raise LaresError(f"the demonstration stopped: `lares {arguments[0]}` ended with status {status}")


def ndcg_by_depth(checkpoint: str, dataset: str) -> dict[str, float]:
    """Test NDCG@10 of one set of weights at several depths; what `lares test --depth` does, without starting anew."""
    import lightning as L

    from lares_pl.data.module import SequenceDataModule
    from lares_pl.stages.loading import load_stage

    stage = load_stage(checkpoint)
    trainer = L.Trainer(accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, enable_model_summary=False)
    by_depth = {}
    for depth in DEPTHS:
        stage.evaluation_depth = depth
        (metrics,) = trainer.test(stage, SequenceDataModule(dataset), verbose=False)
        by_depth[str(depth)] = metrics["test/ndcg@10"]
    return by_depth


def popularity_ndcg(dataset: str, k: int = 10) -> float:
    """Test NDCG@k of ranking by the number of training interactions; ties count against the target."""
    from lares_pl.data.dataset.prepared import SequenceDataset

    sequences = SequenceDataset.load(dataset)
    test = sequences.held_out("test").all()
    held = np.zeros(len(sequences.items), dtype=bool)
    held[test.ends] = held[test.ends - 1] = True
    counts = np.bincount(sequences.items[~held], minlength=sequences.catalogue_size + 1)
    ranked = np.sort(counts[1:])
    ranks = len(ranked) - np.searchsorted(ranked, counts[sequences.targets(test)], side="left")
    return float(np.where(ranks <= k, 1 / np.log2(1 + ranks), 0.0).mean())


def _table(summary: dict[str, Any]) -> str:
    rows = [("popularity", summary["popularity"]), ("SPT", summary["spt"]), ("SPT + RPT", summary["rpt"])]
    if summary["optimum"] is not None:
        rows.append(("best possible", summary["optimum"]))
    rows += [(f"SPT + RPT at depth {depth}", value) for depth, value in summary["depth"].items()]
    lines = ["", f"{'test NDCG@10':<22}", "-" * 30, *(f"{name:<22}  {value:.4f}" for name, value in rows)]
    return "\n".join([*lines, "", f"also in {FOLDER / 'summary.json'}; rankings in {FOLDER / 'predictions.parquet'}"])
