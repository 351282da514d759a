"""Ranking a subset of the catalogue: the same candidates for all users, or separate ones per user."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lares_pl.data.loading.item_pairs import ItemPairs
from lares_pl.model import tiles
from lares_pl.model.backbone import RecurrentBackbone
from lares_pl.model.catalogue_head import CatalogueHead


class Candidates(ABC):
    """The items to rank."""

    @abstractmethod
    def best(
        self, head: CatalogueHead, states: Tensor, k: int, rows: Sequence[int], left_out: Sequence[np.ndarray] | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Scores and indices of the best items of each state, `[R, at most k]` each; -inf where none is left.

        Args:
            head: scores of the states against the catalogue.
            states: `[R, d]`.
            k: how many.
            rows: number of the user that each state is of.
            left_out: items not to rank for each state.
        """


class SharedCandidates(Candidates):
    """The same items for all users.

    Args:
        backbone: the model.
        choice: the items, ascending.
    """

    def __init__(self, backbone: RecurrentBackbone, choice: Tensor) -> None:
        padding = choice.new_zeros(1)
        self.items = torch.cat([padding, choice])
        self.place = choice.new_zeros(backbone.items + 1)  # of each item among those that are ranked; padding's if it is not
        self.place[choice] = torch.arange(1, len(choice) + 1, device=choice.device)

    def best(
        self, head: CatalogueHead, states: Tensor, k: int, rows: Sequence[int], left_out: Sequence[np.ndarray] | None
    ) -> tuple[np.ndarray, np.ndarray]:
        excluded = None
        if left_out is not None:
            of_state = torch.repeat_interleave(torch.tensor([len(items) for items in left_out]))
            places = self.place[torch.from_numpy(np.concatenate(left_out)).to(states.device)]
            excluded = ItemPairs(of_state.to(states.device), places)
        scores, places = head.subset(self.items, self.place).top_k(states, min(k, len(self.items) - 1), excluded)
        return scores.cpu().numpy(), self.items[places].cpu().numpy()


class PerUserCandidates(Candidates):
    """Items of each user's own.

    Args:
        choices: the items of each user.
    """

    def __init__(self, choices: Sequence[Tensor]) -> None:
        self.choices = choices

    @torch.no_grad()
    def best(
        self, head: CatalogueHead, states: Tensor, k: int, rows: Sequence[int], left_out: Sequence[np.ndarray] | None
    ) -> tuple[np.ndarray, np.ndarray]:
        most = max(len(self.choices[row]) for row in rows)
        best_scores = torch.full((len(rows), min(k, most)), -torch.inf, device=states.device)
        best_items = torch.zeros(best_scores.shape, dtype=torch.int64, device=states.device)
        left, table = head.prepare(states)
        step = max(1, tiles.CHUNK // max(1, most * left.shape[1]))  # each row looks up vectors of its own
        for start in range(0, len(rows), step):
            part = slice(start, start + step)
            items = pad_sequence([self.choices[row] for row in rows[part]], batch_first=True)  # [part, most of any]
            scores = (left[part, None] * table.vectors[items]).sum(dim=2).float().masked_fill(items == 0, -torch.inf)
            scores = head.with_repeats(scores, items, part)
            for row, seen in enumerate([] if left_out is None else left_out[part]):
                scores[row, torch.isin(items[row], torch.from_numpy(seen).to(items.device))] = -torch.inf
            found = min(k, items.shape[1])
            best_scores[part, :found], places = scores.topk(found, dim=1)
            best_items[part, :found] = items.gather(1, places)
        return best_scores.cpu().numpy(), best_items.cpu().numpy()
