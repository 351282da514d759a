"""Every block config through the console command, SPT then RPT; and the custom classes of the documentation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

import lares_pl
from lares_pl import load_stage, prepare
from lares_pl.cli.shipped_configs import shipped_configs
from tests.console import error, lares
from tests.data.prepare.test_recbole_splits import generated_benchmark
from tests.docs.examples import command, script

QUICK = [
    *("--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.logger", "false"),
    *("--trainer.limit_train_batches", "3", "--trainer.max_epochs", "1", "--data.batch_size", "32"),
]
NARROW = ["--model.backbone.hidden_size", "16"]
# tests/data/prepare/test_text.py runs the one that needs item text
BLOCK_CONFIGS = [name for name, path in shipped_configs().items() if path.parent.name == "blocks" and name != "tedrec.yaml"]


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small prepared dataset."""
    folder = tmp_path_factory.mktemp("few")
    generated_benchmark(folder / "part")
    prepare(str(folder / "part"), str(folder / "prepared"))
    return folder / "prepared"


@pytest.mark.slow
@pytest.mark.parametrize("config", BLOCK_CONFIGS)
def test_both_stages_train_with_each_block_config(config: str, few: Path, tmp_path: Path) -> None:
    data = ["--data.dataset", str(few)]
    lares(tmp_path, "fit", "--config", "spt.yaml", "--config", config, *data, *QUICK, *NARROW)
    done = lares(tmp_path, "fit", "--config", "rpt.yaml", *QUICK)
    assert "before and after RPT" in done.stdout
    report = json.loads((tmp_path / "runs" / "default" / "rpt" / "test.json").read_text())
    assert report["before"]["metrics"].keys() == report["metrics"].keys()
    stage = load_stage(tmp_path / "runs" / "default" / "rpt" / "checkpoints" / "best.ckpt")
    name = yaml.safe_load(shipped_configs()[config].read_text())["model"]["init_args"]["backbone"]["core_block"]["class_path"]
    block = getattr(lares_pl, name.removeprefix("lares_pl."))
    assert {type(core) for core in stage.backbone.core_blocks} == {block}
    assert stage.backbone.causal == getattr(block, "causal", False)


@pytest.mark.slow
@pytest.mark.parametrize(("page", "module"), [("README.md", "my_block"), ("docs/extending.md", "my_model")])
def test_the_block_and_the_reward_of_the_documentation(page: str, module: str, few: Path, tmp_path: Path) -> None:
    code = script(page, f"{module}.py")
    assert len([line for line in code.splitlines() if line.strip()]) <= 16  # 15 and the file's name
    (tmp_path / f"{module}.py").write_text(code)
    lares(tmp_path, *command(page, f"{module}.GRUBlock"), "--data.dataset", str(few), *QUICK)
    (tmp_path / "my_reward.py").write_text(script("docs/extending.md", "my_reward.py"))
    lares(tmp_path, *command("docs/extending.md", "my_reward.ReciprocalRankReward"), *QUICK)
    config = yaml.safe_load((tmp_path / "runs" / "default" / "rpt" / "config.yaml").read_text())
    assert config["model"]["init_args"]["reward"]["init_args"] == {"k": 20}
    best = str(tmp_path / "runs" / "default" / "rpt" / "checkpoints" / "best.ckpt")
    lares(tmp_path, "test", "--ckpt_path", best, "--depth", "8", "--output", "test.json")
    assert json.loads((tmp_path / "test.json").read_text())["depth"] == 8
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    said = error(elsewhere, "test", "--ckpt_path", best)
    assert "No module named 'my_" in said


def test_a_block_that_breaks_the_contract_is_refused_before_anything_is_written(few: Path, tmp_path: Path) -> None:
    code = """
from torch import nn

class Careless(nn.Module):
    def __init__(self, hidden_size: int, layers: int = 1):
        super().__init__()
        self.gru = nn.GRU(hidden_size, hidden_size, layers, batch_first=True)

    def forward(self, x, layout):
        return self.gru(x)
"""
    (tmp_path / "careless_model.py").write_text(code)
    said = error(
        tmp_path,
        "fit",
        "--config",
        "spt.yaml",
        "--data.dataset",
        str(few),
        "--model.backbone.core_block",
        "careless_model.Careless",
    )
    assert "core_block careless_model.Careless: returned a tuple" in said
    assert "expected token states like its input" in said
    assert not (tmp_path / "runs").exists()


def test_a_block_that_replaces_another_uses_its_own_defaults(few: Path, tmp_path: Path) -> None:
    """`heads: 2, inner_size: 256` of spt.yaml belong to the ConvTransformerBlock; another block's own defaults count."""
    code = """
from torch import nn
from lares_pl import LaresError

class Wide(nn.Module):
    def __init__(self, hidden_size: int, heads: int = 8, inner_size: int = 77):
        super().__init__()
        raise LaresError(f"heads={heads} inner_size={inner_size}")

    def forward(self, x, layout):
        return x
"""
    (tmp_path / "wide_model.py").write_text(code)
    block = ["--model.backbone.core_block", "wide_model.Wide"]
    arguments = ["fit", "--config", "spt.yaml", "--data.dataset", str(few), *block]
    assert "heads=8 inner_size=77" in error(tmp_path, *arguments)
    assert "heads=4 inner_size=77" in error(tmp_path, *arguments, "--model.backbone.core_block.heads", "4")
    assert "module 'wide_model' has no attribute 'Nothing'" in error(tmp_path, *arguments[:-1], "wide_model.Nothing")


def test_a_block_config_is_refused_for_rpt(few: Path, tmp_path: Path) -> None:
    best = tmp_path / "runs" / "default" / "spt" / "checkpoints" / "best.ckpt"
    best.parent.mkdir(parents=True)
    best.touch()
    said = error(tmp_path, "fit", "--config", "rpt.yaml", "--config", "fmlp.yaml", "--data.dataset", str(few))
    assert "RPT takes its architecture from the SPT checkpoint; leave model.backbone out" in said
    assert best.is_file()


@pytest.mark.slow
def test_a_custom_stage_keeps_the_options_of_the_stage_it_replaces(tmp_path: Path) -> None:
    (tmp_path / "my_stage.py").write_text("from lares_pl import SPT\n\n\nclass MySPT(SPT):\n    pass\n")
    printed = lares(tmp_path, "fit", "--config", "spt.yaml", "--model", "my_stage.MySPT", "--print_config").stdout
    init_args = yaml.safe_load(printed)["model"]["init_args"]
    assert init_args["optimizer"]["init_args"]["lr"] == 0.002  # spt.yaml's
