"""Equality with the reference implementation: recorded inputs, weights, noise and depths give its results."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lares_pl.data.loading.histories import Histories
from lares_pl.losses.alignment import Alignment, alignment_losses
from lares_pl.losses.rewards import NDCGReward, RecallReward
from lares_pl.model.backbone import RecurrentBackbone
from lares_pl.model.embedding import ItemText
from lares_pl.model.similarity import CosineSimilarity
from lares_pl.reference.names import family_of, from_reference
from lares_pl.reference.settings import backbone_config, complete_settings
from lares_pl.stages.group_loss import GroupObjective, group_loss
from tests.as_on_a_card import as_on_a_card
from tests.conftest import golden_files

RELATIVE = 1e-4
ROUND_OFF = 2e-6  # absolute; for gradients that are zero but for round-off, such as key biases


class Golden:
    """One recorded model."""

    def __init__(self, path: Path, device: str = "cpu") -> None:
        self.device = device
        with np.load(path) as file:
            self.values = dict(file)
        self.config: dict[str, Any] = json.loads(str(self.values["config_json"]))
        self.state = self.group("param/")
        self.family = family_of(self.state)
        # sizes as the weights say: the recorded settings list those of all families
        settings, _ = complete_settings({k: v for k, v in self.config.items() if k != "n_exps"}, self.state, self.family)
        self.backbone_config = backbone_config(settings, self.family)
        self.histories = Histories.from_padded(self["in/history"])
        self.same_target = Histories.from_padded(self["in/positive_history"])
        self.targets = self["in/target"]

    def __getitem__(self, key: str) -> Tensor:
        value = torch.from_numpy(self.values[key]).to(self.device)
        return value.long() if not value.is_floating_point() else value

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def group(self, prefix: str) -> dict[str, Tensor]:
        return {key[len(prefix) :]: self[key] for key in self.values if key.startswith(prefix)}

    def model(self, prefix: str = "param/") -> RecurrentBackbone:
        state = {**self.state, **self.group(prefix)}
        items, max_length = len(state["item_embedding.weight"]) - 1, len(state["position_embedding.weight"])
        text = ItemText(state["plm_embedding.weight"]) if self.family == "tedrec" else None
        backbone = RecurrentBackbone(items, max_length, self.backbone_config, text)
        backbone.load_state_dict(self.ours(state))
        return backbone.to(self.device)

    def ours(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The recorded weights under this package's names."""
        found, unknown = from_reference(state, self.family)
        assert not unknown
        return found

    def initial_state(self, index: int, histories: Histories, backbone: RecurrentBackbone) -> Tensor:
        """A recorded z_0 in the layout of the backbone."""
        recorded = self["in/initial_states"][index]
        if backbone.padded:
            return recorded
        real = torch.arange(recorded.shape[1], device=self.device) < histories.lengths[:, None]
        return recorded[real]


