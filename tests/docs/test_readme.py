"""Code, commands and links of the README and the pages work."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lares_pl import Recommender
from lares_pl.cli.commands import TEXTS
from lares_pl.cli.shipped_configs import shipped_configs, shipped_files
from tests.conftest import ROOT
from tests.docs.examples import PAGES, blocks, commands, script, scripts, statements, text
from tests.training import data, released_spt, trainer


@pytest.fixture(scope="module")
def checkpoint(toy_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained stage."""
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("trained")
    fitted = trainer(folder, max_epochs=3)
    fitted.fit(released_spt(), data(toy_dataset, max_length=20))
    fitted.save_checkpoint(folder / "spt.ckpt")
    return folder / "spt.ckpt"


# ---------------------------------------------------------------- Python


def readme(found: dict[str, Any], printed: str) -> None:
    """The output shown has the form of the one printed."""
    (shown,) = blocks("README.md", "text")
    form = [re.sub(r"\bi\d+\b", "item", output).split() for output in (shown, printed)]
    assert form[0] == form[1][-len(form[0]) :]
    assert len(set(found["steps"]["item_id"])) > 1


def depth(found: dict[str, Any], printed: str) -> None:
    assert found["found"].to_pandas()["rank"].tolist() == [1, 2, 3, 4, 5]


def extending(found: dict[str, Any], printed: str) -> None:
    tested = found["tested"]
    assert 0 <= tested["test/recall@1"] <= tested["test/recall@5"]
    assert tested["test/recall@1"] <= tested["test/mrr"]
    assert 0 < tested["test/coverage@10"] <= 1
    assert str(tested["test/unseen/recall@1"]) in printed


def lightning(found: dict[str, Any], printed: str) -> None:
    assert found["stage"].lr != 2e-3
    assert found["trainer"].current_epoch == 20


def python(found: dict[str, Any], printed: str) -> None:
    assert found["shallow"].shape == (2, 2, 64)
    assert found["deep"].shape == (8, 2, 64)
    assert found["items"].shape == (2, 10)
    assert found["trained"].evaluation_depth == 8
    before, after = found["spt"].backbone.state_dict(), found["rpt"].backbone.state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)  # RPT trained


def recommend(found: dict[str, Any], printed: str) -> None:
    table = found["found"].to_pandas()
    assert table.columns.tolist() == ["user_id", "rank", "item_id", "score"]
    assert len(table) == 10
    assert found["found"].unknown == [[], ["no such item"]]
    assert found["steps"].groupby("step").size().tolist() == [3] * 4
    assert len(found["deeper"].to_pandas()) == 10


def reports(found: dict[str, Any], printed: str) -> None:
    measured = found["measured"]
    expected = [measured.metrics(depth)["recall@10"] for depth in range(1, 9)]
    np.testing.assert_allclose(found["share"], expected, rtol=1e-6)


CHECKS: dict[str, Callable[[dict[str, Any], str], None]] = {
    "README.md": readme,
    "docs/depth.md": depth,
    "docs/extending.md": extending,
    "docs/lightning.md": lightning,
    "docs/python.md": python,
    "docs/recommend.md": recommend,
    "docs/reports.md": reports,
}


def test_all_python_code_of_the_pages_is_tested() -> None:
    assert {page for page in PAGES if statements(page)} == set(CHECKS)
    # these run in tests of what they are about
    files = {"my_block.py", "my_model.py", "my_reward.py", "my_metric.py", "nearest.py", "my_stop.py"}
    assert {name for page in PAGES for name in scripts(page)} == files


@pytest.mark.slow
@pytest.mark.parametrize("page", CHECKS)
def test_python_code_of_a_page(
    page: str,
    checkpoint: Path,
    toy_dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prepared").symlink_to(toy_dataset)
    (tmp_path / "spt.ckpt").write_bytes(checkpoint.read_bytes())
    found: dict[str, Any] = {}
    exec(compile(statements(page), page, "exec"), found)
    CHECKS[page](found, capsys.readouterr().out)


def test_the_stopping_rule_of_the_documentation(checkpoint: Path) -> None:
    found: dict[str, Any] = {}
    exec(script("docs/depth.md", "my_stop.py"), found)
    recommender = Recommender.from_checkpoint(checkpoint)

    def ranked(depth: int, threshold: float | None = None) -> list[str]:
        stop = None if threshold is None else found["LargestChange"](threshold)
        return recommender.recommend(["i3", "i14", "i15"], k=40, depth=depth, stop=stop).to_pandas()["score"].tolist()

    close = partial(pytest.approx, rel=1e-4, abs=1e-5)
    assert ranked(8, 0.0) == close(ranked(8))  # never stops
    assert ranked(8, 1e9) == close(ranked(2))  # stops as early as a rule may
    assert ranked(8) != close(ranked(2))


# ---------------------------------------------------------------- commands and configs


@pytest.mark.parametrize("page", PAGES)
def test_commands_of_the_pages_exist_and_name_shipped_configs(page: str) -> None:
    for arguments in commands(page):
        assert arguments[0] in TEXTS, arguments
        configs = [value for name, value in pairwise(arguments) if name == "--config"]
        assert set(configs) <= set(shipped_configs()), arguments


def test_named_configs_are_shipped_and_shipped_configs_are_named() -> None:
    shipped = {name for name in shipped_files() if name.endswith(".yaml")}
    named = {page: set(re.findall(r"`([a-z-]+\.yaml)`", text(page))) for page in PAGES}
    assert named["docs/training.md"] - {"config.yaml"} == shipped
    assert set.union(*named.values()) <= shipped | {"config.yaml"}


# ---------------------------------------------------------------- the front page


def test_the_front_page_is_short() -> None:
    assert len(text("README.md").splitlines()) <= 200
    assert len(text("README.md").split()) <= 1300


@pytest.mark.parametrize("page", PAGES)
def test_links_to_files_and_headings_exist(page: str) -> None:
    shown = re.sub(r"<!--.*?-->", "", text(page), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", shown):
        name, _, anchor = target.partition("#")
        if name.startswith(("https://", "http://")):
            continue
        path = (ROOT / page).parent / name if name else ROOT / page
        assert path.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            anchors = {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}
            assert anchor in anchors, target
