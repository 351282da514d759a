"""The same function as the reference implementation: recorded inputs, weights, noise and depths give its results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lares_pl import reference
from lares_pl.config import from_plain
from lares_pl.data.histories import Histories
from lares_pl.model import scoring
from lares_pl.model.backbone import BackboneConfig, RecurrentBackbone
from lares_pl.objectives.rewards import NDCGReward, RecallReward
from lares_pl.stages.rpt import group_loss
from lares_pl.stages.spt import alignment_loss
from tests.conftest import golden_files

RELATIVE = 1e-4
ROUND_OFF = 2e-6  # absolute; for gradients that are zero but for round-off, such as key biases


class Golden:
    """One recorded model."""

    def __init__(self, path: Path) -> None:
        self.values = np.load(path)
        self.config: dict[str, Any] = json.loads(str(self.values["config_json"]))
        self.state = self.group("param/")
        try:
            plain = reference.backbone_config(self.config, self.state)
        except reference.UnknownFamilyError:
            pytest.skip(f"{path.stem}: family not built yet")
        self.backbone_config = from_plain(BackboneConfig, plain, "backbone")
        self.histories = Histories.from_padded(self["in/history"])
        self.same_target = Histories.from_padded(self["in/positive_history"])
        self.targets = self["in/target"]

    def __getitem__(self, key: str) -> Tensor:
        value = torch.from_numpy(self.values[key])
        return value.long() if not value.is_floating_point() else value

    def __contains__(self, key: str) -> bool:
        return key in self.values.files

    def group(self, prefix: str) -> dict[str, Tensor]:
        return {key[len(prefix) :]: self[key] for key in self.values.files if key.startswith(prefix)}

    def model(self, prefix: str = "param/") -> RecurrentBackbone:
        state = {**self.state, **self.group(prefix)}
        items, max_length = len(state["item_embedding.weight"]) - 1, len(state["position_embedding.weight"])
        backbone = RecurrentBackbone(items, max_length, self.backbone_config)
        backbone.load_state_dict(reference.from_reference(state))
        return backbone

    def initial_state(self, index: int, histories: Histories, backbone: RecurrentBackbone) -> Tensor:
        """A recorded z_0 in the backbone's own layout."""
        recorded = self["in/initial_states"][index]
        if backbone.padded:
            return recorded
        real = torch.arange(recorded.shape[1]) < histories.lengths[:, None]
        return recorded[real]


@pytest.fixture(params=golden_files(), ids=lambda path: path.stem)
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden(request.param)


def test_there_is_something_to_compare_with() -> None:
    assert any("transformer" in path.stem for path in golden_files()), "no golden values: set LARES_GOLDEN_DIR"


def assert_close(actual: Tensor, expected: Tensor, name: str = "") -> None:
    """Relative error of the whole tensor below 1e-4."""
    error = (actual.double() - expected.double()).norm()
    assert error <= RELATIVE * expected.double().norm() + 1e-12, f"{name}: {error / expected.double().norm():.2e}"


def assert_gradients(backbone: nn.Module, expected: dict[str, Tensor]) -> None:
    parameters = dict(backbone.named_parameters())
    expected = reference.from_reference(expected)
    assert expected
    for name, gradient in expected.items():
        actual = parameters[name].grad
        actual = torch.zeros_like(gradient) if actual is None else actual
        # the key part of a fused bias is zero up to round-off: compare it absolutely, the rest relatively
        for ours, theirs in zip(_parts(name, actual), _parts(name, gradient), strict=True):
            if theirs.abs().max() < ROUND_OFF:
                assert (ours - theirs).abs().max() < ROUND_OFF, name
            else:
                assert_close(ours, theirs, name)


def _parts(name: str, value: Tensor) -> tuple[Tensor, ...]:
    return value.chunk(3) if "query_key_value" in name else (value,)


def test_forward(golden: Golden) -> None:
    backbone = golden.model().eval()
    steps = int(golden["forward/num_steps"])
    start = golden.initial_state(0, golden.histories, backbone)
    (states,) = backbone.rollout(golden.histories, [steps], initial_states=[start])
    assert_close(states[-1], golden["forward/user_state"])
    assert_close(states.transpose(0, 1), golden["forward/step_user_states"])
    expected = golden["forward/step_log_probs"]
    whole = scoring.scores(states.flatten(0, 1), backbone.item_vectors, backbone.policy_similarity)
    assert_close(whole.log_softmax(-1).view(steps, *expected[:, 0].shape).transpose(0, 1), expected)
    (of_target,) = backbone.policy_log_probs([states], golden.targets)
    assert_close(of_target.T, expected.gather(2, golden.targets[:, None, None].expand(-1, steps, 1)).squeeze(2))
    assert_close(backbone.scores(states[3]), golden["forward/ranking_scores_depth4"])


def test_spt(golden: Golden) -> None:
    backbone = golden.model().train()  # recorded with dropout 0
    pair, single = int(golden["spt/depth_pair"]), int(golden["spt/depth_prediction"])
    histories = [golden.histories, golden.histories, golden.same_target]
    prediction, a, b = backbone.rollout(
        histories,
        [single, pair, pair],
        initial_states=[golden.initial_state(i + 1, part, backbone) for i, part in enumerate(histories)],
    )
    tau, alpha, gamma = (float(golden[f"spt/{name}"]) for name in ("tau", "alpha", "gamma"))
    cross_entropy = -backbone.target_log_prob(prediction[-1], golden.targets).mean()
    normalise = backbone.config.similarity.normalise
    trajectory, step = alignment_loss(normalise(a), normalise(b), int(golden["spt/step_index"]), tau)
    assert_close(cross_entropy, golden["spt/part/prediction"])
    assert_close(cross_entropy + alpha * trajectory, golden["spt/part/with_trajectory"])
    assert_close(cross_entropy + gamma * step, golden["spt/part/with_step"])
    loss = cross_entropy + alpha * trajectory + gamma * step
    assert_close(loss, golden["spt/loss"])
    loss.backward()
    assert_gradients(backbone, golden.group("spt/grad/"))


@pytest.mark.parametrize("kind", ["rpt_recall", "rpt_ndcg"])
def test_rpt(golden: Golden, kind: str) -> None:
    if f"{kind}/loss" not in golden:
        pytest.skip(f"no {kind} recorded in this file")
    backbone = golden.model().train()
    policy_reference = golden.model("rpt_reference_param/").eval()
    depths = golden[f"{kind}/group_depths"].tolist()
    k, beta = int(golden[f"{kind}/k"]), float(golden[f"{kind}/beta"])
    starts = [golden.initial_state(i, golden.histories, backbone) for i in range(2 * len(depths))]
    outcome = group_loss(
        backbone,
        policy_reference,
        golden.histories,
        golden.targets,
        depths,
        RecallReward(k) if kind == "rpt_recall" else NDCGReward(k),
        beta,
        initial_states=(starts[: len(depths)], starts[len(depths) :]),
    )
    assert_close(outcome.advantages, golden[f"{kind}/advantages"])
    assert_close(outcome.rewards.sum(), golden[f"{kind}/reward_sum"])
    assert_close(outcome.loss, golden[f"{kind}/loss"])
    outcome.loss.backward()
    assert_gradients(backbone, golden.group(f"{kind}/grad/"))
