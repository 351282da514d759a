"""Options of what evaluation spends on a history: depth, stopping rule, and what it averages."""

from __future__ import annotations

from typing import Any

from jsonargparse import Namespace
from jsonargparse.typing import NonNegativeInt, PositiveInt
from lightning.pytorch.cli import LightningArgumentParser

from lares_pl.model.reasoning import StopRule
from lares_pl.serialization import to_plain
from lares_pl.stages.base import BaseStage


def add_reasoning_options(parser: LightningArgumentParser) -> None:
    """Add them to a command."""
    parser.add_argument("--depth", type=NonNegativeInt | None, help="Depth of evaluation; default: the model's mean depth.")
    parser.add_argument(
        "--stop", type=StopRule | None, help="Stops reasoning about a history before that depth (lares_pl.ResidualStop)."
    )
    parser.add_argument(
        "--trajectories",
        type=PositiveInt,
        default=1,
        help="Trajectories whose scores evaluation averages, for models that start from noise.",
    )
    parser.add_argument(
        "--average_steps",
        type=bool,
        default=False,
        help="Evaluation averages the scores of all steps, which suits more steps than the mean depth.",
    )


def set_reasoning(stage: BaseStage, config: Namespace, stop: StopRule | None) -> None:
    """Evaluate a stage as these options say.

    Args:
        stage: the stage.
        config: the command's configuration.
        stop: the rule of `config.stop`.

    Raises:
        LaresError: if the stage can't be evaluated so.
    """
    if config.depth is not None:
        stage.evaluation_depth = config.depth
    stage.stop, stage.trajectories, stage.average_steps = stop, config.trajectories, config.average_steps
    stage.reasoning.check(stage.backbone_config)


def reasoning_of(stage: BaseStage) -> dict[str, Any]:
    """What a report of its metrics says about it."""
    return {
        "depth": stage.evaluation_depth,
        "stop": to_plain(stage.stop),
        "trajectories": stage.trajectories,
        "average_steps": stage.average_steps,
    }
