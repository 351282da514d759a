"""The catalogue head: what states say about items, without ever writing the whole score matrix down.

Questions: the log-probability of the target, a loss of it, its rank, the best k. Each goes through the scores tile by tile.
`scores` gives the whole matrix, for small catalogues and tests.

Item vectors may be sharded by rows over processes (a DTensor, `lares_pl.model.sharding`) that have the same states: each scores
its rows, and they agree on maxima, sums and counts of `[R]` numbers; all of them get the same answers.

Item 0 (padding) is a class of the softmax, as in the reference implementation; it is never ranked or recommended.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from lares_pl.data.loading.item_pairs import ItemPairs
from lares_pl.model import target_softmax, tiles
from lares_pl.model.sharding import Rows, rows_of
from lares_pl.model.similarity import Similarity
from lares_pl.model.target_softmax import LossOfRows
from lares_pl.model.tiles import Repeats, ranking_tile_of, ranking_tile_shape, repeats_of, slices, tile_of, upcast


@dataclass(frozen=True)
class CatalogueHead:
    """Scores of R states against the catalogue: `normalise(state) · normalise(item) / tau [+ bias of items already read]`.

    Args:
        vectors: item vectors with the padding row, `[N + 1, d]`, whole or sharded.
        similarity: how states and items are compared.
        repeats: what each of the R rows has read, and how that changes its score; None where the model does not mind.
    """

    vectors: Tensor
    similarity: Similarity
    repeats: Repeats | None = None

    # ------------------------------------------------------------ rows

    def repeat(self, times: int, rows: int) -> CatalogueHead:
        """The head of `times` copies of its rows, one copy after the other.

        Args:
            times: number of copies.
            rows: number of rows of one copy.
        """
        if self.repeats is None or times == 1:
            return self
        return replace(self, repeats=replace(self.repeats, pairs=self.repeats.pairs.repeat(times, rows)))

    def of_range(self, rows: slice, count: int) -> CatalogueHead:
        """The head of a range of its `count` rows."""
        return replace(self, repeats=repeats_of(self.repeats, rows, count))

    def select(self, rows: Tensor) -> CatalogueHead:
        """The head of some of its rows, as a mask `[R]`."""
        if self.repeats is None:
            return self
        return replace(self, repeats=replace(self.repeats, pairs=self.repeats.pairs.select(rows)))

    def prepare(self, states: Tensor) -> tuple[Tensor, Rows]:
        """States `[R, d]`, and the item vectors that this process holds, such that dot products are the scores."""
        rows = rows_of(self.vectors)
        states, vectors = self.similarity.transform(states, rows.vectors)
        return states, replace(rows, vectors=vectors)

    # ------------------------------------------------------------ probabilities

    def loss(self, states: Tensor, targets: Tensor, of_rows: LossOfRows) -> tuple[Tensor, Tensor]:
        """A loss that is a sum over rows of what each target's log-probability gives; differentiable once.

        Args:
            states: `[R, d]`.
            targets: `[R]`.
            of_rows: the share of some rows, a scalar, from their log-probabilities `[rows]` and which rows they are.

        Returns:
            The loss, and the log-probability of each target `[R]`, without gradient.
        """
        return target_softmax.target_loss(*self.prepare(states), targets, self.repeats, of_rows)

    def cross_entropy(self, states: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        """Weighted sum of `-log softmax(scores)[target]`.

        Args:
            states: `[R, d]`.
            targets: `[R]`.
            weights: of the rows, `[R]`; the mean where None.
        """
        if weights is None:
            share = 1 / len(targets)
            return self.loss(states, targets, lambda log_probs, rows: -share * log_probs.sum())[0]
        return self.loss(states, targets, lambda log_probs, rows: -(weights[rows] * log_probs).sum())[0]

    def log_prob(self, states: Tensor, targets: Tensor) -> Tensor:
        """`log softmax(scores)[target]`, without gradient: states `[R, d]`, targets `[R]` -> `[R]`."""
        return target_softmax.target_log_prob(*self.prepare(states), targets, self.repeats)

    def sampled_scores(self, states: Tensor, targets: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
        """Scores of the targets `[R]`, and of the same K items for all rows `[R, K]`, float32; with gradient.

        Args:
            states: `[R, d]`.
            targets: `[R]`.
            items: `[K]`.
        """
        vectors = rows_of(self.vectors).look_up(torch.cat([targets, items]))
        left, right = self.similarity.transform(states, vectors)
        own = (left * right[: len(targets)]).sum(dim=1).float()
        others = (left @ right[len(targets) :].T).float()
        if self.repeats is None:
            return own, others
        at = self.repeats.pairs.matches(items)
        return tiles.with_repeats(own, targets, self.repeats), others.index_put(at, self.repeats.bias.expand(len(at[0])), True)

    def subset(self, items: Tensor, local_index: Tensor) -> CatalogueHead:
        """The head of a catalogue of some of the items; what is read of others counts no more.

        Args:
            items: which, padding first, `[n + 1]`.
            local_index: of each item among those, 0 for the others, `[N + 1]`.
        """
        repeats = self.repeats
        if repeats is not None:
            repeats = replace(repeats, pairs=ItemPairs(repeats.pairs.rows, local_index[repeats.pairs.items]))
        vectors = self.vectors if len(items) == len(self.vectors) else self.vectors[items]
        return replace(self, vectors=vectors, repeats=repeats)

    def with_repeats(self, scores: Tensor, items: Tensor, rows: slice | None = None) -> Tensor:
        """Scores `[rows, n]` of items of each row's own `[rows, n]`, changed where the row has read them.

        Args:
            scores: without that change.
            items: 0 where there is none.
            rows: which of the head's rows; all of them where None.
        """
        if self.repeats is None:
            return scores
        pairs = self.repeats.pairs if rows is None else self.repeats.pairs.within_rows(rows)
        return torch.where(pairs.contain(items, len(self.vectors)), scores + self.repeats.bias, scores)

    def item_log_probs(self, states: Tensor, items: Tensor) -> Tensor:
        """`log softmax` over each row's own items, with gradient; for lists far shorter than the catalogue.

        Args:
            states: `[R, d]`.
            items: `[R, C]`; 0 where there is none, -inf in the result.
        """
        rows, count = items.shape
        left, right = self.similarity.transform(states, rows_of(self.vectors).look_up(items.flatten()))
        scores = (left[:, None] * right.view(rows, count, -1)).sum(dim=2).float()
        scores = self.with_repeats(scores, items)
        return scores.masked_fill(items == 0, -torch.inf).log_softmax(dim=1)

    # ------------------------------------------------------------ rankings

    def _prepare_for_ranking(self, states: Tensor) -> tuple[Tensor, Rows]:
        """As `prepare`, at least in float32."""
        left, table = self.prepare(upcast(states))
        return left, replace(table, vectors=upcast(table.vectors))

    def rank(self, states: Tensor, targets: Tensor, excluded: ItemPairs | None = None) -> Tensor:
        """Rank of each target among all items, 1 is best; ties, up to rounding, count against the target.

        Args:
            states: `[R, d]`.
            targets: `[R]`.
            excluded: items left out of the ranking; a target itself is never left out.

        Returns:
            `[R]`, int64.
        """
        return self.rank_both(states, targets, excluded)[1]

    @torch.no_grad()
    def rank_both(self, states: Tensor, targets: Tensor, excluded: ItemPairs | None) -> tuple[Tensor, Tensor]:
        """Rank of each target among all items, and among those that are not excluded; arguments as of `rank`.

        Scores are computed and compared once; excluded items then count as if below the target.
        """
        left, table = self._prepare_for_ranking(states)
        rows_step, classes_step = ranking_tile_shape(left, table.most)
        parts = list(slices(len(table.vectors), classes_step))
        row_ranges = list(slices(len(states), rows_step))
        pairs = [] if excluded is None else excluded.by_rows(row_ranges)
        # items of a tile that score below the target, and the target; without numbers, none does and the target is last
        below_target = torch.zeros(2, len(targets), dtype=torch.int64, device=targets.device)
        for number, rows in enumerate(row_ranges):
            chunk, own_items, repeats = left[rows], targets[rows], repeats_of(self.repeats, rows, len(states))
            own = table.all_reduce_sum(tiles.least_of_targets(chunk, table, own_items, repeats).float())[:, None]
            left_out = pairs[number : number + 1]
            if left_out and not (table.complete and len(parts) == 1):
                left_out = left_out[0].by_classes(table.start, parts)
            everywhere, unseen = below_target[:, rows]
            for tile, part in enumerate(parts):
                scores = ranking_tile_of(chunk, table, part, repeats)
                start = table.start + part.start
                _leave_out(scores, slice(start, table.start + part.stop), None)
                below = torch.lt(scores, own, out=scores)
                _set(below, own_items - start, 1)
                everywhere += below.sum(dim=1).long()
                if left_out:
                    columns = left_out[tile].items
                    below.view(-1).index_fill_(0, columns.add(left_out[tile].rows, alpha=below.shape[1]), 1)
                    unseen += below.sum(dim=1).long()
        # a target's rank counts itself
        everywhere, unseen = len(self.vectors) + 1 - table.all_reduce_sum(below_target)
        return everywhere, everywhere if excluded is None else unseen

    @torch.no_grad()
    def top_k(self, states: Tensor, k: int, excluded: ItemPairs | None = None) -> tuple[Tensor, Tensor]:
        """The best k items of each state.

        Args:
            states: `[R, d]`.
            k: how many; N where it is more.
            excluded: items left out of the ranking.

        Returns:
            Scores `[R, k]` in descending order (-inf where fewer than k items remain) and item indices `[R, k]`.
        """
        k = min(k, len(self.vectors) - 1)  # padding is never ranked
        left, table = self._prepare_for_ranking(states)
        here = slice(table.start, table.start + len(table.vectors))
        own = min(k, table.most)
        best_scores = states.new_full((len(states), own), -torch.inf, dtype=torch.float32)
        best_items = torch.zeros(len(states), own, dtype=torch.int64, device=states.device)
        found = min(own, len(table.vectors))
        for rows in slices(len(states), tiles.rows_of_all_classes(states, table.most)):
            everything = slice(0, len(table.vectors))
            chunk = ranking_tile_of(left[rows], table, everything, repeats_of(self.repeats, rows, len(states)))
            _leave_out(chunk, here, None if excluded is None else excluded.within_rows(rows))
            best_scores[rows, :found], best_items[rows, :found] = chunk.topk(found, dim=1)
        best_scores, best_items = table.all_gather(best_scores), table.all_gather(best_items + table.start)
        if best_scores.shape[1] > k:
            best_scores, order = best_scores.topk(k, dim=1)
            best_items = best_items.gather(1, order)
        return best_scores, best_items

    # ------------------------------------------------------------ the whole matrix

    def scores(self, states: Tensor) -> Tensor:
        """All scores, `[R, N + 1]`; the padding column is included."""
        left, table = self.prepare(states)
        own = tile_of(left, table, slice(0, len(table.vectors)), self.repeats)[0].float()
        return table.all_gather(F.pad(own, (0, table.most - len(table.vectors))))[:, : len(self.vectors)]

    @torch.no_grad()
    def divergence(self, states: Tensor, others: Tensor) -> Tensor:
        """`KL(p || q)` in nats between the distributions of two states over the catalogue, padding included as in training.

        Args:
            states: whose distribution is p, `[R, d]`.
            others: whose distribution is q, `[R, d]`.

        Returns:
            `[R]`.
        """
        found = torch.empty(len(states), device=states.device)
        for rows in slices(len(states), max(1, tiles.CHUNK // len(self.vectors))):
            head = self.of_range(rows, len(states))
            p, q = (head.scores(some[rows]).log_softmax(dim=1) for some in (states, others))
            found[rows] = relative_entropy(p.exp(), q - p)
        return found


def relative_entropy(p: Tensor, log_ratio: Tensor) -> Tensor:
    """`KL(p || q)` in nats, `[R]`, of distributions p and `log q - log p`, `[R, C]` each.

    The sum of p (r - 1 - log r), r = q / p, is that of p log(p / q), but no term is negative, and errors of rounding come in
    squared, so that it is good to 1e-12 where log-probabilities are to 1e-6.
    """
    kl: Tensor = (p * (log_ratio.expm1() - log_ratio)).sum(dim=1)
    return kl


def _leave_out(scores: Tensor, classes: slice, excluded: ItemPairs | None) -> None:
    """Put padding and excluded items of a tile of scores at -inf, in place."""
    if classes.start == 0:
        scores[:, 0] = -torch.inf
    if excluded is not None:
        left_out = excluded.within_classes(classes)
        scores[left_out.rows, left_out.items] = -torch.inf


def _set(scores: Tensor, places: Tensor, value: float) -> None:
    """Put one value a row of `[rows, classes]` scores, in place, where the row's place is within it."""
    within = (places >= 0) & (places < scores.shape[1])
    places = places.clamp(0, scores.shape[1] - 1)[:, None]
    scores.scatter_(1, places, torch.where(within[:, None], value, scores.gather(1, places)))
