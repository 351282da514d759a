"""Chaining of the stages: which checkpoint a `fit` resumes or starts from, and which settings it takes from it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from jsonargparse import Namespace, dict_to_namespace
from lightning.pytorch.utilities import rank_zero_info

from lares_pl.errors import LaresError
from lares_pl.model.architecture import BackboneConfig
from lares_pl.parsing import from_plain
from lares_pl.runs import BEST, RUNS, StageFolder
from lares_pl.serialization import import_class, to_plain
from lares_pl.stages.checkpoint import StageCheckpoint, read_checkpoint
from lares_pl.stages.rpt import RPT


def resolve_checkpoint(config: Namespace, folder: StageFolder) -> dict[str, Any] | None:
    """Resolve `ckpt_path`: `last` is the last checkpoint of this run; `auto` is `last` if it exists, else a new run.

    Processes start at different times, and each decides by itself: nothing they look at changes before all of them have
    started. (A new run moves the old folder aside only if there was no checkpoint in it at this point.)

    Args:
        config: of `fit`; its `ckpt_path` becomes a path, or None.
        folder: of the stage.

    Returns:
        With `auto`, the record of a finished training; None if there is training to do.
    """
    asked = config.get("ckpt_path")
    if asked not in ("auto", "last"):
        return None
    there = folder.last.is_file()
    config.ckpt_path = str(folder.last) if there or asked == "last" else None
    if asked == "last" or not there:
        return None
    config.model.init_args["init_from"] = None  # it applied to the first start of the run
    finished = folder.finished()
    if finished is not None and (finished["tested"] or not config.test_after_fit):
        rank_zero_info(
            f"{folder.path} is finished ({finished['updates']:,} updates, {finished['epochs']:,} epochs): "
            "nothing to do. Choose another --run to start over; to continue training, raise the budget and set --ckpt_path last"
        )
        sys.exit(0)
    return finished


def join_stages(config: Namespace, folder: StageFolder) -> StageCheckpoint | None:
    """Apply `ckpt_path`, which resumes this stage, or `init_from`, which starts from weights; RPT takes its settings from SPT.

    Args:
        config: of `fit`; set to the dataset, history length and architecture of the checkpoint that the run starts from.
        folder: of the stage.

    Returns:
        The checkpoint to resume; None for a new run.

    Raises:
        LaresError: if the checkpoint does not exist, or is of another stage than requested.
    """
    arguments = config.model.init_args
    name = config.model.class_path.rsplit(".", 1)[-1]
    if config.get("ckpt_path") is not None:
        if arguments.get("init_from") is not None:
            raise LaresError(
                "--ckpt_path and --model.init_from exclude each other: --ckpt_path resumes an interrupted run where it "
                "stopped, --model.init_from starts a new run from the weights of another. Give only one of them."
            )
        checkpoint = read_checkpoint(config.ckpt_path)
        if checkpoint.stage_name != name:
            raise LaresError(
                f"--ckpt_path {config.ckpt_path} is a checkpoint of {checkpoint.stage_name} and resumes only a run of "
                f"{checkpoint.stage_name}; to start {name} from its weights use --model.init_from {config.ckpt_path}"
            )
        if not checkpoint.resumable:
            raise LaresError(
                f"--ckpt_path {config.ckpt_path} contains only weights, no run to resume; to start from its weights use "
                f"--model.init_from {config.ckpt_path}"
            )
        _check_options(config, checkpoint)
        arguments["backbone"] = dict_to_namespace(checkpoint.settings["backbone"])
        for key, value in checkpoint.data.items():
            config.data[key] = value
        if checkpoint.seed is not None:
            config.seed_everything = checkpoint.seed
        rank_zero_info(f"resuming {config.ckpt_path}: architecture, dataset, history length and seed are the checkpoint's")
        return checkpoint
    is_rpt = issubclass(import_class(config.model.class_path), RPT)
    if is_rpt and arguments.get("backbone") is not None:
        raise LaresError(
            "RPT takes its architecture from the SPT checkpoint; leave model.backbone out. (Configs that choose a block "
            "belong to the first stage: lares fit --config spt.yaml --config fmlp.yaml, then lares fit --config rpt.yaml.)"
        )
    source = arguments.get("init_from") or ("spt" if is_rpt else None)
    if source is None:
        return None
    named = is_stage_name(source)
    if named:
        arguments["init_from"] = str(RUNS / config.run / source / BEST)
        if not Path(arguments["init_from"]).is_file():
            raise LaresError(
                f"{name} starts from the stage {source} of the same run, and there is none at "
                f"{arguments['init_from']}: train it first (lares fit --config {source}.yaml --run {config.run}), "
                "or give a checkpoint with --model.init_from"
            )
        source = arguments["init_from"]
    if folder.contains(source):
        raise LaresError(
            f"--model.init_from {source} is a checkpoint of this same run ({folder.path}): to resume it use "
            f"--ckpt_path {source}; to start over from its weights choose another --run or --stage"
        )
    checkpoint = read_checkpoint(source)
    if named and not is_rpt:
        asked, *same = map(_parsed, (arguments["backbone"], BackboneConfig(), checkpoint.settings["backbone"]))
        if asked not in same:
            raise LaresError(
                f"{name} continues the model of {source}, architecture included; leave out model.backbone (and configs "
                "that choose a block), or start from its weights only with --model.init_from FILE"
            )
    arguments["init_from"] = str(Path(source).absolute())
    if named or ("backbone" in arguments and arguments["backbone"] is None):
        arguments["backbone"] = dict_to_namespace(checkpoint.settings["backbone"])
    take_data(config, checkpoint)
    return None


def _check_options(config: Namespace, checkpoint: StageCheckpoint) -> None:
    """Refuse options of the command line that a resumed run could not apply; configs say what holds without a checkpoint."""
    given = [word.split("=")[0] for word in sys.argv[2:] if word.startswith("--")]
    plain = (config.model.init_args.get("backbone"), checkpoint.settings["backbone"])
    differ = {
        "--model.backbone": plain[0] is not None and len({repr(_parsed(way)) for way in plain}) > 1,
        "--data.dataset": _resolved(config.data.dataset) != _resolved(checkpoint.data.get("dataset")),
        "--data.max_length": config.data.max_length != checkpoint.data.get("max_length"),
        "--seed_everything": checkpoint.seed not in (None, config.seed_everything),
    }
    for option, differs in differ.items():
        named = [word for word in given if word == option or word.startswith(f"{option}.")]
        if named and differs:
            raise LaresError(
                f"{named[0]} can't change when a run is resumed: {config.ckpt_path} was trained otherwise. Leave it out, or "
                "start a new run (from the weights of this one with --model.init_from)"
            )


def _parsed(backbone: Any) -> Any:
    """An architecture with all defaults filled in, so that two ways of writing it compare equal."""
    return to_plain(from_plain(BackboneConfig, to_plain(backbone), "backbone"))


def _resolved(path: str | None) -> Path | None:
    return None if path is None else Path(path).resolve()


def is_stage_name(text: str | None) -> bool:
    """Whether this is the name of a stage of a run, such as `spt`, not a file."""
    return text is not None and "/" not in text and "." not in text


def take_data(config: Namespace, checkpoint: StageCheckpoint) -> None:
    """Take dataset and history length from a checkpoint if the configuration sets none."""
    for key, value in checkpoint.data.items():
        if config.data.get(key) is None:
            config.data[key] = value
