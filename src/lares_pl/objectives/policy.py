"""Group-relative policy optimisation in latent space (METHOD "Stage 2, RPT")."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


def group_advantages(rewards: Tensor) -> Tensor:
    """`(r - mean_G r) / (std_G r + 1e-4)`, std unbiased.

    Args:
        rewards: `[B, G]`, G at least 2.

    Returns:
        `[B, G]`; 0 for a group without variance.
    """
    spread = rewards.std(dim=1, keepdim=True)
    return (rewards - rewards.mean(dim=1, keepdim=True)) / (spread + 1e-4)


class PolicyLoss(NamedTuple):
    """What one batch of groups gives; scalars."""

    loss: Tensor
    kl: Tensor


def grpo(log_probs: Sequence[Tensor], reference_log_probs: Sequence[Tensor], advantages: Tensor, beta: float) -> PolicyLoss:
    """`-mean_{i,g} 1/T_g sum_t [ pi_t / stopgrad(pi_t) * A_g - beta * (exp(q) - q - 1) ]`, `q = log pi_ref_t - log pi_t`.

    Args:
        log_probs: for each of G trajectories, log pi_t(y) of every step, `[T_g, B]`.
        reference_log_probs: the same of the reference policy.
        advantages: `[B, G]`.
        beta: weight of the KL term.

    Returns:
        The loss, and the mean of the KL estimate (Schulman's k3) as weighted in the loss.
    """
    policy_terms, kl_terms = [], []
    for g, (log_prob, reference) in enumerate(zip(log_probs, reference_log_probs, strict=True)):
        ratio = torch.exp(log_prob - log_prob.detach())  # 1 in value; carries the gradient of log pi
        q = reference - log_prob
        policy_terms.append((ratio * advantages[:, g]).mean(dim=0))
        kl_terms.append((torch.exp(q) - q - 1).mean(dim=0))
    kl = torch.stack(kl_terms).mean()
    return PolicyLoss(beta * kl - torch.stack(policy_terms).mean(), kl)
