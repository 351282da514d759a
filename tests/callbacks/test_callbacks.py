"""Progress for terminals and for log files, and when W&B is online."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlparse

import pytest
import wandb

from lares_pl.callbacks.progress import Progress, clock, total_batches
from lares_pl.callbacks.tracking import Wandb, has_account
from tests.training import data, released_spt, trainer


def run(dataset: Path, folder: Path) -> None:
    fit = trainer(folder, callbacks=[Progress(every=0.0)], enable_progress_bar=True, max_epochs=2)
    fit.fit(released_spt(), data(dataset))


def test_plain_lines_in_a_log_file(toy_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(toy_dataset, tmp_path)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("SPT epoch")]
    assert len(lines) == 12  # five batches and a validation, twice
    for part in ("batch 10/10", "loss ", "depth ", "ndcg@10 ", "left at most 00:00"):
        assert part in lines[-1]
    assert "\r" not in "".join(lines)


def test_a_bar_on_a_terminal(
    toy_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    run(toy_dataset, tmp_path)
    shown = capsys.readouterr().err
    assert "10/10" in shown
    for part in ("loss=", "depth=", "ndcg@10="):
        assert part in shown
    assert "SPT epoch" not in shown


@pytest.mark.parametrize(
    ("epochs", "steps", "batches", "expected"),
    [(3, -1, 5, 15), (-1, 7, 5, 14), (3, 2, 5, 4), (-1, -1, 5, None), (None, 4, float("inf"), 8)],
)
def test_total_batches(epochs: int | None, steps: int, batches: Any, expected: int | None) -> None:
    fake: Any = SimpleNamespace(
        max_epochs=epochs, max_steps=steps, num_training_batches=batches, accumulate_grad_batches=2 if steps > 0 else 1
    )
    assert total_batches(fake) == expected


def test_clock() -> None:
    assert clock(59) == "00:59"
    assert clock(3723) == "1:02:03"


def test_wandb_is_online_with_a_key_or_a_login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert not has_account()
    assert Wandb(save_dir=str(tmp_path))._offline
    (tmp_path / "netrc").write_text(f"machine {urlparse(wandb.Settings().base_url).netloc} login user password secret\n")
    assert has_account()
    assert not Wandb(save_dir=str(tmp_path))._offline
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert Wandb(save_dir=str(tmp_path))._offline
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert not has_account()
    monkeypatch.setenv("WANDB_API_KEY", "k")
    assert has_account()
