"""Settings of a resumed run: those given now apply, also to optimiser and schedule, whose state a checkpoint brings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

from lightning import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info

from lares_pl.errors import LaresError
from lares_pl.parsing import from_plain
from lares_pl.serialization import changed_settings, import_class
from lares_pl.stages.optimizers import OptimizerFactory, options_of

_ANEW = "start a new run from its weights (--model.init_from)"


def apply_settings(
    checkpoint: dict[str, Any],
    now: Mapping[str, Any],
    optimizer: OptimizerFactory,
    data: Any,
) -> None:
    """Make a checkpoint one that a run resumes with the settings of now, in place; print those that differ.

    Args:
        checkpoint: the checkpoint.
        now: plain settings of the stage that resumes it.
        optimizer: factory of its optimiser.
        data: the data module.

    Raises:
        LaresError: if it can't.
    """
    before = checkpoint["hyper_parameters"]
    check_resumed(before, now)
    before, now = (with_defaults(settings) for settings in (before, now))
    changed = changed_settings(before, dict(now)) + check_position(checkpoint["loops"]["fit_loop"], data)
    if changed:
        rank_zero_info(f"resuming with changed settings: {', '.join(changed)}")
    former = from_plain(OptimizerFactory, before["optimizer"], "optimizer")
    apply_options(checkpoint, options_of(former), options_of(optimizer))
    if now.get("scheduler") is not None:
        apply_schedule(checkpoint, before["scheduler"]["init_args"], now["scheduler"]["init_args"])


def with_defaults(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The plain settings of a stage with all options of its schedule: those that nobody named have their defaults."""
    chosen = settings.get("scheduler")
    if chosen is None:
        return dict(settings)
    options = signature(import_class(chosen["class_path"])).parameters.values()
    defaults = {option.name: option.default for option in options if option.default is not Parameter.empty}
    return {**settings, "scheduler": {**chosen, "init_args": {**defaults, **chosen.get("init_args", {})}}}


def check_resumed(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Check that a run can go on with its settings of now.

    Args:
        before: plain settings of the stage in the checkpoint.
        now: those of the stage that resumes it.

    Raises:
        LaresError: if the state of the optimiser, of the schedule or of the average would be of no use.
    """
    for key in ("optimizer", "scheduler"):
        was, is_ = (settings.get(key) and settings[key]["class_path"] for settings in (before, now))
        if was != is_:
            raise LaresError(
                f"model.{key}: the run was trained with {was or 'none'}, and {is_ or 'none'} could not use its state. "
                f"Resume it with the former, or {_ANEW}"
            )
    was, is_ = before.get("ema"), now.get("ema")
    if bool(was) != bool(is_):
        raise LaresError(
            f"model.ema: the run was trained with {was} and can't be resumed with {is_}: an average is kept from the first "
            f"update or not at all. Resume it as before, or {_ANEW}"
        )


def check_position(loop: Mapping[str, Any], data: Any) -> list[str]:
    """Check that a run that stopped within an epoch can go on there.

    Args:
        loop: state of Lightning's fit loop.
        data: the data module.

    Returns:
        What the batches of the next epoch differ in, as of `changed_settings`.

    Raises:
        LaresError: if the rest of the epoch would have other batches.
    """
    # with trainer.limit_train_batches an epoch is complete before the loader's last batch
    complete = loop.get("epoch_loop.batch_progress", {}).get("is_last_batch")
    changed = []
    for loader in loop["state_dict"].get("combined_loader", ()):
        for name, is_ in asdict(data.training_batches).items():
            if (was := loader[name]) == is_:
                continue
            option = "processes (trainer.devices, num_nodes)" if name == "processes" else f"data.{name}"
            if not complete and 0 < loader["served"] < loader["batches"]:
                raise LaresError(
                    f"{option}: the run stopped within an epoch of batches with {name} {was} and can't go on there with "
                    f"{is_}. Resume it with {was}, or {_ANEW}"
                )
            changed.append(f"{option} {was} -> {is_}")
    return changed


def hold_saving_on_exception(trainer: Trainer) -> list[ModelCheckpoint]:
    """Keep checkpoints from being saved on an exception, and return the callbacks that would save them.

    While a run is being resumed, such a checkpoint would overwrite a complete one with a state that is restored in part.
    """
    held = [each for each in trainer.checkpoint_callbacks if isinstance(each, ModelCheckpoint) and each.save_on_exception]
    for callback in held:
        callback.save_on_exception = False
    return held


def follow_moved_folder(states: Mapping[str, Any], trainer: Trainer) -> None:
    """Correct the paths that checkpoint callbacks have stored, in place, where their folder was moved or copied since.

    Lightning stores absolute paths, and forgets the best score where the folder is another one. Paths are corrected if the run
    is resumed from the folder that its callbacks save to; one that is continued elsewhere begins to look for its best anew.

    Args:
        states: of all callbacks, by their keys, as a checkpoint holds them.
        trainer: of the run that is resumed.
    """
    source = Path(str(trainer.ckpt_path)).resolve().parent
    for callback in trainer.checkpoint_callbacks:
        state = states.get(callback.state_key)
        if not isinstance(callback, ModelCheckpoint) or state is None or callback.dirpath is None:
            continue
        former, now = state["dirpath"], callback.dirpath
        if former != now and source == Path(now).resolve():
            state["dirpath"] = now
            state["best_k_models"] = {_moved(name, former, now): score for name, score in state["best_k_models"].items()}
            for key in ("best_model_path", "kth_best_model_path", "last_model_path"):
                state[key] = _moved(state[key], former, now)


def _moved(path: str, former: str | Path, now: str | Path) -> str:
    """A path in a folder that was moved; one that lies elsewhere as it is."""
    return str(Path(now) / Path(path).relative_to(former)) if Path(path).is_relative_to(former) else path


def apply_options(checkpoint: dict[str, Any], before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Put changed options of the optimiser into the state that a checkpoint holds, in place.

    The learning rates of all groups, which a schedule may have changed, are scaled.

    Args:
        checkpoint: with the states of optimisers and schedules.
        before: options of the optimiser so far, as of `options_of`.
        now: those that shall apply.
    """
    changed = {key: value for key, value in now.items() if key in before and before[key] != value}
    factor = now["lr"] / before["lr"] if "lr" in changed and before["lr"] else None
    for state in checkpoint["optimizer_states"]:
        for group in state["param_groups"]:
            rates = {key: group[key] * factor for key in ("lr", "initial_lr") if key in group and factor is not None}
            group.update({**changed, **rates})
    for state in checkpoint["lr_schedulers"]:
        for key in ("base_lrs", "_last_lr"):
            if key in state and factor is not None:
                state[key] = [rate * factor for rate in state[key]]


def apply_schedule(checkpoint: dict[str, Any], before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Put changed options of the schedule into its state, in place.

    Args:
        checkpoint: with the state of the schedule.
        before: its options so far.
        now: those that shall apply.

    Raises:
        LaresError: if the schedule does not keep an option under its own name.
    """
    for key, value in now.items():
        if key in before and before[key] != value:
            for state in checkpoint["lr_schedulers"]:
                if key not in state:
                    raise LaresError(
                        f"model.scheduler.{key}: this schedule can't change it in a resumed run. Resume it with {before[key]}, "
                        f"or {_ANEW}"
                    )
                state[key] = value
