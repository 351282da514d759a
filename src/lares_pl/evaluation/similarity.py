"""How similar the items of one list are to each other, by their text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lares_pl.evaluation.metrics import Catalogue, Ranking, RankingMetric, check_cutoffs

_UNIT = 2**20


@dataclass(frozen=True)
class IntraListSimilarity(RankingMetric):
    """Mean cosine of the text vectors of two items among the first k of a list, over all such pairs of all lists.

    One minus it is intra-list diversity. Items without text are in no pair. Needs a dataset with item text, whether or not the
    model reads it.

    Args:
        cutoffs: the values of k.
    """

    cutoffs: Sequence[int] = (10,)
    reads_text = True

    def __post_init__(self) -> None:
        check_cutoffs(self, self.cutoffs)

    @property
    def list_length(self) -> int:
        return max(self.cutoffs)

    def size(self, catalogue: Catalogue) -> int:
        return 2 * len(self.cutoffs)

    def count(self, ranking: Ranking, catalogue: Catalogue) -> Tensor:
        assert catalogue.text is not None
        vectors = catalogue.text[ranking.lists]  # [B, k, p], lengths of 2^14
        squares = vectors.long().square().sum(dim=2)
        counts = []
        for k in self.cutoffs:
            # the square of the sum, less the squares, is the sum over pairs, each twice
            products = vectors[:, :k].sum(dim=1, dtype=torch.int64).square().sum(dim=1) - squares[:, :k].sum(dim=1)
            with_text = (squares[:, :k] > 0).sum(dim=1)
            counts += [(products + 128).bitwise_right_shift(8).sum(), (with_text * (with_text - 1)).sum()]
        return torch.stack(counts)

    def results(self, totals: Tensor, catalogue: Catalogue) -> dict[str, float]:
        pairs = zip(self.cutoffs, totals.view(-1, 2).tolist(), strict=True)
        return {f"similarity@{k}": products / _UNIT / max(count, 1) for k, (products, count) in pairs}
