"""Alignment of latent states by in-batch contrast: TLA and SLA (docs/method.md, "Stage 1, SPT")."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lares_pl.checks import check_fields
from lares_pl.errors import LaresError


class GatheredRows(NamedTuple):
    """Rows of all processes, padded so that their number is known without asking."""

    rows: Tensor  # [R, d]
    real: Tensor  # [R] bool, False for padding


def info_nce(
    anchors: Tensor, positives: Tensor, tau: float, ignored: Tensor | None = None, real: Tensor | None = None
) -> Tensor:
    """In-batch cross-entropy of `a b^T / tau`: row i of `positives` is the positive of row i of `anchors`.

    Args:
        anchors, positives: `[B, d]`; normalised beforehand where cosines are meant.
        tau: temperature.
        ignored: pairs of rows that are not each other's negatives, `[B, B]` bool.
        real: False for rows that do not count, `[B]` bool; None: all do.

    Returns:
        Scalar, mean over the rows that count.
    """
    logits = (anchors @ positives.T).float() / tau
    if ignored is not None:
        logits = logits.masked_fill(ignored, -torch.inf)
    own = torch.arange(len(anchors), device=anchors.device)
    if real is None:
        return F.cross_entropy(logits, own)
    return (F.cross_entropy(logits, own, reduction="none") * real).sum() / real.sum()


@dataclass(frozen=True)
class Alignment:
    """`(NCE(a, b) + NCE(b, a)) / 2` of two sets of user states; how they are compared.

    States leave a LayerNorm with a norm of about sqrt(d). Dot products at tau 1, as released, are then logits of up to d, whose
    gradients dominate the cross-entropy; cosines at tau 0.1 are not.

    Args:
        cosine: compare by cosines; by dot products otherwise (the paper).
        tau: temperature, above 0; the paper's is 1.
        mask_same_target: instances with the same target are not each other's negatives (in the paper they are).
    """

    cosine: bool = True
    tau: float = 0.1
    mask_same_target: bool = True

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.tau > 0:
            raise LaresError(f"Alignment: tau must be above 0, got {self.tau}")

    def normalise(self, states: Tensor) -> Tensor:
        """What is done to states before their dot products, `[*, d]` -> `[*, d]`."""
        return F.normalize(states, dim=-1) if self.cosine else states

    def __call__(self, a: Tensor, b: Tensor, targets: Tensor | None = None, real: Tensor | None = None) -> Tensor:
        """TLA for two trajectories' user states, SLA for two steps of one trajectory.

        Args:
            a, b: user states `[B, d]`.
            targets: of the instances, `[B]`; needed with `mask_same_target`.
            real: False for rows that only pad, `[B]` bool; None: all are instances.
        """
        a, b = self.normalise(a), self.normalise(b)
        ignored = _not_negatives(targets if self.mask_same_target else None, real)
        return (info_nce(a, b, self.tau, ignored, real) + info_nce(b, a, self.tau, ignored, real)) / 2


def _not_negatives(targets: Tensor | None, real: Tensor | None) -> Tensor | None:
    """Pairs of different rows of which the second is no negative of the first, `[B, B]` bool: same target, or padding."""
    kinds = [] if targets is None else [targets == targets[:, None]]
    if real is not None:
        kinds.append((~real).repeat(len(real), 1))
    return reduce(torch.logical_or, kinds).fill_diagonal_(False) if kinds else None


def alignment_losses(
    alignment: Alignment,
    a: Tensor,
    b: Tensor,
    step: int | Tensor,
    targets: Tensor,
    of_all: Callable[[Tensor], GatheredRows] | None = None,
) -> tuple[Tensor, Tensor]:
    """Trajectory- and step-level alignment of a pair of trajectories.

    Args:
        alignment: how states are compared.
        a: user states of the same histories, `[T, B, d]`.
        b: user states of histories with the same targets, `[T, B, d]`.
        step: index (from 0) of the step that is aligned with the end of `a`; `[1]` as a tensor of the states' device.
        targets: of the instances, `[B]`.
        of_all: gives the rows of all processes for those of this one.

    Returns:
        TLA and SLA; SLA is 0 where T = 1.
    """
    of_step = a[step] if isinstance(step, int) else a.index_select(0, step)[0]
    rows, real = torch.cat([a[-1], of_step, b[-1]], dim=1), None
    if of_all is not None:
        rows, real = of_all(rows)
        targets = of_all(targets[:, None]).rows[:, 0] if alignment.mask_same_target else targets
    last, of_step, of_partner = rows.chunk(3, dim=1)
    step_level = alignment(last, of_step, targets, real) if len(a) > 1 else a.new_zeros(())
    return alignment(last, of_partner, targets, real), step_level
