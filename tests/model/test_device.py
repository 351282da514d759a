"""Resolving device names."""

from __future__ import annotations

import pytest
import torch

from lares_pl import LaresError
from lares_pl.model.device import resolve_device


@pytest.mark.parametrize("gpu", [False, True])
def test_auto_is_the_gpu_if_there_is_one(gpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpu)
    monkeypatch.setattr("torch.zeros", lambda *shape, device: torch.ones(1))
    assert resolve_device("auto") == torch.device("cuda" if gpu else "cpu")


def test_named_devices_are_used() -> None:
    assert resolve_device("cpu") == resolve_device(torch.device("cpu")) == torch.device("cpu")


@pytest.mark.parametrize("name", ["nonsense", "", "cuda:99", "meta", "hpu"])
def test_a_missing_device_is_refused(name: str) -> None:
    with pytest.raises(LaresError, match=f"--device {name}: .*Choose auto, cpu"):
        resolve_device(name)
