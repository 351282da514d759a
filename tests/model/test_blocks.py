"""Shipped and custom blocks keep the contract; blocks that break it are refused with a message that states what it expects."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import lares_pl
from lares_pl import (
    BSARecBlock,
    ConstantDepth,
    FMLPBlock,
    Histories,
    ItemEmbedder,
    ItemText,
    LaresError,
    LRUBlock,
    RecurrentBackbone,
    RotaryBlock,
    TedRecEmbedder,
)
from lares_pl.model.blocks import build_block
from lares_pl.model.blocks.conv_transformer import CausalFilter
from lares_pl.model.blocks.lru import linear_scan
from lares_pl.model.blocks.rotary import rotate
from lares_pl.model.layout import Layout
from lares_pl.model.packed_layout import packed
from lares_pl.model.padded_layout import padded
from tests.model.test_backbone import HISTORIES
from tests.released import released_backbone

LENGTH, SIZE, ITEMS = 6, 8, 9
TEXT = torch.randn(ITEMS + 1, 5, generator=torch.Generator().manual_seed(1))
# every shipped block, so that a new one is held to the contract without being listed here
BLOCKS: list[type[nn.Module]] = [getattr(lares_pl, name) for name in lares_pl.__all__ if name.endswith("Block")]
CAUSAL = [block for block in BLOCKS if getattr(block, "causal", False)]
PACKED = [block for block in BLOCKS if not getattr(block, "padding_matters", True)]
FAMILIES: dict[str, dict[str, Any]] = {
    **{block.__name__: {"pre_block": block, "core_block": block} for block in BLOCKS},
    "TedRec": {"embedder": TedRecEmbedder(experts=3)},
    "mixed": {"pre_block": FMLPBlock, "core_block": LRUBlock},
    "without positions": {"embedder": ItemEmbedder(positions=False), "core_block": RotaryBlock},
}


def made(seed: int = 0, **settings: Any) -> RecurrentBackbone:
    torch.manual_seed(seed)
    settings = {"hidden_size": SIZE, "pre_layers": 1, "core_layers": 2, "dropout": 0.0, "initializer_range": 0.5} | settings
    text = ItemText(TEXT.clone()) if isinstance(settings.get("embedder"), TedRecEmbedder) else None
    return RecurrentBackbone(ITEMS, LENGTH, released_backbone(**settings), text)


def start(backbone: RecurrentBackbone, histories: Histories = HISTORIES, dtype: torch.dtype = torch.float32) -> Tensor:
    shape = (len(histories), LENGTH) if backbone.padded else (histories.tokens,)
    return torch.randn(*shape, backbone.config.hidden_size, generator=torch.Generator().manual_seed(2), dtype=dtype)


@pytest.mark.parametrize("family", FAMILIES)
def test_t_iterations_equal_the_unrolled_stack(family: str) -> None:
    """Three iterations of the core equal a stack with three copies of its layers."""
    backbone = made(**FAMILIES[family]).eval()
    tall = made(1, **FAMILIES[family], core_layers=6, depth=ConstantDepth(1)).eval()
    weights = backbone.state_dict()
    for name in list(weights):
        if name.startswith("core_blocks."):
            layer, rest = name.removeprefix("core_blocks.").split(".", 1)
            for repeat in (1, 2):
                weights[f"core_blocks.{int(layer) + 2 * repeat}.{rest}"] = weights[name]
    tall.load_state_dict(weights)
    z = start(backbone)
    (states,) = backbone.rollout(HISTORIES, [3], initial_states=[z])
    h, layout = tall.encode(HISTORIES)
    for t in range(3):
        z = tall.core_norm((z + h) / 2)
        for block in tall.core_blocks[2 * t : 2 * t + 2]:
            z = block(z, layout)
        torch.testing.assert_close(states[t], layout.last(z), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_by_finite_differences(family: str) -> None:
    histories = Histories.from_lists([[3, 1, 4], [1]])
    backbone = made(hidden_size=4, **{**FAMILIES[family], "core_layers": 1}).double().eval()
    z = start(backbone, histories, torch.float64)
    # not the items': where padding takes part, its row is read and yet never trained by reading (padding_idx)
    chosen = [(name, p) for name, p in backbone.named_parameters() if name != "embedding.item.weight"]
    names, parameters = zip(*chosen, strict=True)

    def loss(*values: Tensor) -> Tensor:
        def run() -> Tensor:
            (states,) = backbone.rollout(histories, [2], initial_states=[z])
            return states.pow(3).sum()

        named = {f"backbone.{name}": value for name, value in zip(names, values, strict=True)}
        value: Tensor = torch.func.functional_call(_Call(backbone, run), named, ())
        return value

    inputs = tuple(parameter.detach().clone().requires_grad_() for parameter in parameters)
    assert torch.autograd.gradcheck(loss, inputs, fast_mode=True)


class _Call(nn.Module):
    """A closure over a backbone as a module, for `functional_call`."""

    def __init__(self, backbone: RecurrentBackbone, run: Callable[[], Tensor]) -> None:
        super().__init__()
        self.backbone = backbone
        self.run = run

    def forward(self) -> Tensor:
        return self.run()


@pytest.mark.parametrize("block", PACKED)
def test_packed_blocks_ignore_later_items(block: type[nn.Module]) -> None:
    backbone = made(pre_block=block, core_block=block).eval()
    assert backbone.causal
    assert not backbone.padded

    @settings(max_examples=25, deadline=None)
    @given(st.lists(st.integers(1, ITEMS), min_size=2, max_size=LENGTH), st.integers(1, ITEMS), st.data())
    def check(items: list[int], other: int, data: st.DataObject) -> None:
        place = data.draw(st.integers(1, len(items) - 1))
        z = torch.randn(len(items), SIZE)

        def states(history: list[int]) -> Tensor:
            h, layout = backbone.encode(Histories.from_lists([history]))
            return backbone.step(backbone.step(z, h, layout), h, layout)

        changed = [*items[:place], other, *items[place + 1 :]]
        torch.testing.assert_close(states(items)[:place], states(changed)[:place], rtol=1e-5, atol=1e-6)

    check()


@pytest.mark.parametrize("family", ["FMLPBlock", "BSARecBlock", "TedRec", "mixed"])
def test_blocks_that_read_later_items_declare_it(family: str) -> None:
    backbone = made(**FAMILIES[family]).eval()
    assert not backbone.causal
    assert backbone.padded
    states = []
    for last in (5, 6):
        h, layout = backbone.encode(Histories.from_lists([[1, 2, last]]))
        states.append(layout.real(backbone.step(torch.zeros_like(h), h, layout)))
    assert not torch.allclose(states[0][0], states[1][0], rtol=1e-3)
    with pytest.raises(LaresError, match=r"lets a position see later ones.*already know the next item"):
        backbone.prefix_states(HISTORIES, 2)


@pytest.mark.parametrize("block", CAUSAL)
def test_one_pass_gives_the_states_of_separate_prefixes(block: type[nn.Module]) -> None:
    from lares_pl.model.recurrence import Noise

    class Fixed(Noise):
        """Noise by position alone, so that a history and its prefixes get the same."""

        def uniform(self, layout: Layout, size: int) -> Tensor:
            table = torch.rand(LENGTH, size, generator=torch.Generator().manual_seed(3))
            return table[layout.positions].clamp(1e-6, 1 - 1e-6)

    backbone = made(pre_block=block, core_block=block).eval()
    histories = [[3, 1, 4], [5, 9, 2, 6, 5]]
    for depth in (0, 1, 3):
        together = backbone.prefix_states(Histories.from_lists(histories), depth, Fixed())
        prefixes = Histories.from_lists([history[: n + 1] for history in histories for n in range(len(history))])
        (alone,) = backbone.rollout(prefixes, [depth], Fixed())
        torch.testing.assert_close(together, alone[-1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("block", PACKED)
@pytest.mark.parametrize("training", [False, True])
def test_packed_equals_padded(block: type[nn.Module], training: bool) -> None:
    as_padded = type("Padded", (block,), {"padding_matters": True})
    one, two = made(pre_block=block, core_block=block), made(pre_block=as_padded, core_block=as_padded)
    two.load_state_dict(one.state_dict())
    z = torch.randn(len(HISTORIES), LENGTH, SIZE)
    real = torch.arange(LENGTH) < HISTORIES.lengths[:, None]
    results = []
    for backbone, initial in ((one, z[real]), (two, z)):
        backbone.train(training)
        (states,) = backbone.rollout(HISTORIES, [3], initial_states=[initial])
        backbone.head().cross_entropy(states[-1], torch.tensor([1, 2, 3, 4])).backward()
        results.append((states.detach(), {name: p.grad for name, p in backbone.named_parameters()}))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-5, atol=1e-5)
    for name, gradient in results[0][1].items():
        torch.testing.assert_close(gradient, results[1][1][name], rtol=1e-4, atol=1e-4, msg=name)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_state_dict_can_be_saved_and_loaded(family: str, tmp_path: Path) -> None:
    one, two = made(**FAMILIES[family]).eval(), made(7, **FAMILIES[family]).eval()
    z = start(one)
    torch.save(one.state_dict(), tmp_path / "x.pt")
    two.load_state_dict(torch.load(tmp_path / "x.pt", weights_only=True))
    (before,), (after,) = (b.rollout(HISTORIES, [2], initial_states=[z]) for b in (one, two))
    assert torch.equal(before, after)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_gets_a_gradient_and_dropout_has_an_effect(family: str) -> None:
    backbone = made(dropout=0.3, **FAMILIES[family]).train()
    z = start(backbone)
    (states,) = backbone.rollout(HISTORIES, [2], initial_states=[z])
    backbone.head().cross_entropy(states[-1], torch.tensor([1, 2, 3, 4])).backward()
    idle = [name for name, p in backbone.named_parameters() if p.grad is None]
    assert not idle
    (again,) = backbone.rollout(HISTORIES, [2], initial_states=[z])
    assert not torch.allclose(states, again)
    for block in (*backbone.pre_blocks, *backbone.core_blocks):
        assert {module.p for module in block.modules() if isinstance(module, nn.Dropout)} == {0.3}


@pytest.mark.parametrize("block", BLOCKS)
def test_half_precision_works(block: type[nn.Module]) -> None:
    backbone = made(pre_block=block, core_block=block).eval()
    z = start(backbone)
    (exact,) = backbone.rollout(HISTORIES, [2], initial_states=[z])
    with torch.autocast("cpu", torch.bfloat16):
        (mixed,) = backbone.rollout(HISTORIES, [2], initial_states=[z])
    torch.testing.assert_close(mixed.float(), exact, rtol=0.1, atol=0.15)
    (half,) = backbone.bfloat16().rollout(HISTORIES, [2], initial_states=[z.bfloat16()])
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), exact, rtol=0.2, atol=0.3)


# ---------------------------------------------------------------- closed forms


def test_the_linear_scan_equals_the_recurrence() -> None:
    for length in (1, 2, 7, 20):
        x = torch.randn(3, length, 4, dtype=torch.complex128)
        decay = torch.polar(torch.rand(4, dtype=torch.float64), torch.rand(4, dtype=torch.float64))
        h, expected = torch.zeros(3, 4, dtype=torch.complex128), []
        for t in range(length):
            h = decay * h + x[:, t]
            expected.append(h)
        torch.testing.assert_close(linear_scan(x, decay), torch.stack(expected, dim=1))


def test_rotary_scores_depend_on_distance_alone() -> None:
    q, k = torch.randn(2, 4, dtype=torch.float64), torch.randn(2, 4, dtype=torch.float64)

    def score(i: int, j: int) -> Tensor:
        left, right = rotate(q[None], torch.tensor([i]), 100.0), rotate(k[None], torch.tensor([j]), 100.0)
        return (left * right).sum(-1)

    torch.testing.assert_close(score(3, 1), score(9, 7), rtol=1e-6, atol=1e-6)
    assert not torch.allclose(score(3, 1), score(9, 5))
    torch.testing.assert_close(rotate(q[None], torch.tensor([5]), 100.0).norm(), q.norm(), rtol=1e-6, atol=1e-6)


def test_the_lru_starts_with_slow_decays() -> None:
    block = LRUBlock(512, fastest=0.8, slowest=0.99)
    decays = (-block.nu.exp()).exp()
    assert 0.8 <= decays.min().item() < 0.85
    assert 0.97 < decays.max().item() <= 0.99


def test_the_fmlp_filter_is_a_circular_convolution() -> None:
    """Multiplication of spectra equals circular convolution over L positions."""
    block = FMLPBlock(3, max_length=5)
    x = torch.randn(2, 5, 3)
    kernel = torch.fft.irfft(torch.view_as_complex(block.filter.weight.detach()), n=5, dim=0)  # [L, d]
    expected = torch.zeros_like(x)
    for t in range(5):
        for s in range(5):
            expected[:, t] += kernel[(t - s) % 5] * x[:, s]
    torch.testing.assert_close(block.filter(x), expected, rtol=1e-4, atol=1e-6)


def test_invalid_options_are_refused() -> None:
    with pytest.raises(LaresError, match="heads=3 does not divide"):
        BSARecBlock(8, heads=3)
    with pytest.raises(LaresError, match="even number times heads=4"):
        RotaryBlock(4, heads=4)
    with pytest.raises(LaresError, match="frequency_share"):
        BSARecBlock(8, frequency_share=1.5)
    with pytest.raises(LaresError, match="fastest"):
        LRUBlock(8, slowest=1.0)
    with pytest.raises(LaresError, match="experts"):
        TedRecEmbedder(experts=0)
    with pytest.raises(LaresError, match="reads item text"):
        RecurrentBackbone(5, 4, released_backbone(embedder=TedRecEmbedder()))


# ---------------------------------------------------------------- a user's own


class Own(nn.Module):
    """A minimal block; subclasses break it."""

    causal = True
    padding_matters = True

    def __init__(self, hidden_size: int, dropout: float = 0.25, max_length: int | None = None) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden_size, hidden_size)
        self.dropout = nn.Dropout(dropout)
        self.max_length = max_length

    def forward(self, x: Tensor, layout: Layout) -> Any:
        return self.dropout(self.linear(x))


def broken(kind: str) -> type[nn.Module]:
    def forward(self: Own, x: Tensor, layout: Layout) -> Any:
        y = self.linear(x)
        returned: dict[str, Callable[[], Any]] = {
            "tuple": lambda: (y, None),
            "shape": lambda: y[..., :2],
            "dtype": lambda: y.double(),
            "nan": lambda: y / 0 * 0,
            "future": lambda: y.flip(1),
            "others": lambda: y - y.mean(dim=0),
            "raises": lambda: y @ torch.zeros(3, 3),
        }
        return returned[kind]()

    return type(f"Own_{kind}", (Own,), {"forward": forward, "padding_matters": kind != "others"})


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            "tuple",
            r"core_block tests\.model\.test_blocks\.Own_tuple: returned a tuple .*take \[0\].*tensor \[3, 6, 8\] \[histories",
        ),
        (
            "shape",
            r"returned a tensor \[3, 6, 2\] of torch\.float32; expected token states like its input: a tensor \[3, 6, 8\]",
        ),
        ("dtype", r"of torch\.float64; expected"),
        ("nan", r"not finite"),
        ("future", r"says `causal = True`, but states change when a later part.*leak each target"),
        ("others", r"states of one history change with the items of another.*layout\.pad"),
        ("raises", r"failed with RuntimeError: .*expected token states"),
    ],
)
def test_blocks_that_break_the_contract_are_refused(kind: str, message: str) -> None:
    with pytest.raises(LaresError, match=message):
        made(core_block=broken(kind))


def test_the_check_leaves_the_block_and_the_generator_unchanged() -> None:
    class Counting(Own):
        calls = 0

        def forward(self, x: Tensor, layout: Layout) -> Any:
            type(self).calls += 1
            torch.rand(3)
            return super().forward(x, layout)

    torch.manual_seed(5)
    backbone = RecurrentBackbone(
        ITEMS, LENGTH, released_backbone(hidden_size=SIZE, pre_block=Counting, core_layers=0, depth=ConstantDepth(0))
    )
    after = torch.rand(1)
    assert Counting.calls == 6  # of one of its two layers: together, three times alone, twice cut
    assert all(module.training for module in backbone.modules())
    torch.manual_seed(5)
    RecurrentBackbone(ITEMS, LENGTH, released_backbone(hidden_size=SIZE, pre_block=Own, core_layers=0, depth=ConstantDepth(0)))
    assert torch.equal(after, torch.rand(1))


class Leaky(nn.Module):
    """Blocks that leak later items in typical ways, chosen by `kind`."""

    causal = True

    def __init__(self, hidden_size: int, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.padding_matters = kind != "packed rnn"
        self.gru = nn.GRU(hidden_size, hidden_size, batch_first=kind != "batch first")
        self.attention = nn.MultiheadAttention(hidden_size, 1, batch_first=True)
        self.norm = nn.LayerNorm(hidden_size)
        for parameter in self.attention.parameters():
            nn.init.normal_(parameter, std=0.02)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        if self.kind == "unmasked":
            y: Tensor = self.norm(x + self.attention(x, x, x)[0])
        elif self.kind == "from the end":
            y = x + (layout.lengths[:, None] - layout.positions)[..., None]
        else:
            y = self.norm(x + self.gru(x)[0])
        return y


@pytest.mark.parametrize(
    ("kind", "length", "size", "message"),
    [
        ("batch first", 20, 16, r"one history change with the items of another.*batch_first=True"),
        ("packed rnn", 20, 16, r"one history change with the items of another.*layout\.pad"),
        ("unmasked", 20, 16, r"when a later part of their history changes"),
        ("unmasked", 100, 64, r"when a later part of their history changes"),
        ("from the end", 20, 16, r"when a later part of their history is cut off"),
    ],
)
def test_leaks_are_found(kind: str, length: int, size: int, message: str) -> None:
    leaky = partial(Leaky, kind=kind)
    # in company of its own: nothing else asks for the padded form
    config = released_backbone(hidden_size=size, pre_block=leaky, core_block=leaky, pre_layers=1, core_layers=1)
    with pytest.raises(LaresError, match=message):
        RecurrentBackbone(9, length, config)


@pytest.mark.parametrize("length", [1, 2, 3])
def test_blocks_without_leaks_pass(length: int) -> None:
    class Honest(Own):
        def __init__(self, hidden_size: int) -> None:
            super().__init__(hidden_size)
            self.conv = nn.Conv1d(hidden_size, hidden_size, 3)
            self.batch_norm = nn.BatchNorm1d(hidden_size)

        def forward(self, x: Tensor, layout: Layout) -> Tensor:
            x += layout.positions[..., None]  # in place: what came in is the block's
            y: Tensor = self.conv(self.batch_norm(nn.functional.pad(x.transpose(1, 2), (2, 0)))).transpose(1, 2)
            return y

    RecurrentBackbone(9, length, released_backbone(hidden_size=4, pre_block=Honest, core_block=Honest))


def test_layers_without_a_size_are_refused() -> None:
    class Lazy(Own):
        def __init__(self, hidden_size: int) -> None:
            super().__init__(hidden_size)
            self.lazy = nn.LazyLinear(hidden_size)

    with pytest.raises(LaresError, match=r"Lazy: parameter lazy\.weight has no size yet"):
        made(core_block=Lazy)


def test_missing_arguments_are_filled_in_and_defaults_of_the_block_stay() -> None:
    block = build_block(Own, 4, max_length=7, dropout=0.9)
    assert isinstance(block, Own)
    assert (block.max_length, block.dropout.p) == (7, 0.25)
    block = build_block(partial(Own, max_length=3), 4, max_length=7, dropout=0.9)
    assert isinstance(block, Own)
    assert block.max_length == 3


def test_a_constructor_that_takes_no_size_is_named() -> None:
    class NoSize(Own):
        def __init__(self) -> None:
            super().__init__(4)

    with pytest.raises(LaresError, match=r"NoSize\(hidden_size\).*its first argument is hidden_size"):
        made(core_block=NoSize)


def test_blocks_that_support_packed_tokens_receive_them() -> None:
    seen: list[tuple[int, ...]] = []

    class Packed(Own):
        padding_matters = False

        def forward(self, x: Tensor, layout: Layout) -> Any:
            seen.append(tuple(x.shape))
            return super().forward(x, layout)

    backbone = made(pre_block=Packed, core_block=Packed)
    seen.clear()
    backbone.rollout(HISTORIES, [1])
    assert set(seen) == {(HISTORIES.tokens, SIZE)}


def test_attention_masks_padding_for_queries_at_padding() -> None:
    """In blocks that read padded states (BSARec), a query at padding attends only to the history."""
    histories = Histories.from_lists([[1, 2], [1, 2, 3, 4]])
    layout = padded(histories, 4)
    q, k, v = (torch.randn(2, 4, 4) for _ in range(3))
    out = layout.causal_attention(q, k, v, 1, 0.0)
    scores = (q[0] @ k[0].T) / 2
    allowed = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0]], dtype=torch.bool)
    expected = scores.masked_fill(~allowed, -torch.inf).softmax(-1) @ v[0]
    torch.testing.assert_close(out[0], expected)


def test_the_causal_filter_against_a_naive_loop() -> None:
    torch.manual_seed(0)
    block = CausalFilter(4, 3, 0.0, 1e-12)
    nn.init.normal_(block.weight)
    lists = [[1, 2, 3, 4, 5], [6], [7, 8]]
    histories = Histories.from_lists(lists)
    x = torch.randn(histories.tokens, 4)
    expected = []
    for history in x.split([len(items) for items in lists]):
        for t in range(len(history)):
            filtered = sum((block.weight[k] * history[t - k] for k in range(3) if t >= k), start=torch.zeros(4))
            expected.append(block.norm(history[t] + filtered))
    layout = packed(histories)
    torch.testing.assert_close(block(x, layout), torch.stack(expected))
    wide = padded(histories, 6)
    states = torch.zeros(3, 6, 4).masked_scatter(wide.mask[..., None], x)
    torch.testing.assert_close(wide.real(block(states, wide)), torch.stack(expected))
