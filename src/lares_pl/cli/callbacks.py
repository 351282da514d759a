"""The callbacks that have a key in a config, so that one config can change one of them without repeating the others.

`trainer.callbacks` is a list, and a list in one config replaces the list in another: checkpoints or budget would be lost
silently. Callbacks under `callbacks` are merged key by key; null removes one. `trainer.callbacks` is for your own callbacks.
"""

from __future__ import annotations

import re
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint, ProgressBar

from lares_pl.callbacks.depth_sweep import DepthSweep
from lares_pl.callbacks.flop_budget import FlopBudget
from lares_pl.callbacks.matmul_precision import MatmulPrecision
from lares_pl.callbacks.progress import Progress
from lares_pl.cli.chaining import is_stage_name
from lares_pl.errors import LaresError
from lares_pl.serialization import import_class

KEYS = {
    "flop_budget": (FlopBudget, "Counts the FLOPs of training; with `match` ends it when another run's are spent."),
    "best_checkpoint": (ModelCheckpoint, "The checkpoint of the best validation, which is tested and deployed."),
    "last_checkpoint": (ModelCheckpoint, "The checkpoint to resume from, after each validation and at SIGTERM."),
    "periodic_checkpoint": (ModelCheckpoint, "A further checkpoint to resume from, such as every 500 updates."),
    "early_stopping": (EarlyStopping, "Ends training when validation has stopped improving."),
    "matmul_precision": (MatmulPrecision, "Trains with TF32 matrix products on a GPU that has them."),
    "depth_sweep": (DepthSweep, "After the test: metrics by depth, as CSV and in W&B."),
}


def add_callback_options(parser: ArgumentParser) -> None:
    """Add an option for each key; the shipped trainer.yaml sets the defaults."""
    for key, (kind, text) in KEYS.items():
        parser.add_argument(f"--callbacks.{key}", type=kind | None, help=f"{text} null: none.")


def chosen_callbacks(config: Namespace) -> list[Namespace]:
    """Return all callbacks of a configuration: those under `callbacks`, then those of `trainer.callbacks`."""
    named = [config.callbacks[key] for key in KEYS]
    if config.trainer.enable_checkpointing is False:
        named = [spec for spec in named if spec is not None and not is_kind(spec, ModelCheckpoint)]
    own = config.trainer.callbacks or []
    return [*(spec.clone() for spec in named if spec is not None), *(own if isinstance(own, list) else [own])]


def place_callbacks(specs: list[Namespace], folder: Path) -> None:
    """Set the paths of callbacks to a stage's folder if they have none.

    Args:
        specs: the callbacks.
        folder: the stage's folder, `runs/RUN/STAGE`.
    """
    for spec in specs:
        arguments = spec.get("init_args")
        if is_kind(spec, ModelCheckpoint) and arguments.get("dirpath") is None:
            arguments.dirpath = str(folder / "checkpoints")
        if is_kind(spec, FlopBudget) and is_stage_name(arguments.get("match")):
            arguments.match = str(folder.with_name(arguments.match) / "finished.json")
        if is_kind(spec, DepthSweep) and arguments.get("path") is None:
            arguments.path = str(folder / "depth-sweep.csv")


def progress_bar(config: Namespace, chosen: list[Namespace]) -> list[Namespace]:
    """Return the progress bar of every run, unless it is off or another one is chosen.

    Args:
        config: of the subcommand.
        chosen: the other callbacks.
    """
    if config.trainer.enable_progress_bar is False:
        return []
    config.trainer.enable_progress_bar = True
    return [] if any(is_kind(spec, ProgressBar) for spec in chosen) else [spec_of(Progress, every=30.0)]


def repeated_callback(error: RuntimeError) -> LaresError:
    """Build the error for two callbacks whose states a checkpoint could not tell apart.

    Args:
        error: Lightning's.
    """
    if (found := re.search(r"more than one stateful callback of type `(\w+)`", str(error))) is None:
        raise error
    kind = found[1]
    named = [f"callbacks.{key}" for key, (of_key, _) in KEYS.items() if of_key.__name__ == kind]
    first = f"Change that of every run ({', '.join(named)})" if named else "Change one"
    return LaresError(
        f"trainer.callbacks: there are two {kind} with the same monitor and interval, whose states a checkpoint could not tell "
        f"apart. {first} instead of adding a second"
    )


def is_kind(spec: Namespace, kind: type) -> bool:
    """Whether a class chosen in a configuration is one of a kind."""
    return issubclass(import_class(spec.class_path), kind)


def spec_of(kind: type[Callback], **arguments: object) -> Namespace:
    """Return a callback as it is written in a configuration."""
    return Namespace(class_path=f"{kind.__module__}.{kind.__name__}", init_args=Namespace(**arguments))
