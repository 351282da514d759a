"""How a report finds runs and groups those that differ only in their seed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lares_pl import (
    LaresError,
)
from lares_pl.report.sources import find_sources, group_by_seed, why_apart
from tests.console import QUICK, SMALL, lares


def test_runs_that_differ_only_in_their_seed_form_a_group(runs: Path) -> None:
    sources, remarks = find_sources([str(runs / f"seed{seed}") for seed in (1, 2, 3)])
    assert remarks == []
    groups = group_by_seed(sources)
    assert [(group.label, len(group.sources)) for group in groups] == [("spt (3 seeds)", 3), ("rpt", 1)]
    assert sorted(source.seed or 0 for source in groups[0].sources) == [1, 2, 3]


def test_another_configuration_or_the_same_seed_is_another_group(runs: Path, tmp_path: Path, toy_dataset: Path) -> None:
    import shutil

    for name in ("again", "other"):
        shutil.copytree(runs / "seed2" / "spt", tmp_path / name / "spt")
    record = tmp_path / "other" / "spt" / "config.yaml"
    record.write_text(record.read_text().replace("seed_everything: 2", "seed_everything: 9").replace("budget: 2", "budget: 3"))
    paths = [str(runs / "seed1" / "spt"), str(runs / "seed2" / "spt"), str(tmp_path / "again"), str(tmp_path / "other")]
    groups = group_by_seed(find_sources(paths)[0])
    assert [[source.run for source in group.sources] for group in groups] == [["seed1", "seed2"], ["again"], ["other"]]
    assert len({group.label for group in groups}) == 3
    assert why_apart(groups) == [
        "again/spt is not grouped with seed1/spt as another seed of one configuration: that group already has seed 2.",
        "other/spt is not grouped with seed1/spt as another seed of one configuration: they differ in record.budget.",
    ]


@pytest.mark.slow
def test_a_resumed_run_is_a_seed_of_its_configuration(toy_dataset: Path, tmp_path: Path) -> None:
    """It records values of its checkpoint, in other words than were typed."""
    (tmp_path / "prepared").symlink_to(toy_dataset)
    line = ["fit", "--config", "spt.yaml", *QUICK[:4], *SMALL, "--trainer.logger", "false", "--test_after_fit", "false"]
    for seed in ("1", "2"):
        lares(tmp_path, *line, "--seed_everything", seed, "--run", seed, "--trainer.max_epochs", seed)
    lares(tmp_path, *line, "--run", "1", "--ckpt_path", "last", "--trainer.max_epochs", "2")
    sources, _ = find_sources([str(tmp_path / "runs" / seed) for seed in ("1", "2")])
    (group,) = group_by_seed(sources)
    assert [source.seed for source in group.sources] == [1, 2]


def test_runs_moved_aside_are_left_out_and_reported(runs: Path, tmp_path: Path) -> None:
    import shutil

    for name in ("spt", "spt.1"):
        shutil.copytree(runs / "seed1" / "spt", tmp_path / "run" / name)
    last = tmp_path / "run" / "spt" / "checkpoints"
    (last / "best.ckpt").rename(last / "last.ckpt")
    sources, remarks = find_sources([str(tmp_path / "run")])
    assert [source.path.name for source in sources] == ["last.ckpt"]
    assert any("moved aside" in remark for remark in remarks)
    assert any("no best.ckpt" in remark for remark in remarks)
    shutil.rmtree(tmp_path / "run" / "spt")
    for nothing in (tmp_path, tmp_path / "run", tmp_path / "missing"):
        with pytest.raises(LaresError, match="no run to report on"):
            find_sources([str(nothing)])
    assert [source.stage for source in find_sources([str(tmp_path / "run" / "spt.1")])[0]] == ["spt.1"]


def test_a_stage_without_a_checkpoint_is_left_out_and_reported(runs: Path, tmp_path: Path) -> None:
    import shutil

    run = tmp_path / "run"
    shutil.copytree(runs / "seed1" / "spt", run / "spt")
    (run / "rpt").mkdir()
    (run / "rpt" / "config.yaml").write_text("run: run")
    said = f"{run / 'rpt'} has no checkpoint and is left out."
    sources, remarks = find_sources([str(run)])
    assert [source.stage for source in sources] == ["spt"]
    assert remarks == [said]
    shutil.rmtree(run / "spt")
    for path in (run, run / "rpt"):
        with pytest.raises(LaresError, match=re.escape(said)):
            find_sources([str(path)])
