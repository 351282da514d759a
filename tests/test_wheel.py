"""A built wheel in a fresh virtual environment, outside the checkout, beside what it says it depends on and nothing else."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.conftest import ROOT
from tests.console import QUICK, SMALL, clean_environment, lares_of

pytestmark = pytest.mark.slow


def add_required(of: Distribution, extras: frozenset[str], found: dict[tuple[str, frozenset[str]], Distribution]) -> None:
    """Find all distributions of this environment that one requires, directly or not."""
    for requirement in map(Requirement, of.requires or []):
        marker, key = requirement.marker, (canonicalize_name(requirement.name), frozenset(requirement.extras))
        needed = marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras))
        if needed and key not in found:
            found[key] = distribution(requirement.name)
            add_required(found[key], key[1], found)


def test_both_stages_run_from_a_wheel(interactions: Path, tmp_path: Path) -> None:
    def run(*command: str | Path) -> None:
        done = subprocess.run(command, capture_output=True, text=True, env=clean_environment(), check=False, timeout=550)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]

    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path / "dist", ROOT)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-compile", wheel)

    # links to what is installed here: pip would need a minute for it
    here, there = (Path(sysconfig.get_path("purelib", vars={"base": base})) for base in (sys.prefix, str(tmp_path / "venv")))
    (own,) = Distribution.discover(name="lares-pl", path=[str(there)])
    found: dict[tuple[str, frozenset[str]], Distribution] = {}
    add_required(own, frozenset(), found)
    for top in {path.parts[0] for each in found.values() for path in each.files or []} - {"..", "__pycache__"}:
        (there / top).symlink_to(here / top)

    folder = tmp_path / "elsewhere"
    folder.mkdir()
    quick = ["--model.pruning.passes", "1", "--data.batch_size", "16"]
    run(python.with_name("lares"), "prepare", interactions, "--output", folder / "prepared")
    done = lares_of(
        python,
        folder,
        ["fit", "--config", "spt.yaml", *QUICK, *SMALL],
        ["fit", "--config", "rpt.yaml", *QUICK, *quick],
        ["predict", "--ckpt_path", "runs/default/rpt/checkpoints/best.ckpt"],
    )
    assert "before and after RPT" in done.stdout
    assert (folder / "predictions.parquet").is_file()
