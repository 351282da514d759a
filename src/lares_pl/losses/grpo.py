"""Group-relative policy optimisation in latent space (docs/method.md "Stage 2, RPT")."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class PolicyTerms(NamedTuple):
    """What each step of each trajectory gives, `[R]`."""

    loss: Tensor
    kl: Tensor


def grpo(log_probs: Tensor, reference_log_probs: Tensor, advantages: Tensor, beta: float) -> PolicyTerms:
    """`-(pi_t / stopgrad(pi_t) * A_g - beta * (exp(q) - q - 1))` of each step, `q = log pi_ref_t - log pi_t`.

    The loss is their sum weighted with `step_weights`.

    Args:
        log_probs: log pi_t(y) of R steps, `[R]`.
        reference_log_probs: the same of the reference policy, `[R]`.
        advantages: of the steps' trajectories, `[R]`.
        beta: weight of the KL term.

    Returns:
        The terms, and the estimates of the KL divergence in them (Schulman's k3).
    """
    ratio = torch.exp(log_probs - log_probs.detach())  # 1 in value; carries the gradient of log pi
    q = reference_log_probs - log_probs
    kl = torch.exp(q) - q - 1
    return PolicyTerms(beta * kl - ratio * advantages, kl)


def step_weights(depths: Sequence[int], instances: int) -> Tensor:
    """`1 / (B G T_g)`: the weight of each step in `mean_{i,g} 1/T_g sum_t`.

    Args:
        depths: T_g of each trajectory.
        instances: B.

    Returns:
        `[sum T_g]`; a step of trajectory after trajectory.
    """
    steps = torch.tensor(depths).clamp(min=1)  # a trajectory of depth 0 gives one state
    return torch.repeat_interleave(1 / (instances * len(depths) * steps), steps)
