"""RPT whose rewards are all equal learns nothing from them, and says so."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from lares_pl import LaresError, LogProbReward, NDCGReward, RecallReward
from lares_pl.losses.rewards import Reward
from tests.training import data, released_rpt, released_spt, trainer


@pytest.fixture(scope="module")
def source(toy_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "spt.ckpt"
    fit = trainer(path.parent, max_steps=1)
    fit.fit(released_spt(), data(toy_dataset))
    fit.save_checkpoint(path)
    return path


@pytest.mark.parametrize(
    ("reward", "at_start", "per_epoch"),
    [
        (RecallReward(40), "model.reward.k is 40, and the catalogue has 40 items: all rewards are equal", 2),
        (NDCGReward(50), "model.reward.k is 50, and the catalogue has 40 items: the cut-off has no effect", 0),
        (LogProbReward(), None, 0),
    ],
)
def test_rewards_that_can_not_differ_are_warned_about(
    reward: Reward, at_start: str | None, per_epoch: int, source: Path, toy_dataset: Path, tmp_path: Path
) -> None:
    model = released_rpt(source, reward=reward, pruning=None)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(tmp_path, max_epochs=2, limit_train_batches=2).fit(model, data(toy_dataset))
    said = [str(warning.message) for warning in caught]
    assert sum("model.reward.k is" in line for line in said) == (at_start is not None)
    assert at_start is None or any(line.startswith(at_start) for line in said)
    epochs = [line for line in said if "all trajectories had the same reward" in line]
    assert len(epochs) == per_epoch
    assert not epochs or epochs[0].startswith("epoch 0: in each of its 128 groups")


def test_a_cut_off_of_nothing_and_a_negative_weight_are_refused(source: Path) -> None:
    with pytest.raises(LaresError, match="k must be at least 1, got 0"):
        RecallReward(0)
    with pytest.raises(LaresError, match="must not be negative"):
        released_rpt(source, beta=-1.0)
