"""Each block family with and without recurrence: a sanity check on one dataset, one seed, equal short budgets.

    python benchmarks/families.py DATASET --folder runs-of-families

DATASET is a prepared dataset with item text. Runs that are finished are not run again. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

FAMILIES = {
    "transformer": [],
    "FMLP-Rec": ["fmlp.yaml"],
    "BSARec": ["bsarec.yaml"],
    "TedRec (d 64)": ["tedrec.yaml"],
    "LRURec, gated": ["lru.yaml"],
    "rotary, SwiGLU": ["rotary.yaml"],
}


def run(folder: Path, dataset: Path, name: str, family: str, overlays: list[str], updates: int) -> dict[str, float]:
    """Train and test one model; its test metrics."""
    stage = family.split()[0].strip(",").lower()
    result = folder / "runs" / name / stage / "test.json"
    if not result.is_file():
        base = ["spt.yaml", *overlays] if name == "with" else ["sasrec.yaml", *overlays]
        options = {
            "--run": name,
            "--stage": stage,
            "--seed_everything": "1",
            "--data.dataset": str(dataset.resolve()),
            "--data.batch_size": "64",
            "--model.backbone.hidden_size": "64",
            "--model.backbone.pre_layers": "1" if name == "with" else "2",
            "--model.backbone.core_layers": "1" if name == "with" else "0",
            "--model.backbone.dropout": "0.1",
            "--model.optimizer.lr": "0.003",
            "--model.scheduler": "lares_pl.WarmupCosine",
            "--model.scheduler.warmup": "100",
            "--model.scheduler.total": str(updates),
            "--model.scheduler.floor": "0.05",
            "--trainer.max_steps": str(updates),
            "--trainer.val_check_interval": str(max(1, updates // 5)),
            "--trainer.check_val_every_n_epoch": "null",
            "--trainer.logger": "false",
            "--trainer.enable_progress_bar": "false",
        }
        configs = [part for config in base for part in ("--config", config)]
        flat = [part for pair in options.items() for part in pair]
        started = time.time()
        subprocess.run([sys.executable, "-m", "lares_pl", "fit", *configs, *flat], cwd=folder, check=True, stdout=sys.stderr)
        print(f"{family} {name} recurrence: {time.time() - started:.0f} s", file=sys.stderr)
    metrics: dict[str, float] = json.loads(result.read_text())["metrics"]
    return metrics


def main() -> None:
    """Run what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path, help="prepared dataset with item text")
    parser.add_argument("--folder", type=Path, default=Path("runs-of-families"), help="where the runs go")
    parser.add_argument("--updates", type=int, default=1500, help="updates of 64 instances each")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    print(
        "| family | without: Recall@10 | NDCG@10 | with: Recall@10 | NDCG@10 |", "|---|---|---|---|---|", sep="\n", flush=True
    )
    for family, overlays in FAMILIES.items():
        cells = []
        for name in ("without", "with"):
            metrics = run(options.folder, options.dataset, name, family, overlays, options.updates)
            cells += [f"{metrics[f'test/{metric}@10']:.4f}" for metric in ("recall", "ndcg")]
        print(f"| {family} |", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()
