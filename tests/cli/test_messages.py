"""What a run prints: lines that a user can act on, and errors of one paragraph."""

from __future__ import annotations

import os
import re
import signal
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from lares_pl.cli.commands import FUNCTIONS, FunctionCommand
from lares_pl.cli.main import main
from lares_pl.cli.outcome import metrics_text
from tests.console import CONTEXT, OFFLINE, QUICK, SMALL, error, lares

FIT = ["fit", "--config", "spt.yaml", *QUICK, *SMALL]
CALLBACK = """from lightning.pytorch.callbacks import Callback


class Broken(Callback):
    def on_train_start(self, *_):
        RAISED
"""


@pytest.fixture(scope="module")
def work(toy_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("messages")
    (folder / "prepared").symlink_to(toy_dataset)
    return folder


def test_a_run_prints_nothing_that_nobody_can_act_on(work: Path) -> None:
    said = lares(work, *FIT, environment=OFFLINE).said
    noise = r"GPU available|TPU available|Seed set|💡|lit(logger|models)|Deprecat|FutureWarning|^wandb:|weights_only|Restor"
    assert not [line for line in said.splitlines() if re.search(noise, line)]
    again = lares(work, *FIT, "--ckpt_path", "last", "--trainer.max_epochs", "2", environment=OFFLINE).said
    assert not [line for line in again.splitlines() if re.search(noise, line)]
    assert "resuming runs/default/spt/checkpoints/last.ckpt" in again


@pytest.mark.parametrize(
    "raised", ['raise RuntimeError("of no use\\n\\nat all")', '{}["metric"]', "self.missing", "raise AssertionError"]
)
def test_an_error_of_a_callback_is_one_paragraph(raised: str, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"broken_{abs(hash(raised))}"
    (work / f"{name}.py").write_text(CALLBACK.replace("RAISED", raised))
    monkeypatch.syspath_prepend(str(work))
    (work / "broken.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": [{"class_path": f"{name}.Broken"}]}}))
    line = error(work, *FIT, "--run", name, "--trainer.logger", "false", "--config", "broken.yaml")
    kind = {"raise R": "RuntimeError: of no use at all", '{}["met': "KeyError: 'metric'", "self.mi": "AttributeError: "}
    assert kind.get(raised[:7], "AssertionError: no message") in line
    assert f"{name}.py, line 6, in on_train_start). LARES_TRACEBACK=1" in line


def _command_interrupted_while_imported(folder: Path) -> None:
    os.dup2(os.open(folder / "stderr", os.O_WRONLY | os.O_CREAT), 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background are started with it ignored
    sys.path.insert(0, str(folder))
    FUNCTIONS["half"] = FunctionCommand("half_imported:command", "")
    sys.argv = ["lares", "half"]
    main()


def test_ctrl_c_while_modules_are_imported_is_one_line(tmp_path: Path) -> None:
    """Whatever a module makes of an exception in the middle of it."""
    (tmp_path / "half_imported.py").write_text(
        "import os, signal\n"
        "try:\n    os.kill(os.getpid(), signal.SIGINT)\n"
        "except KeyboardInterrupt:\n    raise AttributeError('only half of it was imported')\n"
    )
    process = CONTEXT.Process(target=_command_interrupted_while_imported, args=(tmp_path,))
    process.start()
    process.join(60)
    assert (process.exitcode, (tmp_path / "stderr").read_text()) == (130, "lares: interrupted\n")


def test_ctrl_c_that_lightning_turns_into_an_exit_is_one_line(work: Path) -> None:
    (work / "ctrl_c.py").write_text(
        CALLBACK.replace("on_train_start", "on_fit_start").replace("RAISED", "raise KeyboardInterrupt")
    )
    (work / "ctrl_c.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": [{"class_path": "ctrl_c.Broken"}]}}))
    said = lares(work, *FIT, "--run", "ctrl-c", "--config", "ctrl_c.yaml", status=130).stderr
    assert said.splitlines().count("lares: interrupted") == 1
    assert "Traceback" not in said


BEST = {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": {"monitor": "val/ndcg@10", "mode": "max"}}


def test_what_is_wrong_with_callbacks_and_loggers_is_said_at_the_start(work: Path) -> None:
    (work / "second.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": [BEST]}}))
    said = error(work, *FIT, "--run", "x", "--config", "second.yaml")
    assert "there are two ModelCheckpoint with the same monitor" in said
    assert "callbacks.best_checkpoint" in said
    said = error(work, *FIT, "--run", "x", "--callbacks.early_stopping.init_args.monitor", "val/ndgc@10")
    assert "EarlyStopping: its monitor 'val/ndgc@10' is never logged. Validation logs val/ndcg@10" in said
    said = error(work, *FIT, "--run", "x", "--trainer.callbacks", "lightning.pytorch.callbacks.EMAWeightAveraging")
    assert "EMAWeightAveraging tests other weights than it saves" in said
    assert not (work / "runs" / "x").exists()


@pytest.mark.parametrize(
    ("logger", "cause"),
    [
        ("CSVLogger", "trainer.logger: the following arguments are required: save_dir"),
        ("TensorBoardLogger", "trainer.logger: the following arguments are required: save_dir"),
        pytest.param(
            "MLFlowLogger", "Requirement 'mlflow", marks=pytest.mark.skipif(find_spec("mlflow") is not None, reason="installed")
        ),
        ("NoSuchLogger", "trainer.logger: Expected a dot import path string: NoSuchLogger"),
    ],
)
def test_a_logger_class_that_can_not_be_built_is_refused_with_its_cause(logger: str, cause: str, work: Path) -> None:
    said = error(work, *FIT, "--run", "y", "--trainer.logger", logger)
    assert cause in said
    assert not re.search(r"Subclass types|Union|collections\.abc", said)


def test_metrics_are_listed_in_the_order_of_their_cutoffs() -> None:
    names = ["mrr", "ndcg@10", "ndcg@20", "ndcg@5", "ndcg@50", "recall@10", "recall@20", "recall@5", "recall@50", "steps"]
    text = metrics_text({"depth": 4, "metrics": {f"test/{name}": 0.5 for name in names}})
    assert [line.split()[0] for line in text.splitlines()[1:]] == [
        *(f"recall@{k}" for k in (5, 10, 20, 50)), *(f"ndcg@{k}" for k in (5, 10, 20, 50)), "mrr", "steps",
    ]  # fmt: skip
