"""The recurrent-depth backbone: read a history once, refine it as often as you like (docs/method.md "Backbone")."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lares_pl.checks import at_least_one, instance_of
from lares_pl.data.loading.histories import Histories
from lares_pl.data.loading.item_pairs import ItemPairs, items_read
from lares_pl.errors import LaresError
from lares_pl.model.architecture import BackboneConfig
from lares_pl.model.blocks import build_block, is_causal, last_states, padding_matters
from lares_pl.model.blocks.probe import probe
from lares_pl.model.catalogue_head import CatalogueHead
from lares_pl.model.embedding import ItemTable, ItemText
from lares_pl.model.layout import Layout
from lares_pl.model.packed_layout import packed
from lares_pl.model.padded_layout import padded
from lares_pl.model.recurrence import Noise
from lares_pl.model.rollout import rollout
from lares_pl.model.similarity import Similarity
from lares_pl.model.tiles import Repeats

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

#: the bias of repeats is this times its parameter: Adam moves a parameter by the learning rate an update, whatever its gradient
REPEAT_BIAS_SCALE = 8.0


class RecurrentBackbone(nn.Module):
    """Embeds histories, encodes them once (pre-block), refines every token step by step (core-block).

    The user state at depth t is the token state at the last position. At depth 0 it is the pre-block's output.

    Args:
        items: catalogue size N; items are 1 … N.
        max_length: longest history L.
        config: the architecture.
        text: text vectors of the items, for an embedder that reads them; several backbones may share them.

    Raises:
        LaresError: if an argument has the wrong type or is below 1; if a block breaks the contract of `lares_pl.model.blocks`.
    """

    def __init__(self, items: int, max_length: int, config: BackboneConfig | None = None, text: ItemText | None = None) -> None:
        super().__init__()
        config = BackboneConfig() if config is None else config
        instance_of("config", config, BackboneConfig)
        self.items = at_least_one("items", items)
        self.max_length = at_least_one("max_length", max_length)
        self.config = config
        size = config.hidden_size
        self.embedding = config.embedder.build(items, max_length, size, config.dropout, config.layer_norm_eps, text)
        self.pre_blocks = nn.ModuleList(
            build_block(config.pre_block, size, max_length, config.dropout) for _ in range(config.pre_layers)
        )
        self.core_blocks = nn.ModuleList(
            build_block(config.core_block, size, max_length, config.dropout) for _ in range(config.core_layers)
        )
        if config.core_layers:
            self.injection = config.injection.build(size)
            self.core_norm = nn.LayerNorm(size, eps=config.layer_norm_eps)
        if config.repeat_bias:
            self.repeat_bias = nn.Parameter(torch.zeros(()))
        self.padded = any(padding_matters(part) for part in self._parts())
        self.apply(self._initialise)
        for role, blocks in (("pre_block", self.pre_blocks), ("core_block", self.core_blocks)):
            for block in blocks[:1]:  # the others are of the same class
                probe(block, role, size, max_length, self.padded)

    def _parts(self) -> list[nn.Module]:
        """What may mix positions."""
        return [self.embedding, *self.pre_blocks, *self.core_blocks]

    def _initialise(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            # the padding row too: it is a class of the training softmax
            nn.init.normal_(module.weight, std=self.config.initializer_range)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    @property
    def item_vectors(self) -> Tensor:
        """Item embeddings with the padding row, `[N + 1, d]`; a DTensor where the catalogue is sharded."""
        return self.embedding.item.weight

    def shard(self, mesh: DeviceMesh) -> None:
        """Hold what has a row an item by rows over the processes of a mesh; all of them read the same histories then.

        Args:
            mesh: of one dimension.

        Raises:
            LaresError: if a process would be left without rows.
        """
        for part in self.modules():
            if isinstance(part, (ItemTable, ItemText)):
                part.shard(mesh)

    @property
    def causal(self) -> bool:
        """Whether the state at a position never depends on later items."""
        return all(is_causal(part) for part in self._parts())

    # ------------------------------------------------------------ the recurrence

    def _layout(self, histories: Histories) -> Layout:
        """The form that this model's blocks ask for."""
        return padded(histories, self.max_length) if self.padded else packed(histories)

    def encode(self, histories: Histories) -> tuple[Tensor, Layout]:
        """Pre-block output h of every token, `[*layout.shape, d]`, and its layout.

        Raises:
            LaresError: if a history is longer than `max_length`, or holds an item beyond the catalogue.
        """
        if histories.longest > self.max_length:
            raise LaresError(f"a history of {histories.longest} items; this model reads at most {self.max_length}")
        if histories.largest > self.items:
            found = histories.with_largest()
            raise LaresError(f"item {histories.largest} in the history {found}; this model knows items 1 to {self.items}")
        layout = self._layout(histories)
        return self.read(layout.arrange(histories.items), layout), layout

    def read(self, items: Tensor, layout: Layout) -> Tensor:
        """Pre-block output h of items `[*layout.shape]`, `[*layout.shape, d]`."""
        x: Tensor = self.embedding(items, layout)
        for block in self.pre_blocks:
            x = block(x, layout)
        return x

    def step(self, state: Tensor, context: Tensor, layout: Layout) -> Tensor:
        """One reasoning step: `CoreBlock(LN(inject(z, h)))`, all `[*layout.shape, d]`."""
        out: Tensor = self.core_blocks[-1](self._before_last_block(state, context, layout), layout)
        return out

    def last_step(self, state: Tensor, context: Tensor, layout: Layout) -> Tensor:
        """The same at the last position of each history alone, `[R, d]`; the end of a trajectory asks for nothing else."""
        return last_states(self.core_blocks[-1], self._before_last_block(state, context, layout), layout)

    def _before_last_block(self, state: Tensor, context: Tensor, layout: Layout) -> Tensor:
        x: Tensor = self.core_norm(self.injection(state, context))
        for block in self.core_blocks[:-1]:
            x = block(x, layout)
        return x

    def rollout(
        self,
        histories: Histories | Sequence[Histories],
        depths: Sequence[int],
        noise: Noise | Sequence[Noise] | None = None,
        initial_states: Sequence[Tensor] | None = None,
        read: Tensor | Sequence[Tensor | None] | None = None,
    ) -> list[Tensor]:
        """User states of every step of several trajectories, run together, each to its own depth.

        Where all trajectories read the same histories and dropout is off, the pre-block runs once.

        Args:
            histories: the histories all trajectories read, or one `Histories` a trajectory.
            depths: number of steps of each trajectory.
            noise: where initial states come from: one source for all trajectories or one for each.
            initial_states: z_0 of each trajectory, in the layout's form, instead of drawing it.
            read: which tokens' states to give, as indices `[R]` into `histories.items`, for all trajectories or for each
                one; the last of each history where None. The state at an inner token of a causal model is the user state of
                the history that ends there.

        Returns:
            For each trajectory the user states `[T, R, d]` of steps 1 … T; for depth 0 the single state `[1, R, d]` of
            the pre-block.

        Raises:
            LaresError: if there are no depths, or one is no whole number, negative, or above 0 in a model without core-block;
                as `encode`; if `histories` is neither one `Histories` nor one a trajectory; if inner tokens are read of a model
                that is not causal, so that their states would know later items.
        """
        return rollout(self, histories, depths, noise, initial_states, read)

    def prefix_states(self, histories: Histories, depth: int, noise: Noise | None = None) -> Tensor:
        """The user state after every item of every history, in one pass: each is that of the history cut there.

        Args:
            histories: B histories of M items together.
            depth: number of steps.
            noise: where initial states come from.

        Returns:
            `[M, d]`, in the order of `histories.items`.

        Raises:
            LaresError: as `check_causal`.
        """
        everywhere = torch.arange(histories.tokens, device=histories.items.device)
        (states,) = self.rollout(histories, [depth], noise, read=everywhere)
        return states[-1]

    def check_depth(self, depth: int) -> None:
        """Whether the model can go that deep.

        Raises:
            LaresError: if it has no core-block to repeat and the depth is above 0.
        """
        if depth > 0 and not self.core_blocks:
            raise LaresError(f"depth {depth} asked of a model without core-block (core_layers: 0): its only depth is 0")

    def check_causal(self) -> None:
        """Whether states after every prefix of a history can come out of one pass.

        Raises:
            LaresError: if a part of the model is not causal, so that states would know later items.
        """
        leaking = sorted({type(part).__name__ for part in self._parts() if not is_causal(part)})
        if leaking:
            raise LaresError(
                f"{', '.join(leaking)} lets a position see later ones: the state after an item would already know the next "
                "item, which it is to predict. Reading every prefix at once needs causal blocks (TransformerBlock, LRUBlock, "
                "RotaryBlock, or a block of yours that says `causal = True`); serve each prefix as its own history instead "
                "(data.instances: prefix)"
            )

    def initial_state(self, histories: Sequence[Histories], sources: Sequence[Noise], like: Tensor) -> Tensor:
        """z_0 of all trajectories, each drawn from its own source."""
        draws = []
        for part, source in zip(histories, sources, strict=True):
            draws.append(self.config.initial_state.draw(self._layout(part), self.config.hidden_size, source, self.training))
        return torch.cat(draws).to(like.dtype)

    # ------------------------------------------------------------ scoring

    def head(
        self, histories: Histories | None = None, tokens: Tensor | None = None, read: ItemPairs | None = None
    ) -> CatalogueHead:
        """What user states say about the catalogue.

        Args:
            histories: that the states are of; needed with `repeat_bias` alone.
            tokens: at which of their tokens, `[R]`; the last of each history where None.
            read: what `items_read` gives for these two, where it is known: a batch brings it, so that nothing waits for the
                device.

        Raises:
            ValueError: if the model needs the histories and there are none.
        """
        return self._head(self.config.similarity, histories, tokens, read)

    def policy_head(
        self, histories: Histories | None = None, tokens: Tensor | None = None, read: ItemPairs | None = None
    ) -> CatalogueHead:
        """As `head`, compared as the policy of RPT does it."""
        return self._head(self.config.policy_similarity or self.config.similarity, histories, tokens, read)

    def _head(
        self, similarity: Similarity, histories: Histories | None, tokens: Tensor | None, read: ItemPairs | None
    ) -> CatalogueHead:
        if not self.config.repeat_bias:
            return CatalogueHead(self.item_vectors, similarity)
        if read is None:
            if histories is None:
                raise ValueError("a model with repeat_bias scores items by what was read: give the histories")
            read = items_read(histories, tokens)
        return CatalogueHead(self.item_vectors, similarity, Repeats(read, self.bias_of_repeats))

    @property
    def bias_of_repeats(self) -> Tensor:
        """What is added to the score of an item that the history holds, a scalar; of a model with `repeat_bias`."""
        return self.repeat_bias * REPEAT_BIAS_SCALE
