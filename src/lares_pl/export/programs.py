"""The model as traceable modules: plain tensors in and out, with a dynamic batch size and optionally a dynamic depth.

There are two programs: user states (histories to vectors whose inner products with the item vectors are the scores), and
rankings (the same, then the best k items). Both reproduce the model in evaluation, including the noise of initial states,
which is a function of the history and computed in the program.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._higher_order_ops.while_loop import while_loop

from lares_pl.model.backbone import RecurrentBackbone
from lares_pl.model.padded_layout import PaddedLayout
from lares_pl.model.recurrence import Noise, keyed_uniform, token_keys

BATCH = torch.export.Dim("batch")


class GivenLayout(PaddedLayout):
    """Histories that come padded `[B, L]`: any number of them."""

    def arrange(self, items: Tensor) -> Tensor:
        return items


class GivenNoise(Noise):
    """`KeyedNoise` of histories that come padded; padding has its history's key, as there.

    Args:
        items: `[B, L]`, 0 at padding.
        layout: of the same histories.
    """

    def __init__(self, items: Tensor, layout: GivenLayout) -> None:
        self.keys = torch.where(layout.mask, token_keys(items, layout.positions), 0).cumsum(dim=1)

    def uniform(self, layout: PaddedLayout, size: int) -> Tensor:  # type: ignore[override]
        return keyed_uniform(self.keys, layout.positions, size)


# ---------------------------------------------------------------- depth


class Depth(ABC):
    """How the number of steps of a program is determined."""

    #: its inputs other than the histories: names and example values
    inputs: dict[str, Tensor]
    #: depths at which it is compared with the model
    checked: tuple[int, ...]
    #: whether the scores of all steps are averaged
    average_steps: bool

    @abstractmethod
    def reason(self, backbone: RecurrentBackbone) -> nn.Module:
        """A module called as `module(z_0, h, lengths, depth) -> z_T` (or the mean over steps), states `[B, L, d]`."""


@dataclass(frozen=True)
class FixedDepth(Depth):
    """A fixed number of steps, unrolled: a program without a loop.

    Args:
        steps: T; 0 gives the pre-block's states.
        average_steps: whether the scores of all steps are averaged.
    """

    steps: int
    average_steps: bool = False

    @property
    def inputs(self) -> dict[str, Tensor]:  # type: ignore[override]
        return {}

    @property
    def checked(self) -> tuple[int, ...]:  # type: ignore[override]
        return (self.steps,)

    def reason(self, backbone: RecurrentBackbone) -> nn.Module:
        return _Unrolled(backbone, self.steps, self.average_steps)


@dataclass(frozen=True)
class InputDepth(Depth):
    """The depth is an integer input of the program, with a loop over the steps. Below 1: the pre-block's states.

    Args:
        usual: depth to trace with; the program is compared with the model at depths around it.
        average_steps: whether the scores of all steps are averaged.
    """

    usual: int
    average_steps: bool = False

    @property
    def inputs(self) -> dict[str, Tensor]:  # type: ignore[override]
        return {"depth": torch.tensor(self.usual)}

    @property
    def checked(self) -> tuple[int, ...]:  # type: ignore[override]
        return tuple(sorted({0, 1, self.usual, 2 * self.usual}))

    def reason(self, backbone: RecurrentBackbone) -> nn.Module:
        return _Looped(backbone, self.average_steps)


class Step(nn.Module):
    """One reasoning step of padded histories."""

    def __init__(self, backbone: RecurrentBackbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, state: Tensor, context: Tensor, lengths: Tensor) -> Tensor:
        """`[B, L, d]`, `[B, L, d]`, `[B]` -> `[B, L, d]`."""
        return self.backbone.step(state, context, GivenLayout(lengths, self.backbone.max_length))


class _Unrolled(nn.Module):
    def __init__(self, backbone: RecurrentBackbone, steps: int, average_steps: bool) -> None:
        super().__init__()
        self.step = Step(backbone)
        self.steps = steps
        self.similarity = backbone.config.similarity
        self.average_steps = average_steps

    def forward(self, state: Tensor, context: Tensor, lengths: Tensor, depth: None = None) -> Tensor:
        if self.steps == 0:
            return context
        path = []
        for _ in range(self.steps):
            state = self.step(state, context, lengths)
            path.append(state)
        return self.similarity.normalise(torch.stack(path)).mean(dim=0) if self.average_steps else state


class _Looped(nn.Module):
    def __init__(self, backbone: RecurrentBackbone, average_steps: bool) -> None:
        super().__init__()
        self.similarity = backbone.config.similarity
        self.average_steps = average_steps
        shape = (2, backbone.max_length, backbone.config.hidden_size)
        # the loop traces its body more strictly than other code, so the body is traced beforehand; its inputs must be
        # different tensors, or they are merged into one
        example = (torch.zeros(shape), torch.ones(shape), torch.ones(2, dtype=torch.int64))
        traced = torch.export.export(Step(backbone), example, dynamic_shapes=({0: BATCH}, {0: BATCH}, {0: BATCH}))
        self._step: list[Callable[..., Tensor]] = [
            traced.module(check_guards=False)
        ]  # in a list, so that its weights are not registered twice

    def forward(self, state: Tensor, context: Tensor, lengths: Tensor, depth: Tensor) -> Tensor:
        step = self._step[0]

        def goes_on(t: Tensor, state: Tensor, *total: Tensor) -> Tensor:
            return t < depth

        def body(t: Tensor, state: Tensor, *total: Tensor) -> tuple[Tensor, ...]:
            state = step(state, context, lengths)
            return t + 1, state, *(so_far + self.similarity.normalise(state) for so_far in total)

        totals = (torch.zeros_like(state),) if self.average_steps else ()
        _, state, *totals_at_end = while_loop(goes_on, body, (torch.zeros((), dtype=torch.int64), state, *totals))
        for total in totals_at_end:
            state = total / depth.clamp(min=1)
        return torch.where(depth < 1, context, state)


# ---------------------------------------------------------------- programs


class UserStates(nn.Module):
    """Histories to user states, ready for a plain inner product with the item vectors.

    Args:
        backbone: the model, in evaluation mode.
        depth: how many steps.
    """

    def __init__(self, backbone: RecurrentBackbone, depth: Depth) -> None:
        super().__init__()
        self.backbone = backbone
        self.reason = depth.reason(backbone)

    def forward(self, items: Tensor, lengths: Tensor, depth: Tensor | None = None) -> Tensor:
        """Items `[B, L]`, oldest first, then 0s; their numbers `[B]` -> `[B, d]`."""
        backbone, config = self.backbone, self.backbone.config
        layout = GivenLayout(lengths, backbone.max_length)
        context = backbone.read(items, layout)
        start = config.initial_state.draw(layout, config.hidden_size, GivenNoise(items, layout), training=False)
        state = layout.last(self.reason(start.to(context.dtype), context, lengths, depth))
        return config.similarity.transform(state, backbone.item_vectors[:1])[0]


class Rankings(nn.Module):
    """Histories to the best k items of each, their scores, and the user states.

    Args:
        states: histories to user states.
        vectors: of the items, ready for a plain inner product, `[N + 1, d]`.
        k: length of the lists.
        repeat_bias: what is added to the scores of items that the history holds, a scalar; None where nothing is.
    """

    vectors: Tensor
    repeat_bias: Tensor | None

    def __init__(self, states: UserStates, vectors: Tensor, k: int, repeat_bias: Tensor | None) -> None:
        super().__init__()
        self.states = states
        self.register_buffer("vectors", vectors)
        self.register_buffer("repeat_bias", repeat_bias)
        self.k = k

    def forward(
        self, items: Tensor, lengths: Tensor, excluded: Tensor, depth: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As `UserStates`; `excluded` `[B, E]` are items not to rank, filled up with 0s -> `[B, k]`, `[B, k]`, `[B, d]`."""
        state = self.states(items, lengths, depth)
        scores = F.linear(
            state, self.vectors
        )  # as `state @ vectors.T`, of which ONNX would keep the transpose beside the table
        if self.repeat_bias is not None:  # an item that the history holds twice is changed once
            scores = scores.scatter(1, items, scores.gather(1, items) + self.repeat_bias)
        never = torch.cat([torch.zeros_like(lengths)[:, None], excluded], dim=1)  # padding, and what was said
        scores = scores.scatter(1, never, torch.full_like(never, -torch.inf, dtype=scores.dtype))
        best_scores, best_items = scores.topk(self.k, dim=1)
        return best_items, best_scores, state


