"""How token states are laid out: packed `[M, d]` or padded `[R, L, d]`, behind one interface.

A block is called as `block(x, layout)` and need not know which of the two it gets unless it says so
(`padding_matters = True` asks for the padded form). Everything that depends on the form lives here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property

import torch
from torch import Tensor

from lares_pl.model.attention import attention, join_heads, split_heads


class Layout(ABC):
    """Where the tokens of R histories lie in a tensor of token states.

    Args:
        lengths: real tokens of each history, `[R]`.
        longest: the largest length.
    """

    def __init__(self, lengths: Tensor, longest: int) -> None:
        self.lengths = lengths
        self.longest = longest

    @property
    def rows(self) -> int:
        """Number of histories (R)."""
        return self.lengths.shape[0]  # while a program is exported this is a symbol, no number

    @cached_property
    def mask(self) -> Tensor:
        """True at real tokens of the padded form, `[R, longest]`."""
        return torch.arange(self.longest, device=self.lengths.device) < self.lengths[:, None]

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Leading dimensions of token states: `(M,)` packed, `(R, L)` padded."""

    @property
    @abstractmethod
    def positions(self) -> Tensor:
        """Position of each token in its history, counted from 0, of shape `self.shape`."""

    @abstractmethod
    def row_of_token(self) -> Tensor:
        """Row index of each token, of shape `self.shape`."""

    @abstractmethod
    def arrange(self, items: Tensor) -> Tensor:
        """Put packed item indices `[M]` into this layout (padding is item 0)."""

    @abstractmethod
    def last(self, x: Tensor) -> Tensor:
        """State at the last real position of each history: `[*shape, d]` -> `[R, d]`."""

    @abstractmethod
    def places(self, tokens: Tensor) -> Tensor:
        """Where the states of some tokens stand in `x.flatten(0, -2)`; tokens are counted over all histories without padding.

        Args:
            tokens: `[R]`.
        """

    @abstractmethod
    def causal_filter(self, x: Tensor, weight: Tensor) -> Tensor:
        """`sum_k weight_k * x_(t - k)` within each history, where nothing stands before it.

        Args:
            x: `[*shape, d]`.
            weight: of the own state and those before it, `[K, d]`.

        Returns:
            `[*shape, d]`.
        """

    @abstractmethod
    def prefix(self, rows: int, tokens: int) -> Layout:
        """Layout of the first `rows` histories, which hold `tokens` real tokens; their states are `x[:shape[0]]`."""

    @abstractmethod
    def suffix(self, rows: int, tokens: int) -> Layout:
        """Layout of the last `rows` histories, which hold `tokens` real tokens; their states are `x[-shape[0]:]`."""

    @abstractmethod
    def repeat(self, times: int) -> Layout:
        """Layout of the same histories, `times` times in a row."""

    @abstractmethod
    def keep(self, rows: Tensor) -> tuple[Layout, Tensor]:
        """Layout of some of the histories, and the index of their states along the first dimension of `x`.

        Args:
            rows: mask of those that stay, `[R]`, at least one.
        """

    @abstractmethod
    def pad(self, x: Tensor) -> Tensor:
        """`[*shape, d]` -> `[R, longest, d]`; what stands at padding is unspecified but finite."""

    @abstractmethod
    def unpad(self, x: Tensor) -> Tensor:
        """Inverse of `pad`."""

    @abstractmethod
    def real(self, x: Tensor) -> Tensor:
        """States of real tokens only: `[*shape, d]` -> `[M, d]`."""

    def causal_attention(self, q: Tensor, k: Tensor, v: Tensor, heads: int, p: float) -> Tensor:
        """Scaled dot-product attention of each token over itself and the tokens before it; padding is never attended to.

        Args:
            q, k, v: `[*shape, d]`.
            heads: number of heads; must divide d.
            p: probability of dropping an attention weight.

        Returns:
            `[*shape, d]`.
        """
        queries, keys, values = (split_heads(self.pad(x), heads) for x in (q, k, v))
        return self.unpad(join_heads(attention(queries, keys, values, p, self._mask_of_keys)))

    def last_attention(self, q: Tensor, k: Tensor, v: Tensor, heads: int, p: float) -> Tensor:
        """Attention of the last token of each history over the whole of it.

        Args:
            q: of the last tokens, `[R, d]`.
            k, v: of all tokens, `[*shape, d]`.
            heads: number of heads; must divide d.
            p: probability of dropping an attention weight.

        Returns:
            `[R, d]`.
        """
        queries = split_heads(q[:, None], heads)
        keys, values = self._rows_of_heads(k, heads), self._rows_of_heads(v, heads)
        return join_heads(attention(queries, keys, values, p, self._mask_of_last)).flatten(1)

    def _rows_of_heads(self, x: Tensor, heads: int) -> Tensor:
        """`[*shape, d]` -> `[R, heads, longest, d / heads]`; what stands at padding is unspecified but finite."""
        return split_heads(self.pad(x), heads)

    @cached_property
    def _mask_of_last(self) -> Tensor:
        """-inf at padding, which the last token of a history does not see, `[R, 1, 1, longest]`."""
        mask = self.mask[:, None, None]
        return torch.zeros(mask.shape, device=mask.device).masked_fill_(~mask, -torch.inf)

    @cached_property
    def _mask_of_keys(self) -> Tensor | None:
        """-inf at what a query does not see, `[R, 1, longest, longest]`; None where the causal mask says it all.

        It does unless states at padding are looked at: histories are left-aligned, so no real token sees padding.
        """
        return None
