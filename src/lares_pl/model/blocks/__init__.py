"""The block contract: what may be repeated.

A block is an `nn.Module` called as `block(x, layout) -> x` with token states in and out, same shape and dtype
(`lares_pl.model.layout` says how they lie). It is named by `class_path`; its constructor's first argument is
`hidden_size`. Two more arguments are filled in by the backbone where the constructor has them with default None and
nothing is given for them: `max_length` (longest history) and `dropout` (the backbone's).

A block says two things about itself, as class or instance attributes:

- `padding_matters` (True unless said otherwise): the block looks at padding, or expects `[R, L, d]`; with False it
  may get packed tokens `[M, d]` and must keep to what `Layout` offers.
- `causal` (False unless said otherwise): a position never depends on later ones.

It may offer `last(x, layout) -> [R, d]`, the states it would return at the last position of each history alone: at the end
of a trajectory nothing else is read.

`lares_pl.model.blocks.probe` holds a block to all of it, once, when a backbone is built.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable

from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from lares_pl.errors import LaresError
from lares_pl.model.layout import Layout
from lares_pl.serialization import class_of

BlockFactory = Callable[[int], nn.Module]


def build_block(factory: BlockFactory, hidden_size: int, max_length: int, dropout: float) -> nn.Module:
    """One block of a backbone.

    Args:
        factory: a block class, or a `functools.partial` of one.
        hidden_size: d.
        max_length: longest history L, passed on where the constructor asks for it.
        dropout: the backbone's dropout, passed on where the constructor asks for it.

    Raises:
        LaresError: if the constructor does not take these arguments.
    """
    given = getattr(factory, "keywords", {})
    offered = {"max_length": max_length, "dropout": dropout}
    asked = inspect.signature(class_of(factory)).parameters
    left_open = (None, inspect.Parameter.empty)
    filled = {
        key: value
        for key, value in offered.items()
        if key in asked and given.get(key) is None and asked[key].default in left_open
    }
    try:
        block = factory(hidden_size, **filled)
    except LaresError:
        raise
    except Exception as error:  # whatever a user's own code raises
        called = ", ".join(["hidden_size", *(f"{key}={value!r}" for key, value in {**given, **filled}.items())])
        raise LaresError(
            f"{class_of(factory).__module__}.{class_of(factory).__qualname__}({called}) failed with "
            f"{type(error).__name__}: {error}. A block's constructor "
            "takes the options named for it; its first argument is hidden_size"
        ) from error
    lazy = [name for name, value in block.named_parameters() if isinstance(value, UninitializedParameter)]
    if lazy:
        raise LaresError(f"{class_of(factory).__qualname__}: parameter {lazy[0]} has no size yet; give lazy layers their sizes")
    return block


def last_states(block: nn.Module, x: Tensor, layout: Layout) -> Tensor:
    """What a block returns at the last position of each history: `[*layout.shape, d]` -> `[R, d]`."""
    shortcut: Callable[[Tensor, Layout], Tensor] | None = getattr(block, "last", None)
    if shortcut is not None:
        return shortcut(x, layout)
    return layout.last(block(x, layout))


def padding_matters(block: nn.Module) -> bool:
    """Whether a block needs the padded form."""
    return bool(getattr(block, "padding_matters", True))


def is_causal(block: nn.Module) -> bool:
    """Whether a block says that no position depends on later ones."""
    return bool(getattr(block, "causal", False))
