"""One training run within a budget of CPU time or of training targets, with its learning curve; runs as a table.

    python benchmarks/curves.py run DATASET --model spt --instances sequence --cpu 300 --seed 1 --output runs.jsonl
    python benchmarks/curves.py table runs.jsonl

CPU seconds are those of the training process without its evaluations; one thread. The learning rate warms up over the first
twentieth of the budget and falls along a cosine to a twentieth of its height, so that each run ends where its budget does.
Each line of the output is a run: what was asked, and at each point of the curve CPU seconds, targets, updates, validation and
test metrics. The table takes from each run the point with the best validation NDCG@10.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
import warnings
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch

from lares_pl import SPT, BackboneConfig, ConstantDepth, PoissonLogNormal, SequenceDataModule
from lares_pl.data.loading.batches import Batch
from lares_pl.losses.rewards import ndcg, recall

POINTS = 24  # of a curve


class Budget(L.Callback):
    """Ends training with its budget, steers the learning rate by it, and evaluates on the way.

    Args:
        cpu: CPU seconds of training, or
        targets: number of training targets.
    """

    def __init__(self, cpu: float | None, targets: int | None) -> None:
        self.cpu, self.targets = cpu, targets
        self.spent, self.served, self.updates = 0.0, 0, 0
        self.curve: list[dict[str, float]] = []
        self._since = 0.0
        self._next = 1 / POINTS  # progress at which the next point is due

    def progress(self) -> float:
        """Share of the budget that is spent."""
        return self.spent / self.cpu if self.cpu is not None else self.served / (self.targets or 1)

    def on_train_start(self, trainer: L.Trainer, stage: L.LightningModule) -> None:
        """Start the clock."""
        (self._group,) = trainer.optimizers[0].param_groups
        self._height = self._group["lr"]
        self._since = time.process_time()

    def on_train_batch_start(self, trainer: L.Trainer, stage: L.LightningModule, batch: Batch, batch_idx: int) -> None:
        """The learning rate of this update."""
        done = self.progress()
        cosine = 0.05 + 0.95 * (1 + math.cos(math.pi * min(done, 1.0))) / 2
        self._group["lr"] = self._height * min(cosine, 0.01 + done / 0.05)

    def on_train_batch_end(
        self, trainer: L.Trainer, stage: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Count; evaluate where the next point of the curve is due."""
        assert isinstance(stage, SPT)
        self.spent += time.process_time() - self._since
        self.served += len(batch)
        self.updates += 1
        if self.progress() >= self._next or self.progress() >= 1:
            data = trainer.datamodule  # type: ignore[attr-defined]
            point: dict[str, float] = {"cpu": self.spent, "targets": self.served, "updates": self.updates}
            point |= metrics(stage, data.val_dataloader(), "val") | metrics(stage, data.test_dataloader(), "test")
            self.curve.append(point)
            print(json.dumps({name: round(value, 4) for name, value in point.items()}), flush=True)
            trainer.should_stop = self.progress() >= 1
            self._next = (int(self.progress() * POINTS) + 1) / POINTS
        self._since = time.process_time()


@torch.no_grad()
def metrics(stage: SPT, batches: Iterable[Batch], split: str) -> dict[str, float]:
    """Recall@10 and NDCG@10 of the stage as it stands."""
    stage.eval()
    ranks = torch.cat(
        [
            stage.backbone.target_rank(stage.reasoning(stage.backbone, batch.histories).states, batch.targets)[batch.valid]
            for batch in batches
        ]
    )
    stage.train()
    return {f"{split}_recall": float(recall(ranks, 10).mean()), f"{split}_ndcg": float(ndcg(ranks, 10).mean())}


def run(options: argparse.Namespace) -> None:
    """Train, and add a line to the output."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    L.seed_everything(options.seed, verbose=False)
    recurrent = options.model == "spt"
    config = BackboneConfig(
        dropout=options.dropout,
        pre_layers=options.layers,
        core_layers=options.layers if recurrent else 0,
        depth=PoissonLogNormal(4) if recurrent else ConstantDepth(0),
    )
    alpha, gamma = (0.1, 0.5) if recurrent else (0.0, 0.0)
    stage = SPT(config, alpha, gamma, optimizer=partial(torch.optim.Adam, lr=options.lr))
    data = SequenceDataModule(options.dataset, batch_size=options.batch, instances=options.instances, seed=options.seed)
    budget = Budget(options.cpu, options.targets)
    trainer = L.Trainer(
        max_epochs=-1,
        callbacks=[budget],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        accelerator="cpu",
    )
    trainer.fit(stage, data)
    asked = {name: value for name, value in vars(options).items() if name not in ("command", "output")}
    with Path(options.output).open("a") as file:
        file.write(json.dumps({**asked, "dataset": Path(options.dataset).name, "curve": budget.curve}) + "\n")


def best(line: dict[str, Any]) -> dict[str, float]:
    """The point of a run's curve with the best validation NDCG@10."""
    point: dict[str, float] = max(line["curve"], key=lambda point: point["val_ndcg"])
    return point


def table(paths: list[Path]) -> str:
    """Markdown: runs that differ in their seed alone in one row."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for path in paths:
        for line in map(json.loads, path.read_text().splitlines()):
            fixed = tuple((name, value) for name, value in line.items() if name not in ("curve", "seed"))
            groups.setdefault(fixed, []).append(line)
    rows = [
        "| data | model | instances | batch | lr | dropout | CPU s | targets | test Recall@10 | test NDCG@10 | by seed |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for fixed, lines in groups.items():
        asked, points = dict(fixed), [best(line) for line in lines]
        spent = statistics.mean(line["curve"][-1]["cpu"] for line in lines)
        served = statistics.mean(line["curve"][-1]["targets"] for line in lines)
        what = " | ".join(str(asked[name]) for name in ("dataset", "model", "instances", "batch", "lr", "dropout"))
        by_seed = " / ".join(f"{point['test_ndcg']:.4f}" for point in points)
        values = [spread([point[name] for point in points]) for name in ("test_recall", "test_ndcg")]
        rows.append(f"| {what} | {spent:.0f} | {served:,.0f} | {values[0]} | {values[1]} | {by_seed} |")
    return "\n".join(rows)


def spread(values: list[float]) -> str:
    """Mean and standard deviation over seeds."""
    return f"{statistics.mean(values):.4f}" + (f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else "")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("run", help="one training run")
    one.add_argument("dataset", help="prepared dataset")
    one.add_argument("--model", choices=["spt", "sasrec"], default="spt")
    one.add_argument("--instances", choices=["prefix", "sequence"], default="prefix")
    one.add_argument("--batch", type=int, default=64, help="instances, or sequences")
    one.add_argument("--lr", type=float, default=0.001)
    one.add_argument("--dropout", type=float, default=0.2)
    one.add_argument("--layers", type=int, default=2, help="pre-layers, and core layers where there is recurrence")
    one.add_argument("--seed", type=int, default=1)
    budget = one.add_mutually_exclusive_group(required=True)
    budget.add_argument("--cpu", type=float, help="CPU seconds of training")
    budget.add_argument("--targets", type=int, help="training targets")
    one.add_argument("--output", required=True, help="file to add a line to")
    commands.add_parser("table", help="runs as Markdown").add_argument("files", nargs="+", type=Path)
    options = parser.parse_args()
    if options.command == "run":
        run(options)
    else:
        print(table(options.files))


if __name__ == "__main__":
    main()
