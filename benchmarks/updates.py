"""Updates as users make them, through Lightning's Trainer: milliseconds, speed, memory, and what the card does.

    python benchmarks/updates.py DATASET [--device cuda] [--case NAME …] [--variant NAME …] [--updates 60] [--json FILE]

DATASET is a prepared dataset. A case is a stage of the shipped configs with batches of some size; a variant is a precision, on
CUDA with or without CUDA graphs. RPT starts from first weights and prunes nothing, so that an update costs as much.
Each figure is of updates after a warm-up, between two points at which the device has nothing left to do: CPU milliseconds are
those of the process. On CUDA further updates are profiled for kernels, launches by the host and the share of time in which the
card is busy.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
import yaml
from lightning.pytorch.callbacks import Callback
from torch.profiler import ProfilerActivity, profile

import device_profile
from lares_pl import RPT, SPT, MatmulPrecision, SequenceDataModule, SequenceDataset
from lares_pl.cli.shipped_configs import shipped_configs
from lares_pl.data.loading.batches import Batch

PROFILED = 5  # updates


@dataclass(frozen=True)
class Case:
    """A stage and its batches.

    Args:
        configs: shipped configs, applied one after the other.
        instances: how training instances are read.
        batch_size: sequences, or instances.
        model: arguments that differ from the configs'.
    """

    configs: tuple[str, ...]
    instances: str
    batch_size: int
    model: Mapping[str, Any] | None = None


ALIGNED = {"alpha": 0.1, "gamma": 0.1}
CASES = {
    "recipe, 64 sequences": Case(("spt.yaml",), "sequence", 64),
    "recipe, 256 sequences": Case(("spt.yaml",), "sequence", 256),
    "recipe with alignment, 256 sequences": Case(("spt.yaml",), "sequence", 256, ALIGNED),
    "released, 1,024 instances": Case(("spt.yaml", "paper.yaml"), "prefix", 1024),
    "released, 256 sequences": Case(("spt.yaml", "paper.yaml"), "sequence", 256),
    "SASRec, 256 sequences": Case(("sasrec.yaml",), "sequence", 256),
    "SASRec, 1,024 instances": Case(("sasrec.yaml",), "prefix", 1024),
    "RPT, 64 sequences": Case(("rpt.yaml",), "sequence", 64),
    "RPT released, 400 instances": Case(("rpt.yaml", "paper-rpt.yaml"), "prefix", 400),
}


class Variant(NamedTuple):
    """How an update is computed.

    Args:
        precision: of the trainer.
        graphs: whether updates are recorded as CUDA graphs.
        callbacks: of the trainer.
    """

    precision: str
    graphs: bool = True
    callbacks: tuple[Callback, ...] = ()


VARIANTS = {
    "float32": Variant("32-true"),
    "TF32 products": Variant("32-true", callbacks=(MatmulPrecision("high"),)),
    "bfloat16": Variant("bf16-mixed"),
    "float32, no graphs": Variant("32-true", graphs=False),
    "bfloat16, no graphs": Variant("bf16-mixed", graphs=False),
}


def arguments_of(configs: tuple[str, ...]) -> dict[str, Any]:
    """Arguments of a stage, as shipped configs give them."""
    arguments: dict[str, Any] = {}
    for name in configs:
        arguments = merged(arguments, spelled_out(yaml.safe_load(shipped_configs()[name].read_text())["model"]["init_args"]))
    return arguments


def spelled_out(values: Any) -> Any:
    """Classes that a config gives by their name alone, as the checkpoints name them."""
    if isinstance(values, dict):
        return {key: value if key == "class_path" else spelled_out(value) for key, value in values.items()}
    return {"class_path": values} if isinstance(values, str) and values.startswith("lares_pl.") else values


def merged(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings, of which the latter decides."""
    nested = {
        key: merged(before[key], value)
        for key, value in after.items()
        if isinstance(value, dict) and isinstance(before.get(key), dict) and "class_path" not in value
    }
    return {**before, **after, **nested}