WAYS = ["cpu", "as on a card", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.fixture(
    # text vectors are read before any of what a card computes in another way
    params=[(path, way) for way in WAYS for path in golden_files() if (way, path.stem) != ("as on a card", "tedrec_add")],
    ids=lambda param: param[0].stem if param[1] == "cpu" else f"{param[0].stem}-{param[1]}",
)
def golden(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Golden:
    path, way = request.param
    if way == "as on a card":
        as_on_a_card(monkeypatch)
    return Golden(path, "cuda" if way == "cuda" else "cpu")


def test_every_family_of_the_paper_is_compared() -> None:
    assert {"transformer", "fmlp", "bsarec", "tedrec"} <= {path.stem.split("_")[0] for path in golden_files()}


def assert_close(actual: Tensor, expected: Tensor, name: str = "") -> None:
    """Relative error of the whole tensor below 1e-4."""
    error = (actual.double() - expected.double()).norm()
    assert error <= RELATIVE * expected.double().norm() + 1e-12, f"{name}: {error / expected.double().norm():.2e}"


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Each value within the relative error; parts that are zero up to rounding are compared absolutely."""
    assert expected.keys() <= actual.keys()
    for name, value in expected.items():
        for ours, theirs in zip(_parts(name, actual[name]), _parts(name, value), strict=True):
            # the key part of a fused bias: attention does not notice it
            if name.startswith("grad/") and theirs.abs().max() < ROUND_OFF:
                assert (ours - theirs).abs().max() < ROUND_OFF, name
            else:
                assert_close(ours, theirs, name)


def _parts(name: str, value: Tensor) -> tuple[Tensor, ...]:
    return value.chunk(3) if "query_key_value" in name else (value,)


def assert_plausible(run: Callable[[], dict[str, Tensor]], expected: dict[str, Tensor]) -> None:
    """For values recorded with unrecorded noise: nearly all lie within the range of our own draws of that noise.

    Without the noise, or with less of it, our range is too narrow and the recorded values lie outside.
    """
    torch.manual_seed(0)
    draws = [run() for _ in range(60)]
    inside, outside = 0, []
    for name, value in expected.items():
        ours = torch.stack([draw[name] for draw in draws])
        low, high = ours.min(dim=0).values, ours.max(dim=0).values
        slack = 0.1 * (high - low) + ROUND_OFF
        fits = (value >= low - slack) & (value <= high + slack)
        inside += int(fits.sum())
        outside += [name] * int((~fits).sum())
    assert inside >= 0.95 * (inside + len(outside)), f"{inside} inside, {len(outside)} outside: {sorted(set(outside))}"


def assert_matches(golden: Golden, run: Callable[[], dict[str, Tensor]], expected: dict[str, Tensor]) -> None:
    """Compare exactly; for TedRec, whose gates are noisy in training, as one draw among ours."""
    if golden.family == "tedrec":
        assert_plausible(run, expected)
    else:
        assert_same(run(), expected)


def gradients(backbone: nn.Module) -> dict[str, Tensor]:
    zero = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in backbone.named_parameters()}
    return {f"grad/{name}": gradient for name, gradient in zero.items()}


def test_forward(golden: Golden) -> None:
    backbone = golden.model().eval()
    steps = int(golden["forward/num_steps"])
    start = golden.initial_state(0, golden.histories, backbone)
    (states,) = backbone.rollout(golden.histories, [steps], initial_states=[start])
    assert_close(states[-1], golden["forward/user_state"])
    recorded = states.transpose(0, 1)
    # TedRec's are recorded divided by their norm
    assert_close(F.normalize(recorded, dim=-1) if golden.family == "tedrec" else recorded, golden["forward/step_user_states"])
    expected = golden["forward/step_log_probs"]
    head = backbone.policy_head()
    whole = head.scores(states.flatten(0, 1))
    assert_close(whole.log_softmax(-1).view(steps, *expected[:, 0].shape).transpose(0, 1), expected)
    of_target = head.log_prob(states.flatten(0, 1), golden.targets.repeat(steps)).view(steps, -1)
    assert_close(of_target.T, expected.gather(2, golden.targets[:, None, None].expand(-1, steps, 1)).squeeze(2))
    assert_close(backbone.head().scores(states[3]), golden["forward/ranking_scores_depth4"])


def test_spt(golden: Golden) -> None:
    parts = ("part/prediction", "part/with_trajectory", "part/with_step", "loss")
    expected = {name: golden[f"spt/{name}"] for name in parts}
    expected |= {f"grad/{name}": value for name, value in golden.ours(golden.group("spt/grad/")).items()}
    assert_matches(golden, lambda: spt_outcome(golden), expected)


def spt_outcome(golden: Golden) -> dict[str, Tensor]:
    backbone = golden.model().train()  # recorded with dropout 0
    pair, single = int(golden["spt/depth_pair"]), int(golden["spt/depth_prediction"])
    histories = [golden.histories, golden.histories, golden.same_target]
    prediction, a, b = backbone.rollout(
        histories,
        [single, pair, pair],
        initial_states=[golden.initial_state(i + 1, part, backbone) for i, part in enumerate(histories)],
    )
    tau, alpha, gamma = (float(golden[f"spt/{name}"]) for name in ("tau", "alpha", "gamma"))
    cross_entropy = backbone.head().cross_entropy(prediction[-1], golden.targets)
    as_scored = isinstance(backbone.config.similarity, CosineSimilarity)  # the release compares states as it scores items
    alignment = Alignment(as_scored, tau, mask_same_target=False)
    trajectory, step = alignment_losses(alignment, a, b, int(golden["spt/step_index"]), golden.targets)
    loss = cross_entropy + alpha * trajectory + gamma * step
    loss.backward()
    return {
        "part/prediction": cross_entropy.detach(),
        "part/with_trajectory": (cross_entropy + alpha * trajectory).detach(),
        "part/with_step": (cross_entropy + gamma * step).detach(),
        "loss": loss.detach(),
        **gradients(backbone),
    }


@pytest.mark.parametrize("kind", ["rpt_recall", "rpt_ndcg"])
def test_rpt(golden: Golden, kind: str) -> None:
    if f"{kind}/loss" not in golden:
        pytest.skip(f"no {kind} recorded in this file")
    expected = {name: golden[f"{kind}/{name}"] for name in ("advantages", "reward_sum", "loss")}
    expected |= {f"grad/{name}": value for name, value in golden.ours(golden.group(f"{kind}/grad/")).items()}
    assert_matches(golden, lambda: rpt_outcome(golden, kind), expected)


def rpt_outcome(golden: Golden, kind: str) -> dict[str, Tensor]:
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
        GroupObjective(RecallReward(k) if kind == "rpt_recall" else NDCGReward(k), beta=beta),
        initial_states=(starts[: len(depths)], starts[len(depths) :]),
    )
    outcome.loss.backward()
    return {
        "advantages": outcome.advantages,
        "reward_sum": outcome.rewards.sum(),
        "loss": outcome.loss.detach(),
        **gradients(backbone),
    }
