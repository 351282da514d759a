"""`lares report`: what is measured, and the page that a person reads."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import lightning as L
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from lightning.pytorch.loggers import CSVLogger

from lares_pl import (
    RPT,
    SPT,
    BackboneConfig,
    ConstantDepth,
    CosineSimilarity,
    DotSimilarity,
    FMLPBlock,
    LaresError,
    Pruning,
    SequenceDataset,
    TedRecEmbedder,
    load_stage,
    prepare,
)
from lares_pl.model.catalogue_head import CatalogueHead
from lares_pl.model.recurrence import KeyedNoise
from lares_pl.report import command, distributions, stopping, study
from lares_pl.report.charts import Panel, Series, draw
from lares_pl.report.command import report
from lares_pl.report.distributions import movement, residuals
from lares_pl.report.html import render
from lares_pl.report.latency import summarise, time_inference
from lares_pl.report.measure import Measured, batches, measure
from lares_pl.report.page import Chart, Section, Table, short
from lares_pl.report.sources import find_sources, group_by_seed, why_apart
from lares_pl.report.study import GroupFindings, population, usual_depths
from lares_pl.report.training import read_log, smoothed
from tests.training import FAST, SMALL, data, trainer

EVIL = "<img src=x onerror=alert(1)>"


def train(folder: Path, stage: Any, dataset: Path, seed: int, **options: Any) -> Path:
    """A stage's folder as `lares fit` leaves it, a short run."""
    L.seed_everything(seed)
    logger = CSVLogger(save_dir=str(folder), name="metrics")
    fit = trainer(folder, logger=logger, **{"max_epochs": 2, **options})
    fit.fit(stage, data(dataset))
    fit.save_checkpoint(folder / "checkpoints" / "best.ckpt")
    (folder / "config.yaml").write_text(yaml.safe_dump({"seed_everything": seed, "run": folder.parent.name, "budget": 2}))
    return folder


@pytest.fixture(scope="module")
def runs(toy_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seeds of SPT, RPT from the first, and a model without recurrence."""
    folder = tmp_path_factory.mktemp("report") / "runs"
    for seed in (1, 2, 3):
        train(folder / f"seed{seed}" / "spt", SPT(SMALL, optimizer=FAST), toy_dataset, seed)
    spt = folder / "seed1" / "spt" / "checkpoints" / "best.ckpt"
    rpt = RPT(str(spt), group_size=2, optimizer=FAST, pruning=Pruning(2, 20))
    train(folder / "seed1" / "rpt", rpt, toy_dataset, 1, max_epochs=1)
    flat = BackboneConfig(hidden_size=16, pre_layers=1, core_layers=0, depth=ConstantDepth(0))
    train(folder / EVIL / "sasrec", SPT(flat, alpha=0, gamma=0, optimizer=FAST), toy_dataset, 1)
    return folder


@pytest.fixture(scope="module")
def written(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report on all of them."""
    folder = tmp_path_factory.mktemp("written") / "report"
    names = [str(runs / f"seed{seed}") for seed in (1, 2, 3)] + [str(runs / EVIL)]
    title = "<script>alert(1)</script> & $x^2$"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "time_inference", partial(time_inference, budget=0.02))
        report(names, str(folder), bootstrap=200, depths="1,4,6", title=title, device="cpu")
    return folder


# ---------------------------------------------------------------- what is measured


def with_text(folder: Path) -> Path:
    """A prepared dataset with text vectors."""
    generator = np.random.default_rng(0)
    lines = [f"u{user} " + " ".join(map(str, generator.permutation(12)[:6])) for user in range(9)]
    (folder / "x.txt").write_text("\n".join(lines) + "\n")
    np.save(folder / "v.npy", generator.normal(size=(12, 5)).astype(np.float32))
    prepare(str(folder / "x.txt"), str(folder / "text"), item_text=str(folder / "v.npy"))
    return folder / "text"


