"""Change of the distribution over the catalogue between steps, holding two distributions of a few users at a time."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lares_pl.model.catalogue_head import CatalogueHead, relative_entropy
from lares_pl.model.tiles import CHUNK


class Movement(NamedTuple):
    """Entropy and divergence of each step and user, `[T, B]` float32."""

    entropy: Tensor  # of the distribution, nats
    kl: Tensor  # KL(p_t || p_{t-1}), nats; NaN at the first step


@torch.no_grad()
def movement(states: Tensor, head: CatalogueHead) -> Movement:
    """Entropy of the softmax over the catalogue after each step, and its divergence from that of the previous step.

    `KL(p_t || p_{t-1})` is the information that step t adds. As in training, padding is a class of the distribution.

    Args:
        states: user states of every step, `[T, B, d]`.
        head: scores of the B users against the catalogue.
    """
    steps, users, _ = states.shape
    entropy = states.new_empty(steps, users, dtype=torch.float32)
    kl = torch.full_like(entropy, torch.nan)
    size = max(1, (CHUNK // 4 if states.device.type == "cpu" else CHUNK) // len(head.vectors))  # a CPU's cache holds as much
    for start in range(0, users, size):
        rows = slice(start, start + size)
        before: Tensor | None = None
        of_rows = head.of_range(rows, users)
        for t in range(steps):
            now = of_rows.scores(states[t, rows]).log_softmax(dim=1)
            p = now.exp()
            entropy[t, rows] = -(p * now).sum(dim=1)
            if before is not None:
                kl[t, rows] = relative_entropy(p, before.sub_(now))
            before = now
    return Movement(entropy, kl)


def residuals(states: Tensor) -> tuple[Tensor, Tensor]:
    """Change of the user state in each step.

    Args:
        states: `[T, B, d]`.

    Returns:
        `|z_t - z_{t-1}| / |z_t|` and the cosine of z_t and z_{t-1}, `[T, B]` each; NaN at the first step, whose start is noise.
    """
    distance = torch.full(states.shape[:2], torch.nan, device=states.device)
    cosine = torch.full_like(distance, torch.nan)
    if len(states) > 1:
        now, before = states[1:].float(), states[:-1].float()
        distance[1:] = (now - before).norm(dim=-1) / now.norm(dim=-1).clamp(min=1e-12)
        cosine[1:] = torch.cosine_similarity(now, before, dim=-1)
    return distance, cosine
