"""The study: cells are trained once, and the page says what the record says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning as L
import pytest

import study_grid
import study_runs
import study_tables
from lares_pl import SequenceDataModule, load_stage
from study_runs import results, run_grid
from tests.conftest import ROOT

TOY = ("--data.max_length", "8", "--model.backbone.hidden_size", "16")


def line(model: str, dataset: str, seed: int, value: float, depth: int) -> dict[str, Any]:
    depths = study_runs.DEPTHS if depth else (0,)
    metrics = {
        protocol: {str(d): {"ndcg@10": value * factor * (1 + d / 100), "recall@10": value} for d in depths}
        for protocol, factor in zip(study_runs.PROTOCOLS, (1.0, 2.0), strict=True)
    }
    return {
        "dataset": dataset, "model": model, "seed": seed, "epochs": 1, "cpu_seconds": {"model": 100.0 * (1 + depth)},
        "parameters": 9, "parameters_without_items": 5, "depth": depth, "val": metrics, "test": metrics,
        **({"test_averaged": metrics} if depth else {}),
    }  # fmt: skip


@pytest.fixture
def record(tmp_path: Path) -> Path:
    """Three seeds of two models on Beauty, and one cell on Sports."""
    base = {1: 0.040, 2: 0.041, 3: 0.042}
    lines = [line("sasrec", "beauty", seed, value, 0) for seed, value in base.items()]
    lines += [line("recipe", "beauty", seed, value * 1.1 + 0.0001 * seed, 4) for seed, value in base.items()]
    lines += [line("sasrec", "sports", 1, 0.02, 0)]
    path = tmp_path / "study.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    return path


def test_tables_say_what_the_record_says(record: Path) -> None:
    lines = results(record)
    quality = study_tables.quality(lines)
    assert "| SASRec, 2 layers | 0.0410 ± 0.0010 | 0.0200 (one seed) |" in quality
    (recipe, *_) = [row for row in quality.splitlines() if row.startswith("| recipe")]
    # at its depth of 4: 1.04 * (0.0451 + 0.0002)
    assert recipe.startswith("| recipe (spt.yaml) | 0.0471 ± 0.0012, +14.9% (p ")
    assert recipe.endswith("| not run |")
    gains = "+3.0% (p 0.0002) | +3.8% (p 0.0002)"  # t = sqrt(3) * 0.0453 / 0.0010, as the steps differ by a factor
    for read in ("last step", "mean score of all steps"):
        expected = f"beauty | {read} | 0.0906 | 0.0915 | 0.0924 | 0.0942 | 0.0978 | 0.1051 | {gains} |"
        assert expected in study_tables.by_depth(lines)
    assert "500 (5.00 x)" in study_tables.cost(lines)
    assert "| SASRec, 2 layers | 5 | 0.0410 / 0.0820 | 0.0200 / 0.0400 |" in study_tables.front_page(lines)


def test_only_the_marked_part_of_a_page_is_replaced(record: Path, tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    for page in (docs / "results.md", tmp_path / "README.md"):
        page.write_text(f"before\n{study_tables.START}\nold\n{study_tables.END}\nafter\n")
    study_tables.write_results(record, docs)
    text = (docs / "results.md").read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "0.0410 ± 0.0010" in text
    assert (docs / "assets" / "depth.svg").stat().st_size > 1000
    (docs / "results.md").write_text("no marks")
    with pytest.raises(SystemExit, match="expected the lines"):
        study_tables.write_results(record, docs)


def test_the_pages_say_what_the_committed_record_says(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    pages = ("docs/results.md", "README.md")
    for page in pages:
        (tmp_path / page).write_text((ROOT / page).read_text())
    study_tables.write_results(ROOT / "docs" / "study.jsonl", tmp_path / "docs")
    assert [(tmp_path / page).read_text() for page in pages] == [(ROOT / page).read_text() for page in pages]


@pytest.mark.slow
def test_a_cell_is_trained_once_and_its_line_is_what_a_test_gives(
    toy_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = dict(zip(TOY[::2], TOY[1::2], strict=True))
    of_grid = study_grid.Stage("model", ("spt.yaml",), options)
    monkeypatch.setitem(study_grid.MODELS, "toy", study_grid.Model("toy", "toy", (of_grid,), {"dataset": 1}))
    record = tmp_path / "study.jsonl"
    for _ in range(2):
        run_grid(record, tmp_path / "runs", toy_dataset.parent, ["dataset"], ["toy"], [1], "cpu")
    (found,) = results(record)
    assert found["cpu_seconds"]["model"] > 0
    assert found["epochs"] == 1
    assert json.loads((tmp_path / "runs/dataset/1/runs/toy/model/finished.json").read_text())["epochs"] == 1
    checkpoint = tmp_path / "runs" / "dataset" / "1" / "runs" / "toy" / "model" / "checkpoints" / "best.ckpt"
    trainer = L.Trainer(accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, enable_model_summary=False)
    stage = load_stage(checkpoint)
    for split, stage.evaluation_depth, stage.average_steps in (("test", 4, False), ("test_averaged", 8, True)):
        (tested,) = trainer.test(stage, SequenceDataModule(str(toy_dataset), max_length=8), verbose=False)
        of_depth = {protocol: found[split][protocol][str(stage.evaluation_depth)] for protocol in study_runs.PROTOCOLS}
        assert of_depth["ranked"]["ndcg@10"] == pytest.approx(tested["test/ndcg@10"], rel=1e-5)
        assert of_depth["left out"]["recall@10"] == pytest.approx(tested["test/unseen/recall@10"], rel=1e-5)
