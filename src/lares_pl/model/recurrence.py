"""What starts the recurrence (initial states), what feeds it (noise), and how the history enters each step (injection).

docs/method.md "Backbone", steps 3 and 4. Initial states and injections are small frozen values chosen by `class_path`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lares_pl.data.loading.histories import Histories
from lares_pl.model.layout import Layout
from lares_pl.model.packed_layout import packed

# ---------------------------------------------------------------- noise


class Noise(ABC):
    """A source of uniform draws for token states."""

    @abstractmethod
    def uniform(self, layout: Layout, size: int) -> Tensor:
        """Draws from the open interval (0, 1), `[*layout.shape, size]`, float32."""


class RandomNoise(Noise):
    """Fresh draws from a generator of the states' device (the device's global one where None)."""

    def __init__(self, generator: torch.Generator | None = None) -> None:
        self.generator = generator

    def uniform(self, layout: Layout, size: int) -> Tensor:
        draws = torch.rand(*layout.shape, size, generator=self.generator, device=layout.lengths.device)
        return draws.clamp_(min=2.0**-25)


# splitmix64's constants (Steele, Lea, Flood 2014) as signed 64-bit numbers
_GAMMA = 0x9E3779B97F4A7C15 - 2**64
_MIX_1 = 0xBF58476D1CE4E5B9 - 2**64
_MIX_2 = 0x94D049BB133111EB - 2**64


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _splitmix64(x: Tensor) -> Tensor:
    x = x * _GAMMA
    x = (x ^ _shift(x, 30)) * _MIX_1
    x = (x ^ _shift(x, 27)) * _MIX_2
    return x ^ _shift(x, 31)


def token_keys(items: Tensor, positions: Tensor) -> Tensor:
    """A checksum of each item and its position, `[*]` int64; a history's key is the sum over its tokens."""
    return _splitmix64(_splitmix64(items.long()) + positions)


def prefix_keys(histories: Histories) -> Tensor:
    """A checksum of each history's items in order up to each of them, `[M]` int64; equal prefixes have equal keys."""
    layout = packed(histories)
    sums = token_keys(histories.items, layout.positions).cumsum(0)
    ends = histories.lengths.cumsum(0)
    before = torch.cat([sums.new_zeros(1), sums[ends[:-1] - 1]])  # of all histories before
    return sums - before[layout.row_of_token()]


def keyed_uniform(keys: Tensor, positions: Tensor, size: int, seed: int = 0) -> Tensor:
    """Draws from (0, 1) as a pure function of all arguments.

    Args:
        keys: of the history up to each token, `[*]` int64.
        positions: of each token, `[*]`.
        size: number of channels d.
        seed: another seed gives other draws.

    Returns:
        `[*, d]`, float32.
    """
    token = _splitmix64(_splitmix64(_splitmix64(keys + 1) + seed) + positions + 1)
    channel = torch.arange(1, size + 1, device=token.device)
    bits = _shift(_splitmix64(token[..., None] + channel), 40)  # 24 bits: exact in float32
    return (bits.float() + 0.5) * 2.0**-24


class KeyedNoise(Noise):
    """Draws that are a pure function of (seed, items of the history up to the token, channel).

    Evaluation uses it, so that the ranking for a history depends neither on the batch, nor on the number of processes,
    nor on what was evaluated before; and a causal model's state at a token not on what follows in a longer history. At padding
    the draws are a function of the whole history and the position.

    Args:
        histories: whose token states are drawn for.
        seed: another seed gives other noise to every history.
    """

    def __init__(self, histories: Histories, seed: int = 0) -> None:
        self.keys = prefix_keys(histories)
        self.last = histories.lengths.cumsum(0) - 1
        self.seed = seed

    def uniform(self, layout: Layout, size: int) -> Tensor:
        keys = layout.arrange(self.keys)
        keys = torch.where(keys == 0, self.keys[self.last][layout.row_of_token()], keys)  # padding
        return keyed_uniform(keys, layout.positions, size, self.seed)


# ---------------------------------------------------------------- initial states


class InitialState(ABC):
    """Gives the latent state z_0 of every token."""

    @abstractmethod
    def draw(self, layout: Layout, size: int, noise: Noise, training: bool) -> Tensor:
        """z_0, `[*layout.shape, size]`, float32."""

    def random(self, training: bool) -> bool:
        """Whether draws differ by their noise; where they don't, trajectories of one history without dropout are equal.

        Then only one of them is computed, so whoever overrides `draw` of a class without noise overrides this as well.
        """
        return True


def _truncated_normal(uniform: Tensor, std: float, cut: float = 3.0) -> Tensor:
    """Map uniform draws to N(0, std^2) cut at ±cut standard deviations (inverse CDF)."""
    tail = 0.5 * (1 + math.erf(-cut / math.sqrt(2)))
    probability = tail + uniform * (1 - 2 * tail)
    return torch.erfinv(2 * probability - 1) * (std * math.sqrt(2))


@dataclass(frozen=True)
class NormalState(InitialState):
    """`z_0 = scale * eps`, `eps ~ N(0, std^2)` cut at ±3 std, in training and evaluation; the paper's.

    Args:
        std: standard deviation before scaling.
        scale: factor on the draw.
    """

    std: float = 1.0
    scale: float = 3.0

    def draw(self, layout: Layout, size: int, noise: Noise, training: bool) -> Tensor:
        return self.scale * _truncated_normal(noise.uniform(layout, size), self.std)


@dataclass(frozen=True)
class ZeroState(InitialState):
    """`z_0 = 0`: reasoning without noise."""

    def draw(self, layout: Layout, size: int, noise: Noise, training: bool) -> Tensor:
        return torch.zeros(*layout.shape, size, device=layout.lengths.device)

    def random(self, training: bool) -> bool:
        return False


@dataclass(frozen=True)
class NormalZeroState(NormalState):
    """Noise in training, 0 in evaluation.

    Args:
        std: standard deviation before scaling.
        scale: factor on the draw.
    """

    def draw(self, layout: Layout, size: int, noise: Noise, training: bool) -> Tensor:
        return super().draw(layout, size, noise, training) if training else ZeroState().draw(layout, size, noise, training)

    def random(self, training: bool) -> bool:
        return training


# ---------------------------------------------------------------- injection


class Injection(ABC):
    """How the encoded history h joins the latent state z before each step."""

    @abstractmethod
    def build(self, hidden_size: int) -> nn.Module:
        """A module called as `module(z, h)`, all `[*, d]`."""


class _Add(nn.Module):
    def forward(self, z: Tensor, h: Tensor) -> Tensor:
        return (z + h) / 2


class _Concat(nn.Module):
    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(2 * hidden_size, hidden_size)

    def forward(self, z: Tensor, h: Tensor) -> Tensor:
        joined: Tensor = self.linear(torch.cat([z, h], dim=-1))
        return joined


class _Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, z: Tensor, h: Tensor) -> Tensor:
        share = torch.sigmoid(self.gate)
        return share * z + (1 - share) * h


@dataclass(frozen=True)
class AddInjection(Injection):
    """`(z + h) / 2`."""

    def build(self, hidden_size: int) -> nn.Module:
        return _Add()


@dataclass(frozen=True)
class ConcatInjection(Injection):
    """`W [z ; h] + b`."""

    def build(self, hidden_size: int) -> nn.Module:
        return _Concat(hidden_size)


@dataclass(frozen=True)
class LinearInjection(Injection):
    """`s * z + (1 - s) * h` with `s = sigmoid(a)`; the scalar a is learned and starts at 0."""

    def build(self, hidden_size: int) -> nn.Module:
        return _Linear()
