"""Help, and completion in a real shell."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest
import yaml

from lares_pl.cli.arguments import help_last
from lares_pl.cli.commands import FUNCTIONS, STAGES
from lares_pl.cli.completion import _function_parsers, _stage_parsers, completion
from lares_pl.cli.help import render
from lares_pl.cli.lightning import LaresCLI
from lares_pl.cli.main import main
from lares_pl.cli.options import sections
from lares_pl.cli.shipped_configs import shipped_files
from lares_pl.errors import LaresError
from tests.console import error

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser


def said(*arguments: str) -> str:
    """The output of `lares`, which must exit with 0."""
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
        patch.setenv("COLUMNS", "110")
        patch.setattr(sys, "argv", ["lares", *arguments])
        with pytest.raises(SystemExit) as stopped:
            main()
    assert stopped.value.code == 0
    return out.getvalue()


@pytest.fixture(scope="module")
def parsers() -> dict[str, ArgumentParser]:
    return {**_function_parsers(), **_stage_parsers()}


@pytest.mark.slow
def test_the_list_of_commands_imports_no_heavy_packages() -> None:
    code = (
        "import sys, time; began = time.process_time(); sys.argv = ['lares', '--help']\n"
        "from lares_pl.cli.main import main; main(); took = time.process_time() - began\n"
        "heavy = {'torch', 'lightning', 'pandas', 'numpy', 'jsonargparse', 'wandb'} & set(sys.modules)\n"
        "sys.exit(f'{took} s, {heavy}' if took > 0.5 or heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(f"\n  {command} " in done.stdout for command in [*FUNCTIONS, *STAGES])


def test_the_parsers_of_other_commands_are_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    for command in STAGES:
        monkeypatch.setattr(sys, "argv", ["lares", command])
        assert list(LaresCLI.subcommands()) == [command]


def test_help_of_every_command_ends_with_examples() -> None:
    for command in [*FUNCTIONS, *STAGES]:
        text = said(command, "--help")
        assert text.startswith(f"usage: lares {command}")
        assert len(text.splitlines()) < 125, command
        examples = text.partition("\nexamples:\n")[2].splitlines()
        assert examples, command
        assert all(line.startswith(f"  lares {command}") for line in examples), command


def test_common_options_exist_and_every_option_has_a_text(parsers: dict[str, ArgumentParser]) -> None:
    for command, stage in STAGES.items():
        found = sections(parsers[command])
        for name, common in stage.common.items():
            names = {option.key.rpartition(".")[2] for section in found if section.name == name for option in section.options}
            missing = set(common) - names
            assert not missing, (command, name, missing)
        assert not set(stage.texts) - {option.key for section in found for option in section.options}
    for command, parser in parsers.items():
        for section in sections(parser):
            assert all(option.text for option in section.options), command


def test_help_shows_the_values_of_a_config() -> None:
    text = said("fit", "--config", "spt.yaml", "--help", "--model.alpha", "0.75")
    assert "model: SPT." in text
    assert "model: RPT." not in text
    for line in ("weight of step-level alignment (SLA) [0.0]", "[0.75]", "[Adam(lr=0.002)]"):
        assert line in text
    without = said("fit", "-h")
    assert "model: SPT." in without
    assert "model: RPT." in without
    assert "--trainer.sync_batchnorm" not in without


def test_help_of_a_section_or_option_is_complete(tmp_path: Path) -> None:
    assert "--trainer.sync_batchnorm true|false" in said("fit", "--help", "trainer")
    of_depth = said("fit", "--config", "spt.yaml", "--help", "model.backbone.depth")
    assert "--model.backbone.depth.mean INT" in of_depth
    assert "lares_pl.ConstantDepth" in of_depth
    assert "--model.backbone.hidden_size" not in of_depth
    rate = said("fit", "--config", "spt.yaml", "--config", "small.yaml", "--help", "model.optimizer.lr")
    assert "Set to 0.003." in rate
    whole = said("prepare", "--help", "all")
    assert "(type: int, default: 0)" in " ".join(whole.split())
    assert "--engine.memory" in whole
    assert "no such option" in error(tmp_path, "prepare", "--help", "nothing")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (["prepare", "t.csv", "--kcore", "5"], "--k_core"),
        (["fit", "--config", "spt.yaml", "--trainer.max_step", "8"], "--trainer.max_steps"),
        (["fit", "--config", "spt.yaml", "--runn", "x"], "--run"),
        (["fit", "--config", "spt.yaml", "--model.alhpa", "1"], "--model.alpha"),
        (["fit", "--config", "rpt.yaml", "--model.redward", "1"], "--model.reward"),
        (["fit", "--config", "spt.yaml", "--model.lr", "1"], "--model.optimizer.lr"),
        (["fit", "--config", "spt.yaml", "--backbone.hidden_size", "1"], "--model.backbone.hidden_size"),
        (["fit", "--config", "spt.yaml", "--model.backbone.depht.mean", "3"], "--model.backbone.depth.mean"),
        (["fit", "--config", "spt.yaml", "--model.optimizer.lrr", "0.1"], "--model.optimizer.lr"),
        (["fit", "--config", "spt.yaml", "--model.supervision", "lares_pl.LastStp"], "lares_pl.LastStep"),
        (["fit", "--config", "spt.yaml", "--model.optimizer", "torch.optim.Adamm"], "torch.optim.Adam"),
        (["repotr", "x"], "report"),
    ],
)
def test_misspelt_names_get_a_suggestion(tmp_path: Path, typed: list[str], meant: str) -> None:
    assert f"; did you mean {meant}?" in error(tmp_path, *typed)


@pytest.mark.parametrize("typed", [["--model.pruning", "x"], ["--zzzzzz", "x"]])  # an option of RPT; nothing like it
def test_nothing_is_suggested_that_was_typed_or_is_not_alike(tmp_path: Path, typed: list[str]) -> None:
    assert "did you mean" not in error(tmp_path, "fit", "--config", "spt.yaml", *typed)


def test_an_option_of_a_class_that_was_not_chosen_names_one(tmp_path: Path) -> None:
    said = error(tmp_path, "fit", "--config", "spt.yaml", "--stop.threshold", "0.1")
    assert "lares_pl.StopRule is abstract: choose one first, such as --stop lares_pl.ResidualStop" in said


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"trainer": {"max_epohcs": 3}}, "option 'trainer.max_epohcs'; did you mean --trainer.max_epochs?"),
        ({"callbacks": {"early_stoping": None}}, "option 'callbacks.early_stoping'; did you mean --callbacks.early_stopping?"),
        ({"model": {"init_args": {"alhpa": 1}}}, "Option 'alhpa' is not accepted; did you mean --model.alpha?"),
    ],
)
def test_a_misspelt_key_of_a_config_is_named_with_its_file(tmp_path: Path, content: dict[str, Any], said: str) -> None:
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content))
    shown = error(tmp_path, "fit", "--config", "spt.yaml", "--config=mine.yaml", "--config", "small.yaml")
    assert "--config mine.yaml: " in shown
    assert said in shown


def test_help_is_moved_to_the_end() -> None:
    assert help_last(["--help", "trainer", "--run", "x"]) == ["--run", "x", "--help", "trainer"]
    assert help_last(["-h", "--run", "x"]) == ["--run", "x", "--help"]
    assert help_last(["--run", "x"]) == ["--run", "x"]


def test_percent_signs_and_brackets_in_texts_are_literal() -> None:
    from lares_pl.cli.parser import Parser

    parser = Parser(prog="x")
    parser.add_argument("--share", type=int, default=3, help="A share of 100 % [or so]. More.")
    assert "A share of 100 % [or so] [3]" in render(parser)
    with pytest.raises(LaresError, match="no such option"):
        render(parser, "other")


# ---------------------------------------------------------------- completion

CASES = {
    "lares pre": ["prepare", "predict"],
    "lares fit --model.gam": ["--model.gamma"],
    "lares fit --model.group": ["--model.group_size"],
    "lares fit --config s": [
        *("sasrec.yaml", "sharded.yaml", "small-rpt.yaml", "small-sasrec.yaml", "small.yaml"),
        *("spt-continued.yaml", "spt.yaml"),
    ],
    "lares fit --config mi": ["mine.yaml"],
    "lares fit --run ": ["beauty", "my-run"],
    "lares test --ckpt_path runs/my-run/spt/checkpoints/b": ["runs/my-run/spt/checkpoints/best.ckpt"] * 2,  # a run's, a file
    "lares fit --data.instances ": ["auto", "prefix", "sequence"],
    "lares fit --model.backbone.core_block lares_pl.L": ["lares_pl.LRUBlock"],
    "lares prepare --text.enc": ["--text.encoder", "--text.encoding"],
    "lares config cl": ["cluster.yaml"],
    "lares completion ": ["bash", "zsh", "fish"],
}


@pytest.fixture(scope="module")
def scripts() -> dict[str, str]:
    """The script of each shell."""
    found: dict[str, str] = {}
    shells: list[Literal["bash", "zsh", "fish"]] = ["bash", "zsh", "fish"]
    for shell in shells:
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            completion(shell)
        found[shell] = out.getvalue()
    return found


@pytest.mark.slow
def test_bash_completion(scripts: dict[str, str], tmp_path: Path) -> None:
    for run in ("beauty", "my-run"):
        (tmp_path / "runs" / run / "spt" / "checkpoints").mkdir(parents=True)
    (tmp_path / "runs" / "my-run" / "spt" / "checkpoints" / "best.ckpt").touch()
    (tmp_path / "mine.yaml").touch()
    (tmp_path / "lares.bash").write_text(scripts["bash"])
    quotes = "''"
    ask = [
        "source ./lares.bash",
        'asked() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=(); $how lares "${COMP_WORDS[COMP_CWORD]}"; '
        'echo "${COMPREPLY[@]}"; }',
        "how=$(complete -p lares | sed 's/.*-F \\([^ ]*\\).*/\\1/')",
        *(f"asked {line}{quotes * line.endswith(' ')}" for line in CASES),
    ]
    done = subprocess.run(["bash", "-c", "\n".join(ask)], cwd=tmp_path, capture_output=True, text=True, check=True)
    answers = [line.split() for line in done.stdout.splitlines()]
    assert answers == list(CASES.values())
    assert not done.stderr


@pytest.mark.slow
def test_zsh_and_fish_completion(scripts: dict[str, str]) -> None:
    for shell in ("zsh", "fish"):
        assert "model.backbone.core_block" in scripts[shell]
        assert all(name in scripts[shell] for name in shipped_files())
    assert scripts["zsh"].startswith("#compdef lares")
    assert "complete -c lares" in scripts["fish"]
