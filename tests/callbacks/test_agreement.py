"""Processes agree on what any of them says, and wait neither for each other nor for a device."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import pytest
import torch

from lares_pl.callbacks.agreement import AnyProcess
from tests.model.test_sharding import on_processes

CPU = torch.device("cpu")


def test_one_process_answers_itself_at_once() -> None:
    alone = AnyProcess(CPU)
    assert [alone.exchange(yes) for yes in (False, True, False)] == [False, True, False]
    assert [alone.decide(yes) for yes in (False, True)] == [False, True]


def answers(rank: int, world: int) -> None:
    one = AnyProcess(CPU)
    asked = [rank == 1 and update == 2 for update in range(5)]
    assert [one.exchange(yes) for yes in asked] == [False, False, False, True, False]  # of the update before
    assert one.exchange(rank == 0) is False
    assert one.decide(False) is True  # the question before was not read yet
    assert one.decide(False) is False
    assert one.decide(rank == 1) is True


@pytest.mark.slow
def test_all_processes_read_the_same_answers(tmp_path: Path) -> None:
    on_processes(answers, 2, tmp_path)


def asks_ahead(done: Path, rank: int, world: int) -> None:
    """The second process asks its first question when the first one has asked and gone on."""
    one = AnyProcess(CPU)
    if rank == 0:
        one.exchange(True)
        done.touch()
    deadline = time.monotonic() + 60
    while not done.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    if rank == 1:
        one.exchange(False)
    assert one.exchange(False) is True


@pytest.mark.slow
def test_a_process_that_is_ahead_does_not_wait(tmp_path: Path) -> None:
    on_processes(partial(asks_ahead, tmp_path / "done"), 2, tmp_path)
