"""Alignment of latent states by in-batch contrast: TLA and SLA (docs/method.md "Stage 1, SPT")."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def info_nce(anchors: Tensor, positives: Tensor, tau: float) -> Tensor:
    """In-batch cross-entropy of `a b^T / tau`: row i of `positives` is the positive of row i of `anchors`.

    Args:
        anchors, positives: `[B, d]`; normalised beforehand where cosines are meant.
        tau: temperature.

    Returns:
        Scalar, mean over the batch.
    """
    logits = (anchors @ positives.T).float() / tau
    return F.cross_entropy(logits, torch.arange(len(anchors), device=anchors.device))


def alignment(a: Tensor, b: Tensor, tau: float) -> Tensor:
    """`(NCE(a, b) + NCE(b, a)) / 2`: TLA for two trajectories' user states, SLA for two steps of one trajectory.

    Args:
        a, b: user states `[B, d]`; normalised beforehand where cosines are meant.
        tau: temperature.
    """
    return (info_nce(a, b, tau) + info_nce(b, a, tau)) / 2