@pytest.mark.parametrize("kind", ["spt", "rpt", "exclude_seen", "sasrec", "fmlp", "tedrec"])
def test_the_numbers_are_those_of_lares_test(kind: str, runs: Path, toy_dataset: Path, tmp_path: Path) -> None:
    dataset = with_text(tmp_path) if kind == "tedrec" else toy_dataset
    if kind in ("fmlp", "tedrec"):
        shape = {"hidden_size": 16, "pre_layers": 1, "core_layers": 1}
        config = (
            BackboneConfig(**shape, pre_block=FMLPBlock, core_block=FMLPBlock)  # type: ignore[arg-type]
            if kind == "fmlp"
            else BackboneConfig(**shape, embedder=TedRecEmbedder())  # type: ignore[arg-type]
        )
        place = train(tmp_path / kind, SPT(config, optimizer=FAST), dataset, 1, max_steps=2)
    else:
        place = runs / {"rpt": "seed1/rpt", "sasrec": f"{EVIL}/sasrec"}.get(kind, "seed2/spt")
    stage = load_stage(place / "checkpoints" / "best.ckpt")
    stage.exclude_seen = kind == "exclude_seen"
    for split in ("test", "val"):
        own = stage.evaluation_depth
        measured = measure(stage, str(dataset), split, 2 * own)
        assert list(measured.depths) == list(range(1, 2 * own + 1)) if own else list(measured.depths) == [0]
        for depth in [own, 1, 2 * own] if own else [0]:
            stage.evaluation_depth = depth
            run = trainer(tmp_path).test if split == "test" else trainer(tmp_path).validate
            expected = run(stage, data(dataset, eval_batch_size=1024), verbose=False)[0]
            found = {f"{split}/{name}": value for name, value in measured.metrics(depth).items()}
            assert found == (expected if depth == own else pytest.approx(expected, abs=1e-3))
        stage.evaluation_depth = own


def test_what_the_steps_do_is_what_the_states_say(runs: Path, toy_dataset: Path) -> None:
    stage = load_stage(runs / "seed1" / "spt" / "checkpoints" / "best.ckpt")
    measured = measure(stage, str(toy_dataset), "test", 6, batch_size=1024)
    ((batch, _),) = batches(stage, str(toy_dataset), "test", 1024)
    with torch.no_grad():
        (states,) = stage.backbone.rollout(batch.histories, [6], KeyedNoise(batch.histories))
    distance = (states[3] - states[2]).norm(dim=-1) / states[3].norm(dim=-1)
    assert measured.residual[:, 3] == pytest.approx(distance.numpy(), rel=1e-3)
    assert np.isnan(measured.residual[:, 0]).all()
    logits = torch.stack([stage.backbone.head().scores(of_step) for of_step in states])
    ranks = (logits[..., 1:] >= logits.gather(2, batch.targets.expand(6, -1)[..., None])).sum(-1)
    assert (np.abs(measured.ranks - ranks.T.numpy()) <= 1).all()
    by_parts = measure(stage, str(toy_dataset), "test", 6, batch_size=7)
    assert by_parts.kl == pytest.approx(measured.kl, rel=1e-2, abs=1e-9, nan_ok=True)
    assert (np.abs(by_parts.ranks - measured.ranks) <= 1).all()


