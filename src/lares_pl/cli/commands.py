"""All commands: plain functions, and the four that Lightning runs."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class FunctionCommand:
    """A command that is a plain function: its parameters are the options.

    Args:
        home: the function, as `module:name`.
        text: what it does.
        positional: whether required parameters are positional arguments.
        one_list: whether all positional arguments are elements of one list.
    """

    home: str
    text: str
    positional: bool = True
    one_list: bool = False

    def load(self) -> Callable[..., Any]:
        """Import the function."""
        module, _, name = self.home.partition(":")
        function: Callable[..., Any] = getattr(importlib.import_module(module), name)
        return function


FUNCTIONS = {
    "prepare": FunctionCommand("lares_pl.data.prepare.command:prepare", "turn raw interactions into a prepared dataset"),
    "synthetic": FunctionCommand(
        "lares_pl.data.synthetic:synthetic", "write the embedded demonstration data as raw interactions"
    ),
    "recommend": FunctionCommand(
        "lares_pl.recommender.command:recommend", "rank the catalogue for histories never seen in training", positional=False
    ),
    "report": FunctionCommand(
        "lares_pl.report.command:report", "report on trained runs: one HTML page with charts and tables", one_list=True
    ),
    "import-reference": FunctionCommand(
        "lares_pl.reference.exchange:import_reference", "turn a checkpoint of the authors' release into one of ours"
    ),
    "export-reference": FunctionCommand(
        "lares_pl.reference.exchange:export_reference", "turn a checkpoint of ours into one of the authors' release"
    ),
    "export": FunctionCommand(
        "lares_pl.export.command:export", "write a checkpoint as an ONNX or PyTorch program that runs without this package"
    ),
    "config": FunctionCommand(
        "lares_pl.cli.shipped_configs:config", "print a shipped config or script: lares config cluster.yaml"
    ),
    "completion": FunctionCommand(
        "lares_pl.cli.completion:completion", "print a script that completes commands and options in bash, zsh or fish"
    ),
    "demo": FunctionCommand("lares_pl.cli.demo:demo", "prepare, SPT, RPT, test and predict in one go, with a summary"),
}

_TEXTS = {
    "config": "A file of options, yours or a shipped one (spt.yaml, rpt.yaml, …); a later one overrides an earlier one.",
    "seed_everything": "Seed of weights, dropout, noise, depths and the order of instances.",
    "trainer.default_root_dir": "Folder for output without a path of its own; default: the stage's folder.",
}
_CHECKPOINT = "The checkpoint: architecture, weights, dataset and history length are taken from it."
_DEVICES = ("accelerator", "devices", "num_nodes", "strategy", "precision", "logger")


@dataclass(frozen=True)
class StageCommand:
    """A command that runs Lightning's Trainer on a stage, and its help where Lightning's own texts do not suffice.

    Args:
        text: what it does.
        examples: commands to copy.
        common: for long sections, the options that the short help shows; "" is the section of options outside any.
        texts: texts of options that replace Lightning's.
    """

    text: str
    examples: tuple[str, ...]
    common: dict[str, tuple[str, ...]]
    texts: dict[str, str] = field(default_factory=lambda: {**_TEXTS, "ckpt_path": _CHECKPOINT})


def _evaluation(own: tuple[str, ...], data: tuple[str, ...] = ()) -> dict[str, tuple[str, ...]]:
    outside = ("help", "config", "ckpt_path", "depth", "stop", "trajectories", "average_steps", *own, "seed_everything")
    return {
        "": outside,
        "data": ("dataset", "eval_batch_size", *data),
        "data.columns": () if not data else ("user", "item", "time"),
        "callbacks": (),
        "trainer": _DEVICES,
    }


STAGES = {
    "fit": StageCommand(
        "train a stage: lares fit --config spt.yaml, then lares fit --config rpt.yaml",
        (
            "lares fit --config spt.yaml --run beauty --data.dataset prepared/beauty",
            "lares fit --config rpt.yaml --run beauty --model.optimizer.lr 0.0003",
            "lares fit --config rpt.yaml --help    # with that config's values",
        ),
        {
            "": ("help", "config", "run", "ckpt_path", "depth", "stage", "test_after_fit", "seed_everything"),
            "model": (
                *("alpha", "gamma", "loss", "gather_negatives"),  # SPT
                *("group_size", "reward", "beta", "dropout", "pruning"),  # RPT
                *("init_from", "optimizer", "scheduler", "exclude_seen"),
            ),
            "model.backbone": (
                *("hidden_size", "pre_block", "pre_layers", "core_block", "core_layers", "dropout"),
                *("injection", "initial_state", "depth", "similarity"),
            ),
            "model.alignment": (),
            "data": ("dataset", "max_length", "batch_size", "instances", "aligned_positions", "eval_batch_size"),
            "data.columns": (),
            "callbacks": ("early_stopping", "flop_budget", "matmul_precision", "depth_sweep"),
            "trainer": (
                *_DEVICES,
                *("max_epochs", "max_steps", "max_time", "val_check_interval", "check_val_every_n_epoch"),
                *("accumulate_grad_batches", "gradient_clip_val", "callbacks"),
            ),
        },
        {
            **_TEXTS,
            "ckpt_path": "Resume from this checkpoint; `last`: the last one of this run; `auto`: the same if it exists, else "
            "start a new run. (To start from weights: --model.init_from.)",
        },
    ),
    "validate": StageCommand(
        "rank validation targets with a checkpoint",
        ("lares validate --ckpt_path runs/beauty/spt/checkpoints/best.ckpt --output validation.json",),
        _evaluation(("output",)),
    ),
    "test": StageCommand(
        "rank test targets with a checkpoint",
        (
            "lares test --ckpt_path runs/beauty/rpt/checkpoints/best.ckpt",
            "lares test --ckpt_path runs/beauty/rpt/checkpoints/best.ckpt --depth 8 --output test.json",
        ),
        _evaluation(("output",)),
    ),
    "predict": StageCommand(
        "write ranked items for every user with a checkpoint",
        (
            "lares predict --ckpt_path runs/beauty/rpt/checkpoints/best.ckpt --k 20",
            "lares predict --ckpt_path runs/beauty/rpt/checkpoints/best.ckpt --data.histories new.csv --output new.parquet",
        ),
        _evaluation(("k", "output", "overwrite"), ("predict", "histories", "format", "encoding", "separator", "header")),
    ),
}

TEXTS = {name: command.text for name, command in FUNCTIONS.items()} | {name: stage.text for name, stage in STAGES.items()}
