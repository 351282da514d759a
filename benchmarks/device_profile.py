"""What a card does while the host runs some code: kernels, what launches them, and the share of time in which it is busy."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch.profiler import ProfilerActivity, profile

LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx", "cudaGraphLaunch")


@dataclass(frozen=True)
class DeviceFigures:
    """Of one run.

    Args:
        kernels: that the card ran.
        launches: by the host, a CUDA graph being one.
        copies: between host and device, and within the device.
        busy_s: time in which at least one kernel or copy ran.
    """

    kernels: int
    launches: int
    copies: int
    busy_s: float


def device_figures(run: Callable[[], object]) -> DeviceFigures:
    """Profile some code on a CUDA machine."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
        run()
        torch.cuda.synchronize()
    return figures_of(profiled)


def figures_of(profiled: profile) -> DeviceFigures:
    """What a profile of CPU and CUDA says."""
    events = profiled.events()
    # ranges that host code has named stand beside the kernels that ran in them
    on_device = [event for event in events if event.device_type.name == "CUDA" and not event.is_user_annotation]
    copies = [event for event in on_device if event.name.startswith(("Memcpy", "Memset"))]
    spans = [(event.time_range.start, event.time_range.end) for event in on_device]
    launches = sum(event.name in LAUNCHES for event in events)
    return DeviceFigures(len(on_device) - len(copies), launches, len(copies), union(spans) / 1e6)


def machine(device: str) -> str:
    """What figures of a benchmark were measured on.

    Args:
        device: cpu or cuda.
    """
    name = torch.cuda.get_device_name() if device == "cuda" else f"{platform.machine()}, one thread"
    return f"{name}, torch {torch.__version__}, Python {platform.python_version()}"


def union(spans: list[tuple[float, float]]) -> float:
    """Length of what some intervals cover together."""
    covered, end = 0.0, float("-inf")
    for start, stop in sorted(spans):
        covered += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return covered


def row(run: Callable[[], object], seconds: float) -> dict[str, float]:
    """The figures for a table; the share of time is of a run without profiler, which took so many seconds."""
    figures = device_figures(run)
    return {**asdict(figures), "busy_share": figures.busy_s / seconds}