@dataclass(frozen=True)
class Program:
    """A module, and how it is called.

    Args:
        module: what is traced.
        inputs: names and examples of its inputs, in order.
        shapes: names of their dimensions that are left open, in the same order.
        outputs: names of its outputs, in order.
    """

    module: nn.Module
    inputs: dict[str, Tensor]
    shapes: tuple[dict[int, torch.export.Dim] | None, ...]
    outputs: tuple[str, ...]

    @property
    def example(self) -> tuple[Tensor, ...]:
        """One call."""
        return tuple(self.inputs.values())


def item_vectors(backbone: RecurrentBackbone) -> Tensor:
    """Vectors of the items, padding first, whose inner products with the programs' states are the scores, `[N + 1, d]`."""
    return backbone.config.similarity.transform(backbone.item_vectors[:1], backbone.item_vectors.detach())[1]


def repeat_bias(backbone: RecurrentBackbone) -> Tensor | None:
    """What is added to the score of items that the history holds, a scalar; None where nothing is."""
    return backbone.bias_of_repeats.detach().clone() if backbone.config.repeat_bias else None


def programs(backbone: RecurrentBackbone, depth: Depth, k: int) -> tuple[Program, Program]:
    """The programs of a model: user states and rankings.

    Args:
        backbone: the model, in evaluation mode.
        depth: how many steps.
        k: length of the lists.
    """
    lengths = torch.tensor(
        [backbone.max_length, 1, backbone.max_length]
    )  # not two: dimensions of one size could be taken for one
    items = torch.ones(len(lengths), backbone.max_length, dtype=torch.int64)
    items[1, 1:] = 0
    histories = {"items": items, "lengths": lengths}
    excluded = {"excluded": torch.zeros(len(lengths), 2, dtype=torch.int64)}
    open_rows, more = {0: BATCH}, tuple(None for _ in depth.inputs)
    states = UserStates(backbone, depth)
    return (
        Program(states, histories | depth.inputs, (open_rows, open_rows, *more), ("state",)),
        Program(
            Rankings(states, item_vectors(backbone), k, repeat_bias(backbone)),
            histories | excluded | depth.inputs,
            (open_rows, open_rows, {0: BATCH, 1: torch.export.Dim("excluded_items")}, *more),
            ("ranked_items", "scores", "state"),
        ),
    )
