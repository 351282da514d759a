"""How a stage makes its optimiser: all parameters in one kernel where the optimiser can."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch.optim import Optimizer

from lares_pl.errors import LaresError
from lares_pl.serialization import class_of

OptimizerFactory = Callable[[Iterable[torch.nn.Parameter]], Optimizer]


def _of_one_number(factory: OptimizerFactory) -> Optimizer:
    return factory([torch.nn.Parameter(torch.zeros(1))])


def check_factories(optimizer: OptimizerFactory, scheduler: Callable[[Optimizer], Any] | None) -> None:
    """Check the options of an optimiser and its schedule before anything is built or written.

    Raises:
        LaresError: if they can't be made, even for one number.
    """
    option = "optimizer"
    try:
        made = _of_one_number(optimizer)
        option = "scheduler"
        if scheduler is not None:
            scheduler(made)
    except (TypeError, ValueError) as error:
        raise LaresError(f"model.{option}: {error}") from error


def options_of(factory: OptimizerFactory) -> dict[str, Any]:
    """Return the options that an optimiser gives its parameters, with its defaults."""
    (group,) = _of_one_number(factory).param_groups
    return {key: value for key, value in group.items() if key != "params"}


def fused(factory: OptimizerFactory) -> OptimizerFactory:
    """The same optimiser with `fused=True`, if its class has that option and none of its options say how it computes.

    PyTorch's own default updates parameter by parameter on a CPU, which takes Adam three times as long.
    """
    made_by: Callable[..., Any] = class_of(factory)
    if "fused" not in inspect.signature(made_by).parameters:
        return factory
    chosen = options_of(factory)
    is_chosen = chosen["fused"] is not None or chosen.get("foreach") is not None
    if is_chosen or chosen.get("capturable") or chosen.get("differentiable"):
        return factory
    make: Callable[..., Optimizer] = factory
    return partial(make, fused=True)
