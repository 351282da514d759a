"""Devices: by name, and how values get there."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from lares_pl.errors import LaresError


def resolve_device(name: str | torch.device) -> torch.device:
    """Resolve a device name; `auto` is the GPU if there is one, else the CPU.

    Raises:
        LaresError: if the device does not exist or cannot compute.
    """
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
        torch.zeros(1, device=device).item()  # `meta` holds tensors without values
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise LaresError(f"--device {name}: {reason}. Choose auto, cpu or, with a GPU, cuda") from error
    return device


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Operations in the precision of their operands, also where a model is run in mixed precision."""
    available = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if available else nullcontext()


def on_device(values: Tensor, device: torch.device) -> Tensor:
    """The same values on a device, without waiting for it; for values that are made on the host in each update."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)


def on_its_way(value: Tensor) -> Callable[[], float]:
    """What gives a scalar's value, whose copy to the host begins now; asked for later, it has long been there."""
    if value.device.type != "cuda":
        return lambda: float(value)
    copy = torch.empty((), dtype=value.dtype, pin_memory=True).copy_(value, non_blocking=True)
    event = torch.cuda.Event()
    event.record()

    def arrived() -> float:
        event.synchronize()
        return float(copy)

    return arrived
