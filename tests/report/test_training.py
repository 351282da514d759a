"""Training curves, and the steps that stopping rules save."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from lares_pl.report import stopping
from lares_pl.report.training import read_log, smoothed


def test_a_negligible_saving_is_not_reported() -> None:
    curve = pd.DataFrame(
        [("fixed depth", np.nan, 4.0, 0.1), ("ResidualStop", 0.1, 3.99, 0.1), ("DivergenceStop", 0.1, 2.0, 0.1)],
        columns=["rule", "threshold", "mean steps", "NDCG@10"],
    )
    curve.insert(0, "model", "spt")
    curve["share kept"], curve["steps saved"] = 1.0, 1 - curve["mean steps"] / 4
    group: Any = SimpleNamespace(label="spt", depth=4)
    said = stopping._verdict(group, curve)
    assert "fixed depth: none with fewer steps; ResidualStop: none with fewer steps; DivergenceStop: 2.00" in said
    assert "50% fewer steps" in said
    assert stopping._shown(curve.assign(**{"steps saved": -1e-9}))["steps saved"].tolist() == ["0.0%"] * 3


def test_logs_of_a_resumed_run_are_joined(tmp_path: Path) -> None:
    for version, steps in ((2, [0, 1, 2, 3]), (10, [2, 3, 4])):
        folder = tmp_path / "metrics" / f"version_{version}"
        folder.mkdir(parents=True)
        pd.DataFrame({"step": steps, "train/loss": [version] * len(steps)}).to_csv(folder / "metrics.csv", index=False)
    log = read_log(tmp_path)
    assert log is not None
    assert log["step"].tolist() == [0, 1, 2, 3, 4]
    assert log["train/loss"].tolist() == [2, 2, 10, 10, 10]
    assert read_log(tmp_path / "nothing") is None


def test_a_later_test_does_not_remove_curves(tmp_path: Path) -> None:
    losses, scores = [2.0, 1.5, None], [None, None, 0.3]
    trained = pd.DataFrame({"step": [0, 1, 1], "train/loss": losses, "val/ndcg@10": scores})
    tested = pd.DataFrame({"step": [0], "test/ndcg@10": [0.2]})
    later = pd.DataFrame({"step": [2], "train/loss": [1.0]})
    for version, part in enumerate((trained, tested, later, tested)):
        folder = tmp_path / "metrics" / f"version_{version}"
        folder.mkdir(parents=True)
        part.to_csv(folder / "metrics.csv", index=False)
    log = read_log(tmp_path)
    assert log is not None
    assert log["train/loss"].dropna().tolist() == [2.0, 1.5, 1.0]
    assert log["val/ndcg@10"].dropna().tolist() == [0.3]


def test_smoothing_keeps_straight_lines_and_reduces_noise() -> None:
    line = np.linspace(0, 5, 400)
    assert smoothed(line) == pytest.approx(line)
    noise = np.random.default_rng(0).normal(size=400)
    assert smoothed(noise).std() < 0.6 * noise.std()
