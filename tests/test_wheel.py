"""A built wheel in a fresh virtual environment, outside the checkout."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.console import QUICK, SMALL, clean_environment, lares_of

pytestmark = pytest.mark.slow


def test_both_stages_run_from_a_wheel(interactions: Path, tmp_path: Path) -> None:
    def run(*command: str) -> None:
        done = subprocess.run(command, capture_output=True, text=True, env=clean_environment(), check=False, timeout=550)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]

    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path / "dist"), str(ROOT))
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    run(sys.executable, "-m", "venv", str(tmp_path / "venv"))
    python = str(tmp_path / "venv" / "bin" / "python")
    run(python, "-m", "pip", "install", "-q", "--no-compile", "-c", str(ROOT / "constraints.txt"), str(wheel))

    folder = tmp_path / "elsewhere"
    folder.mkdir()
    lares_of(python, folder, "prepare", str(interactions))
    lares_of(python, folder, "fit", "--config", "spt.yaml", *QUICK, *SMALL)
    quick = ["--model.pruning.passes", "1", "--data.batch_size", "16"]
    done = lares_of(python, folder, "fit", "--config", "rpt.yaml", *QUICK, *quick)
    assert "before and after RPT" in done.stdout
    best = "runs/default/rpt/checkpoints/best.ckpt"
    lares_of(python, folder, "predict", "--ckpt_path", best)
    assert (folder / "predictions.parquet").is_file()
