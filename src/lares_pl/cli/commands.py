"""What help says of `fit`, `validate`, `test` and `predict`, where Lightning's own words are not enough."""

from __future__ import annotations

from dataclasses import dataclass, field

_TEXTS = {
    "config": "A file of options, yours or a shipped one (spt.yaml, rpt.yaml, …); several are laid over one another.",
    "seed_everything": "Seed of weights, dropout, noise, depths and the order of instances.",
    "trainer.default_root_dir": "Folder for what has no place of its own; the stage's folder where not given.",
}
_CHECKPOINT = "The checkpoint: architecture, weights, dataset and history length are taken from it."
_DEVICES = ("accelerator", "devices", "num_nodes", "strategy", "precision", "logger")


@dataclass(frozen=True)
class StageCommand:
    """One of them.

    Args:
        text: what it does.
        examples: commands to copy.
        common: of crowded sections, the options that the short help shows; "" is the section of those outside any.
        texts: of options, instead of Lightning's text.
    """

    text: str
    examples: tuple[str, ...]
    common: dict[str, tuple[str, ...]]
    texts: dict[str, str] = field(default_factory=lambda: {**_TEXTS, "ckpt_path": _CHECKPOINT})


def _evaluation(own: tuple[str, ...], data: tuple[str, ...] = ()) -> dict[str, tuple[str, ...]]:
    outside = ("help", "config", "ckpt_path", "depth", "stop", "trajectories", *own, "seed_everything")
    return {
        "": outside,
        "data": ("dataset", "eval_batch_size", *data),
        "data.columns": () if not data else ("user", "item", "time"),
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
                *("alpha", "gamma", "tau", "loss", "gather_negatives"),  # SPT
                *("group_size", "reward", "beta", "dropout", "pruning"),  # RPT
                *("init_from", "optimizer", "scheduler", "exclude_seen"),
            ),
            "model.backbone": (
                *("hidden_size", "pre_block", "pre_layers", "core_block", "core_layers", "dropout"),
                *("injection", "initial_state", "depth", "similarity"),
            ),
            "data": ("dataset", "max_length", "batch_size", "instances", "aligned_positions", "eval_batch_size"),
            "data.columns": (),
            "trainer": (
                *_DEVICES,
                *("max_epochs", "max_steps", "max_time", "val_check_interval", "check_val_every_n_epoch"),
                *("accumulate_grad_batches", "gradient_clip_val", "callbacks"),
            ),
        },
        {
            **_TEXTS,
            "ckpt_path": "Resume: from this checkpoint; `last`: this run's; `auto`: that where there is one, else start anew. "
            "(To start from weights: --model.init_from.)",
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
        _evaluation(("k", "output", "overwrite"), ("predict", "histories")),
    ),
}
