"""`lares demo`: the whole road in one go, with the commands a person would type, and a summary at the end."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from lares_pl.errors import LaresError
from lares_pl.files import write_json

DEPTHS = (1, 2, 4, 8)
FOLDER = Path("runs") / "demo"


def demo(data: str | None = None) -> None:
    """Prepare, pre-train (SPT), post-train (RPT), test at several depths and predict, on a CPU in a few minutes.

    Everything is kept in runs/demo; a former demonstration is replaced.

    Args:
        data: file with interactions of your own, in a format `lares prepare` reads; the embedded data where not given.
    """
    if data is not None and not Path(data).is_file():
        raise LaresError(f"no such file: {data}")
    shutil.rmtree(FOLDER, ignore_errors=True)
    optimum = None
    source = data
    if source is None:
        from lares_pl.data.synthetic import Process, write_interactions

        process = Process()
        optimum = process.optimum()
        source = str(FOLDER / "interactions.tsv")
        write_interactions(process, Path(source))
        print(f"embedded data: {process.users} users, {process.items} items -> {source}")
    dataset = str(FOLDER / "dataset")
    run = ["--run", "demo", "--trainer.accelerator", "cpu", "--trainer.devices", "1"]
    _lares("prepare", source, "--output", dataset)
    _lares("fit", "--config", "spt.yaml", "--config", "small.yaml", *run, "--data.dataset", dataset)
    _lares("fit", "--config", "rpt.yaml", "--config", "small-rpt.yaml", *run)
    best = str(FOLDER / "rpt" / "checkpoints" / "best.ckpt")
    by_depth = {}
    for depth in DEPTHS:
        _lares("test", "--ckpt_path", best, "--depth", str(depth), "--output", str(FOLDER / "at_depth.json"))
        by_depth[str(depth)] = json.loads((FOLDER / "at_depth.json").read_text())["metrics"]["test/ndcg@10"]
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


def popularity_ndcg(dataset: str, k: int = 10) -> float:
    """Test NDCG@k of ranking by the number of training interactions; ties count against the target."""
    from lares_pl.data.dataset import SequenceDataset

    sequences = SequenceDataset.load(dataset)
    test = sequences.held_out("test")
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
