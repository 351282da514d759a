"""Cross-entropy of the next item: over the whole catalogue, or over a sample of it (docs/method.md "Stage 1, SPT", CE).

The sampled softmax estimates the normaliser by importance sampling (Bengio & Senécal 2008): with K negatives j drawn from q,
`Z = exp(s_y) + sum_{j != y} exp(s_j)` is estimated without bias by `exp(s_y) + sum_{j drawn, j != y} exp(s_j - log(K q_j))`.
A negative's logit is lowered by the log of how often it is expected among those drawn ("log-q correction"); the target's is
not, as it is always there. (TensorFlow lowers the target's too, as do Yi et al. 2019, whose negatives are the batch's targets;
with negatives drawn with replacement that loss would not become the full one as K grows.)
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from lares_pl.checks import check_fields
from lares_pl.errors import LaresError
from lares_pl.model.catalogue_head import CatalogueHead


def sampled_log_probs(own: Tensor, others: Tensor, log_expected: Tensor, hits: Tensor) -> Tensor:
    """`own - log(exp(own) + sum_j exp(others_j - log_expected_j))`, over the j that are no hits.

    Args:
        own: scores of the targets, `[R]`.
        others: scores of the negatives, `[R, K]`.
        log_expected: log of how often each of them is expected among those drawn, `[K]`.
        hits: where a negative is a row's own target, `[R, K]`.

    Returns:
        `[R]`.
    """
    corrected = (others - log_expected).masked_fill(hits, -torch.inf)
    return own - torch.cat([own[:, None], corrected], dim=1).logsumexp(dim=1)


@dataclass(frozen=True)
class Proposal:
    """What negatives are drawn from: item j with probability `q_j`, with replacement.

    Args:
        cumulative: `q_0 + … + q_j`, `[N + 1]`, float64.
        log_q: `[N + 1]`, float32.
    """

    cumulative: Tensor
    log_q: Tensor

    @staticmethod
    def of(counts: Tensor, power: float) -> Proposal:
        """`q_j` in proportion to `(counts_j + 1) ** power`: every class of the softmax can be drawn, padding too.

        Args:
            counts: `[N + 1]`.
            power: 0 is uniform, 1 popularity.
        """
        weights = (counts.double() + 1) ** power
        q = weights / weights.sum()
        return Proposal(q.cumsum(dim=0), q.log().float())

    def draw(self, count: int, draws: torch.Generator) -> Tensor:
        """So many items, `[count]`; the draws are made on the CPU, so that they are the same for any device."""
        places = torch.rand(count, dtype=torch.float64, generator=draws).to(self.cumulative.device)
        return torch.searchsorted(self.cumulative, places, right=True).clamp(max=len(self.cumulative) - 1)


class NextItemLoss(ABC):
    """A loss of predicting the next item."""

    #: whether it draws negatives by how often items are targets of training
    draws_negatives = False

    def proposal(self, counts: Tensor) -> Proposal | None:
        """What negatives are drawn from, for items that are so often targets of training `[N + 1]`."""
        return None

    @abstractmethod
    def __call__(
        self,
        head: CatalogueHead,
        states: Tensor,
        targets: Tensor,
        weights: Tensor,
        proposal: Proposal | None,
        draws: torch.Generator,
    ) -> Tensor:
        """Weighted sum over rows, a scalar.

        Args:
            head: scores of the rows against the catalogue.
            states: `[R, d]`.
            targets: `[R]`.
            weights: of the rows, `[R]`; 1/R each is the mean.
            proposal: what `proposal` gave.
            draws: a generator in the same state on all processes.
        """


@dataclass(frozen=True)
class FullSoftmax(NextItemLoss):
    """Cross-entropy over the whole catalogue; the paper's."""

    def __call__(
        self,
        head: CatalogueHead,
        states: Tensor,
        targets: Tensor,
        weights: Tensor,
        proposal: Proposal | None,
        draws: torch.Generator,
    ) -> Tensor:
        return head.cross_entropy(states, targets, weights)


@dataclass(frozen=True)
class SampledSoftmax(NextItemLoss):
    """Cross-entropy over the target and negatives drawn anew for each batch, with log-q correction.

    Costs rows times negatives whatever the size of the catalogue; approaches the full softmax as negatives grow.

    Args:
        negatives: how many are drawn, with replacement, shared by all rows of the batch.
        power: items are drawn in proportion to `(training targets + 1) ** power`: 0 is uniform, 1 popularity.
    """

    negatives: int = 4096
    power: float = 0.75
    draws_negatives = True

    def __post_init__(self) -> None:
        check_fields(self)
        if self.negatives < 1 or not 0 <= self.power <= 1:
            raise LaresError(
                "SampledSoftmax: negatives must be at least 1 and power within [0, 1], "
                f"got negatives={self.negatives}, power={self.power}"
            )

    def proposal(self, counts: Tensor) -> Proposal:
        return Proposal.of(counts, self.power)

    def __call__(
        self,
        head: CatalogueHead,
        states: Tensor,
        targets: Tensor,
        weights: Tensor,
        proposal: Proposal | None,
        draws: torch.Generator,
    ) -> Tensor:
        assert proposal is not None
        drawn = proposal.draw(self.negatives, draws)
        own, others = head.sampled_scores(states, targets, drawn)
        log_expected = proposal.log_q[drawn] + math.log(self.negatives)
        return -(weights * sampled_log_probs(own, others, log_expected, drawn == targets[:, None])).sum()