class Clock(Callback):
    """Times updates once the first ones are done, then profiles some.

    Args:
        warm_up: updates that are not timed.
        updates: that are timed.
        profiled: that are profiled after them.
    """

    def __init__(self, warm_up: int, updates: int, profiled: int) -> None:
        self.ends = (warm_up, warm_up + updates, warm_up + updates + profiled)
        self.updates, self.profiled = updates, profiled
        self.instances = self.tokens = 0
        self.started = self.spent = (0.0, 0.0)
        self.profile: profile | None = None

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, batch_idx: int) -> None:
        done, device = trainer.global_step, pl_module.device
        if done == self.ends[0]:
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            self.started = self._now(device)
        if done == self.ends[1] and self.profiled:
            self.profile = profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA])
            self.profile.start()
        if self.ends[0] <= done < self.ends[1]:
            self.instances += len(batch)
            self.tokens += batch.histories.tokens

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if trainer.global_step == self.ends[1]:
            now = self._now(pl_module.device)
            self.spent = now[0] - self.started[0], now[1] - self.started[1]
        if trainer.global_step == self.ends[2] and self.profile is not None:
            torch.cuda.synchronize()
            self.profile.stop()

    @staticmethod
    def _now(device: torch.device) -> tuple[float, float]:
        """Wall clock and CPU seconds, once the device has nothing left to do."""
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter(), time.process_time()

    def figures(self) -> dict[str, float]:
        """Of an update."""
        wall, cpu = self.spent
        found = {
            "ms": 1e3 * wall / self.updates,
            "cpu_ms": 1e3 * cpu / self.updates,
            "instances_per_s": self.instances / wall,
            "tokens_per_s": self.tokens / wall,
        }
        if self.profile is None:
            return found
        of_all = device_profile.figures_of(self.profile)
        each = {key: value / self.profiled for key, value in asdict(of_all).items()}
        return {
            **found,
            "peak_mib": torch.cuda.max_memory_allocated() / 2**20,
            "kernels": each["kernels"],
            "launches": each["launches"],
            "copies": each["copies"],
            "busy_share": 1e3 * each["busy_s"] / found["ms"],
        }


def measure(dataset: Path, case: Case, variant: Variant, device: str, warm_up: int, updates: int) -> Clock:
    """Train, and time it."""
    L.seed_everything(1, verbose=False)
    arguments = arguments_of(case.configs) | dict(case.model or {}) | {"cuda_graphs": variant.graphs}
    with tempfile.TemporaryDirectory() as folder:
        data = SequenceDataModule(str(dataset), batch_size=case.batch_size, instances=case.instances)  # type: ignore[arg-type]
        released = any(name.startswith("paper") for name in case.configs)
        if case.configs[0] == "rpt.yaml":
            source = Path(folder) / "spt.ckpt"
            save_untrained(SPT(**arguments_of(("spt.yaml", "paper.yaml") if released else ("spt.yaml",))), dataset, source)
            stage: L.LightningModule = RPT(**{**arguments, "init_from": str(source), "pruning": None})
        else:
            stage = SPT(**arguments)
        profiled = PROFILED if device == "cuda" else 0
        clock = Clock(warm_up, updates, profiled)
        trainer(folder, device, variant.precision, [clock, *variant.callbacks], warm_up + updates + profiled).fit(stage, data)
    return clock


def trainer(folder: str | Path, device: str, precision: str, callbacks: list[Callback], updates: int) -> L.Trainer:
    """A trainer that does nothing but train."""
    return L.Trainer(
        accelerator="gpu" if device == "cuda" else "cpu",
        devices=1,
        precision=precision,  # type: ignore[arg-type]
        max_steps=updates,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=50,
        default_root_dir=folder,
        callbacks=callbacks,
    )


def save_untrained(stage: SPT, dataset: Path, path: Path) -> None:
    """A checkpoint of first weights."""
    saves = trainer(path.parent, "cpu", "32-true", [], 0)
    saves.fit(stage, SequenceDataModule(str(dataset)))
    saves.save_checkpoint(path)


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| update | variant | ms | CPU ms | instances/s | tokens/s | peak MiB | kernels / launches | busy |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        of_card = "{peak_mib:,.0f} | {kernels:,.0f} / {launches:,.0f} | {busy_share:.0%}" if "kernels" in row else "| |"
        card = of_card.format(**row)
        spent = "{ms:.1f} | {cpu_ms:.1f} | {instances_per_s:,.0f} | {tokens_per_s:,.0f}".format(**row)
        lines.append(f"| {row['case']} | {row['variant']} | {spent} | {card} |")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path, help="prepared dataset")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--case", nargs="*", choices=list(CASES), default=list(CASES), help="which to measure")
    parser.add_argument("--variant", nargs="*", choices=list(VARIANTS), default=list(VARIANTS), help="which to measure")
    parser.add_argument("--warm-up", type=int, default=40, help="updates before those that are timed")
    parser.add_argument("--updates", type=int, default=60, help="updates that are timed")
    parser.add_argument("--json", type=Path, help="file to write the figures to as well")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message=".*num_workers|.*max_steps")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    dataset = SequenceDataset.load(options.dataset)
    rows: list[dict[str, Any]] = []
    for case in options.case:
        for variant in options.variant:
            row: dict[str, Any] = {"case": case, "variant": variant}
            clock = measure(options.dataset, CASES[case], VARIANTS[variant], options.device, options.warm_up, options.updates)
            rows.append(row | clock.figures())
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    machine = f"{device_profile.machine(options.device)}, {dataset.catalogue_size:,} items"
    print(f"{machine}\n\n{table(rows)}")
    if options.json:
        options.json.write_text(json.dumps({"machine": machine, "updates": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