@pytest.mark.parametrize("similarity", [DotSimilarity(), CosineSimilarity(0.2)])
def test_entropy_and_kl_are_those_of_the_softmax(similarity: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    states, items = torch.randn(4, 9, 8), torch.randn(31, 8)
    monkeypatch.setattr(distributions, "CHUNK", 256)  # two users at a time
    found = movement(states, CatalogueHead(items, similarity))
    left, right = similarity.transform(states.double(), items.double())
    log_p = (left @ right.T).log_softmax(-1)
    torch.testing.assert_close(found.entropy.double(), -(log_p.exp() * log_p).sum(-1), rtol=1e-5, atol=1e-6)
    kl = (log_p[1:].exp() * (log_p[1:] - log_p[:-1])).sum(-1)
    torch.testing.assert_close(found.kl[1:].double(), kl, rtol=1e-4, atol=1e-6)
    assert found.kl[0].isnan().all()


def test_a_small_kl_is_not_lost_in_rounding() -> None:
    torch.manual_seed(0)
    first, items = torch.randn(5, 8), 3 * torch.randn(500, 8)
    states = torch.stack([first, first + 1e-4 * torch.randn(5, 8)])
    log_p = (states.double() @ items.double().T).log_softmax(-1)
    kl = (log_p[1].exp() * (log_p[1] - log_p[0])).sum(-1)
    assert kl.max() < 1e-6  # what log-probabilities in float32 are good to
    torch.testing.assert_close(
        movement(states, CatalogueHead(items, DotSimilarity())).kl[1].double(), kl, rtol=0.02, atol=1e-12
    )


def test_nothing_of_users_times_catalogue_times_steps_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    states, items = torch.randn(16, 300, 4), torch.randn(2001, 4)
    monkeypatch.setattr(distributions, "CHUNK", 1 << 15)
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        size = 0

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = function(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                self.size = max(self.size, out.numel())
            return out

    with Largest() as largest:  # type: ignore[no-untyped-call]
        movement(states, CatalogueHead(items, DotSimilarity()))
    assert largest.size <= 1 << 15


def test_residuals_by_hand() -> None:
    states = torch.tensor([[[1.0, 0.0]], [[0.0, 2.0]], [[0.0, 2.0]]])
    distance, cosine = residuals(states)
    assert distance[1:, 0].tolist() == pytest.approx([5**0.5 / 2, 0])
    assert cosine[1:, 0].tolist() == pytest.approx([0, 1])
    assert distance[0].isnan().all()


def test_popularity_counts_what_trains(toy_dataset: Path) -> None:
    people = population(str(toy_dataset), "test")
    sequences = SequenceDataset.load(toy_dataset)
    counts = np.zeros(sequences.catalogue_size + 1, dtype=int)
    targets, lengths = [], []
    for start, end in zip(sequences.offsets, sequences.offsets[1:], strict=False):
        items = sequences.items[start:end]
        held = len(items) >= 3
        np.add.at(counts, items[: len(items) - 2 * held], 1)
        if held:
            targets.append(items[-1])
            lengths.append(len(items) - 1)
    assert people.popularity.tolist() == counts[targets].tolist()
    assert people.activity.tolist() == lengths


def test_models_of_other_lengths_or_catalogues_are_timed_by_themselves(runs: Path) -> None:
    stage = load_stage(runs / "seed1" / "spt" / "checkpoints" / "best.ckpt")
    keys = [study._architecture(stage, [1, 2])]
    for name in ("max_length", "items"):
        backbone = SimpleNamespace(max_length=stage.backbone.max_length, items=stage.backbone.items)
        setattr(backbone, name, getattr(backbone, name) + 1)
        other: Any = SimpleNamespace(
            backbone=backbone,
            backbone_config=stage.backbone_config,
            exclude_seen=stage.exclude_seen,
            evaluation_depth=stage.evaluation_depth,
        )
        keys.append(study._architecture(other, [1, 2]))
    assert len(set(keys)) == 3


def test_percentiles_need_batches_beyond_them() -> None:
    few = summarise([0.002] * 30, depth=4, batch_size=8)
    assert (few.p50, few.p95, few.per_second) == pytest.approx((2, 2, 4000))
    assert np.isnan(few.p99)
    many = summarise([0.001] * 99 + [0.1], depth=4, batch_size=1)
    assert many.p50 == pytest.approx(1)
    assert many.p99 > many.p95


def test_depths_reach_four_times_the_depth_of_evaluation() -> None:
    assert usual_depths(0) == [0]
    assert usual_depths(2) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert usual_depths(4) == [1, 2, 4, 8, 16]
    assert usual_depths(6) == [1, 2, 4, 6, 8, 12, 16, 24]


@pytest.mark.parametrize("seeds", [3, 5, 6, 7])
def test_equal_values_of_other_numbers_of_seeds_have_equal_means(seeds: int) -> None:
    ranks = np.arange(1, 101, dtype=np.int32)[:, None]
    nothing = np.zeros((100, 1))
    measured = Measured(np.zeros(1, dtype=np.int64), ranks, nothing, nothing, nothing, nothing)
    finding: Any = SimpleNamespace(measured=measured)
    one, several = (GroupFindings("a", [finding] * number, 0, [0], 8, False, 1, []) for number in (1, seeds))
    for metric in ("ndcg@10", "mrr"):
        assert np.array_equal(one.by_user(metric, [0]), several.by_user(metric, [0]))


# ---------------------------------------------------------------- which runs


def test_runs_that_differ_only_in_their_seed_are_a_group(runs: Path) -> None:
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
        "again/spt is not put together with seed1/spt as another seed of one configuration: seed 2 is there already.",
        "other/spt is not put together with seed1/spt as another seed of one configuration: they differ in record.budget.",
    ]


def test_what_was_moved_aside_is_left_out_and_said(runs: Path, tmp_path: Path) -> None:
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


def test_a_stage_without_a_checkpoint_is_left_out_and_said(runs: Path, tmp_path: Path) -> None:
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


# ---------------------------------------------------------------- stopping


def test_a_saving_of_nothing_is_none() -> None:
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


# ---------------------------------------------------------------- what training left


def test_logs_of_a_resumed_run_are_one(tmp_path: Path) -> None:
    for version, steps in ((2, [0, 1, 2, 3]), (10, [2, 3, 4])):
        folder = tmp_path / "metrics" / f"version_{version}"
        folder.mkdir(parents=True)
        pd.DataFrame({"step": steps, "train/loss": [version] * len(steps)}).to_csv(folder / "metrics.csv", index=False)
    log = read_log(tmp_path)
    assert log is not None
    assert log["step"].tolist() == [0, 1, 2, 3, 4]
    assert log["train/loss"].tolist() == [2, 2, 10, 10, 10]
    assert read_log(tmp_path / "nothing") is None


def test_a_test_of_its_own_takes_no_curve_away(tmp_path: Path) -> None:
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


def test_smoothing_keeps_lines_and_ends() -> None:
    line = np.linspace(0, 5, 400)
    assert smoothed(line) == pytest.approx(line)
    noise = np.random.default_rng(0).normal(size=400)
    assert smoothed(noise).std() < 0.6 * noise.std()


# ---------------------------------------------------------------- the folder


def test_the_folder_holds_page_charts_and_tables(written: Path) -> None:
    page = (written / "report.html").read_text()
    charts = sorted((written / "charts").glob("*.svg"))
    expected = {"quality-by-depth", "difference-by-depth", "latency", "quality-by-kind", "step-movement", "step-rank"}
    expected |= {"step-users-rank", "step-users-ndcg", "training", "reinforcement", "pruning", "seeds", "stopping"}
    assert {path.stem for path in charts} == expected
    for path in charts:
        assert ElementTree.parse(path).getroot().tag.endswith("svg")
        assert f'id="chart-{path.stem}"' in page
    tables = sorted((written / "tables").glob("*.csv"))
    assert {path.stem for path in tables} >= {"summary", "quality-by-depth", "latency", "steps", "tests", "seeds", "pruning"}
    for path in tables:
        assert f'id="table-{path.stem}"' in page
        parquet = pd.read_parquet(path.with_suffix(".parquet"))
        pd.testing.assert_frame_equal(
            pd.read_csv(path, keep_default_na=False), pd.read_csv(_csv(parquet), keep_default_na=False)
        )
    ids = [part.split('"', 1)[0] for part in page.split(' id="')[1:]]
    assert len(ids) == len(set(ids))
    assert "<script" not in page
    assert "<img" not in page
    assert "src=" not in page.replace(EVIL.replace("<", "&lt;").replace(">", "&gt;"), "")


def _csv(frame: pd.DataFrame) -> io.StringIO:
    return io.StringIO(frame.to_csv(index=False))


def test_tables_hold_what_was_measured(written: Path, runs: Path, toy_dataset: Path, tmp_path: Path) -> None:
    tables = {path.stem: pd.read_csv(path, float_precision="round_trip") for path in (written / "tables").glob("*.csv")}
    expected = []
    for seed in (1, 2, 3):
        stage = load_stage(runs / f"seed{seed}" / "spt" / "checkpoints" / "best.ckpt")
        expected.append(
            trainer(tmp_path).test(stage, data(toy_dataset, eval_batch_size=1024), verbose=False)[0]["test/ndcg@10"]
        )
    (summary,) = tables["summary"].query("model == 'spt (3 seeds)' and metric == 'NDCG@10'").to_dict("records")
    assert summary["mean"] == pytest.approx(np.mean(expected), rel=1e-12)
    assert summary["sd over seeds"] == pytest.approx(np.std(expected, ddof=1), rel=1e-9)
    assert summary["low"] < summary["mean"] < summary["high"]
    assert set(tables["latency"]["model"]) == {"spt (3 seeds)", "sasrec"}  # RPT has SPT's architecture
    seeds = tables["seeds"].query("model == 'spt (3 seeds)' and metric == 'NDCG@10'")
    assert seeds["value"].tolist() == expected
    by_depth = tables["quality-by-depth"]
    assert set(by_depth["depth"]) == {1, 4, 6}
    assert "sasrec" not in set(by_depth["model"])  # of depth 0, a dashed line
    flat = tables["summary"].query("model == 'sasrec'")
    assert set(flat["depth"]) == {0}
    fates = tables["steps-users"]
    assert (fates[["better", "unchanged", "worse"]].sum(axis=1) - 1).abs().max() < 1e-9
    pairs = tables["tests"]
    assert len(pairs) == 3 * 3  # three pairs of groups, three metrics
    assert (pairs["p over users, corrected"] >= pairs["p over users"]).all()
    assert pairs["p over seeds"].isna().all()
    kept = tables["pruning"].query("by.str.startswith('items')", engine="python")
    rpt = load_stage(runs / "seed1" / "rpt" / "checkpoints" / "best.ckpt")
    assert isinstance(rpt, RPT)
    assert rpt.kept is not None
    assert (kept["kept"] * kept["instances"]).sum() == pytest.approx(rpt.kept.mask.sum())
    kinds = tables["quality-by-activity"].query("model == 'sasrec' and metric == 'MRR'")
    of_all = (kinds["mean"] * kinds["users"]).sum() / kinds["users"].sum()
    assert of_all == pytest.approx(flat.set_index("metric").loc["MRR", "mean"], rel=1e-5)


def test_a_report_appears_whole_or_not_at_all(
    written: Path, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = [str(runs / EVIL)]
    quick: dict[str, Any] = {"timing": False, "bootstrap": 100, "device": "cpu"}
    before = (written / "report.html").read_bytes()
    with pytest.raises(LaresError, match="--overwrite true replaces it"):
        report(one, str(written), **quick)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("")
    with pytest.raises(LaresError, match="contains no report"):
        report(one, str(tmp_path / "mine"), overwrite=True, **quick)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(command, "_write_table", full)
        with pytest.raises(LaresError, match="could not be written"):
            report(one, str(tmp_path / "new"), **quick)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine"]
    report(one, str(tmp_path / "new"), **quick)
    page = (tmp_path / "new" / "report.html").read_text()
    for missing in (
        "There is one run",
        "one depth (0)",
        "more than one step",
        "Nothing was timed",
        "No RPT run",
        "holds a pruned",
    ):
        assert missing in page
    (tmp_path / "link").symlink_to("new")
    report(one, str(tmp_path / "link"), overwrite=True, title="Again", **quick)
    assert (tmp_path / "link").is_symlink()
    assert "<h1>Again</h1>" in (tmp_path / "new" / "report.html").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "mine", "new"]
    assert (written / "report.html").read_bytes() == before


def test_runs_of_different_datasets_are_refused(runs: Path, tmp_path: Path) -> None:
    other = train(tmp_path / "b" / "spt", SPT(SMALL, optimizer=FAST), with_text(tmp_path), 1, max_steps=1)
    quick: dict[str, Any] = {"timing": False, "device": "cpu"}
    with pytest.raises(LaresError, match="different datasets"):
        report([str(runs / "seed1" / "spt"), str(other)], str(tmp_path / "report"), **quick)
    with pytest.raises(LaresError, match="another catalogue"):
        report([str(runs / "seed1" / "spt")], str(tmp_path / "report"), dataset=str(tmp_path / "text"), **quick)
    with pytest.raises(LaresError, match="begin at 1"):
        report([str(runs / "seed1" / "spt")], str(tmp_path / "report"), depths="0,1", **quick)
    with pytest.raises(LaresError, match="numbers with commas"):
        report([str(runs / "seed1" / "spt")], str(tmp_path / "report"), depths="few", **quick)
    with pytest.raises(LaresError, match="--device tpu"):
        report([str(runs / "seed1" / "spt")], str(tmp_path / "report"), device="tpu")
    assert not (tmp_path / "report").exists()


def test_without_matplotlib_the_error_says_what_to_install(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(LaresError, match=r"pip install 'lares-pl\[report\]'"):
        report([str(runs)], str(tmp_path / "report"))


def test_several_runs_are_words_of_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from lares_pl.cli import main as cli

    given: dict[str, Any] = {}

    def report(runs: list[str], output: str = "report", timing: bool = True) -> None:
        given.update(runs=runs, output=output, timing=timing)

    monkeypatch.setattr(command, "report", report)
    monkeypatch.setattr(sys, "argv", ["lares", "report", "runs/a,b", "--output", "x", "runs/c d", "--timing=false", "e"])
    cli.main()
    assert given == {"runs": ["runs/a,b", "runs/c d", "e"], "output": "x", "timing": False}


# ---------------------------------------------------------------- the page


def test_few_points_are_marked_and_many_are_not() -> None:
    def marks(count: int) -> int:
        x = np.linspace(1, 16, count)
        svg = draw("c", "A chart", "Read it.", [Panel("steps", "y", [Series("a", x, x)], log_x=True)], ["a"]).svg
        line = next(part for part in svg.split('<g id="line2d_') if "#0072b2" in part)
        return line.count("<use ")

    assert marks(20) == 20
    assert marks(21) == 0


def test_the_same_data_draw_the_same_picture() -> None:
    panels = [Panel("steps", "NDCG@10", [Series("$a_b$ <x>", [1, 2, 4], [0.1, 0.2, 0.15], [0.05, 0.1, 0.1], [0.2, 0.3, 0.2])])]
    charts = [draw("c", "A chart", "Read it.", panels, ["$a_b$ <x>", "b"]) for _ in range(2)]
    assert charts[0] == charts[1]
    assert "from 0.100 at 1.00 to 0.150 at 4.00, highest 0.200 at 2.00" in charts[0].alt
    two = draw(
        "c",
        "A chart",
        "Read it.",
        [Panel("x", "y", [Series(label, [1], [2]) for label in ("$a_b$ <x>", "_b")])],
        ["$a_b$ <x>", "_b"],
    )
    texts = [element.text for element in ElementTree.fromstring(two.svg).iter() if element.tag.endswith("text")]
    assert {"$a_b$ <x>", "_b"} <= set(texts)  # as they are: no mathematics, no markup, none hidden


def test_text_of_every_kind_is_shown_as_it_is() -> None:
    evil = "<script>alert('&')</script>"
    chart = Chart("c", evil, evil, evil + '"', "<svg><g id='x'/></svg>")
    table = Table("t", evil, pd.DataFrame({evil: [evil, float("nan")]}), evil)
    page = render(evil, [evil], [Section(evil, [evil], [chart], [table])])
    assert "<script" not in page
    # title twice, lead, contents, heading, text; chart: label (twice), title, caption; table: title, caption, head, cell
    assert page.count("&lt;script&gt;") == 14
    document = ElementTree.fromstring(
        page.replace("<!DOCTYPE html>", "")
        .replace('<meta charset="utf-8">', "")
        .split("<main>")[1]
        .join(["<main>", ""])
        .split("</body>")[0]
    )
    assert document.find("h1") is not None


def test_numbers_are_short() -> None:
    assert [short(value) for value in (0, 1234.5, 12.345, 0.012345, 3.2e-9, float("nan"))] == [
        "0",
        "1,234",
        "12.3",
        "0.0123",
        "3.2e-09",
        "–",
    ]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A real headless browser."""
    import shutil

    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
    if found is None:
        pytest.skip("no chromium or chrome on this machine (apt-get install chromium)")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=found, args=["--no-sandbox"])  # tests may run as root
        yield browser
        browser.close()


@pytest.mark.slow
def test_in_a_browser(browser: Any, written: Path) -> None:
    page = browser.new_page(viewport={"width": 1000, "height": 800})
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: said.append(dialog.message) or dialog.dismiss())  # type: ignore[func-returns-value]
    page.on("request", lambda request: asked.append(request.url))
    page.goto((written / "report.html").absolute().as_uri())
    page.wait_for_load_state("networkidle")
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [(written / "report.html").absolute().as_uri()]
    assert page.title() == page.inner_text("h1") == "<script>alert(1)</script> & $x^2$"
    assert EVIL in page.inner_text("body")
    charts = page.query_selector_all("figure > svg")
    assert len(charts) == len(list((written / "charts").glob("*.svg")))
    for chart in charts:
        box = chart.bounding_box()
        assert chart.is_visible()
        assert min(box["width"], box["height"]) > 100
        assert chart.get_attribute("aria-label")
        lines = chart.query_selector_all("path[style*='stroke: #0072b2'], path[style*='stroke: #d55e00'], use")
        assert any(line.bounding_box() and line.bounding_box()["width"] > 0 for line in lines)
    assert page.evaluate("document.documentElement.scrollWidth") <= 1000  # nothing wider than the page
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    for link in page.query_selector_all("nav a"):
        assert page.query_selector(link.get_attribute("href")) is not None
    page.close()
