"""The slow side: LARES as the released scripts work, in plain PyTorch.

Every history is padded to L positions, each trajectory runs on its own through the whole model, attention writes its
weights down, and the log-probabilities of every step stand in memory as `[B, T, N]`. It shares its parameters with one of
our backbones (transformer family), so that both sides compute the same function.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lares_pl.data.dataset.instances import Instances
from lares_pl.data.dataset.prepared import SequenceDataset
from lares_pl.losses.advantages import GroupAdvantage
from lares_pl.model.backbone import RecurrentBackbone
from lares_pl.model.blocks.transformer import TransformerBlock


class PaddedRows(Dataset[dict[str, Tensor]]):
    """One padded row an instance, as `__getitem__` and default collation serve it.

    Args:
        data: the sequences.
        instances: the split.
        max_length: L.
        partners: bring the history of another instance with the same target.
    """

    def __init__(self, data: SequenceDataset, instances: Instances, max_length: int, partners: bool = False) -> None:
        self.data = data
        self.spans = instances.all()
        self.max_length = max_length
        self.same_target: dict[int, list[int]] = {}
        if partners:
            for index, target in enumerate(data.targets(self.spans).tolist()):
                self.same_target.setdefault(target, []).append(index)

    def __len__(self) -> int:
        return len(self.spans)

    def history(self, index: int) -> tuple[Tensor, int]:
        """A padded history and its length."""
        end = int(self.spans.ends[index])
        start = max(int(self.spans.starts[index]), end - self.max_length)
        row = torch.zeros(self.max_length, dtype=torch.int64)
        row[: end - start] = torch.from_numpy(self.data.items[start:end].astype(np.int64))
        return row, end - start

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        history, length = self.history(index)
        target = int(self.data.items[self.spans.ends[index]])
        row = {"history": history, "length": torch.tensor(length), "target": torch.tensor(target)}
        if self.same_target:
            others = [other for other in self.same_target[target] if other != index] or [index]
            partner, length = self.history(others[int(torch.randint(len(others), ()))])
            row |= {"partner": partner, "partner_length": torch.tensor(length)}
        return row

    def loader(self, batch_size: int, shuffle: bool = False) -> DataLoader[dict[str, Tensor]]:
        """The usual loader."""
        return DataLoader(self, batch_size=batch_size, shuffle=shuffle)


class NaiveBaseline(nn.Module):
    """The released scripts' forward pass over the parameters of a backbone.

    Args:
        backbone: a backbone of the transformer family with `AddInjection` and `DotSimilarity`.
    """

    def __init__(self, backbone: RecurrentBackbone) -> None:
        super().__init__()
        self.backbone = backbone

    @property
    def items(self) -> Tensor:
        """Item vectors, `[N + 1, d]`."""
        return self.backbone.item_vectors

    def block(self, block: nn.Module, x: Tensor, mask: Tensor) -> Tensor:
        """One transformer layer with its attention weights written down: `[B, L, d]` -> `[B, L, d]`."""
        assert isinstance(block, TransformerBlock)
        attention, (rows, length, size) = block.attention, x.shape
        weight, bias = attention.query_key_value.weight.chunk(3), attention.query_key_value.bias.chunk(3)
        q, k, v = (
            F.linear(x, w, b).view(rows, length, attention.heads, -1).transpose(1, 2) for w, b in zip(weight, bias, strict=True)
        )
        scores = q @ k.transpose(-1, -2) / (size / attention.heads) ** 0.5 + mask
        shares = F.dropout(scores.softmax(dim=-1), attention.attention_dropout, self.training)
        attended = (shares @ v).transpose(1, 2).reshape(rows, length, size)
        x = attention.norm(x + attention.dropout(attention.output(attended)))
        out: Tensor = block.feed_forward(x)
        return out

    def forward(self, history: Tensor, lengths: Tensor, depth: int, start: Tensor | None = None) -> Tensor:
        """One trajectory: histories `[B, L]` -> user states of every step `[B, T, d]`."""
        backbone = self.backbone
        length = history.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=history.device).tril()
        visible = causal & (history != 0)[:, None, None, :]
        mask = torch.zeros(visible.shape, device=history.device).masked_fill(~visible, -10000.0)
        embedding = backbone.embedding
        assert embedding.position is not None
        positions = torch.arange(length, device=history.device)
        x = embedding.dropout(embedding.norm(embedding.item(history) + embedding.position(positions)))
        for block in backbone.pre_blocks:
            x = self.block(block, x, mask)
        state = start
        if state is None:
            state = 3 * nn.init.trunc_normal_(torch.empty_like(x), a=-3, b=3)
        last = (torch.arange(len(history), device=history.device), lengths - 1)
        states = []
        for _ in range(depth):
            state = backbone.core_norm((state + x) / 2)
            for block in backbone.core_blocks:
                state = self.block(block, state, mask)
            states.append(state[last])
        return torch.stack(states, dim=1)

    # ------------------------------------------------------------ the two losses

    def spt_loss(
        self,
        batch: dict[str, Tensor],
        depth: int,
        pair_depth: int,
        step: int,
        starts: Sequence[Tensor | None] = (None, None, None),
        alpha: float = 0.1,
        gamma: float = 0.5,
    ) -> Tensor:
        """CE + alpha TLA + gamma SLA, three passes one after the other."""
        history, lengths = batch["history"], batch["length"]
        prediction = self(history, lengths, depth, starts[0])[:, -1]
        loss = F.cross_entropy(prediction @ self.items.T, batch["target"])
        a = self(history, lengths, pair_depth, starts[1])
        b = self(batch["partner"], batch["partner_length"], pair_depth, starts[2])
        loss = loss + alpha * self._align(a[:, -1], b[:, -1])
        return loss + gamma * self._align(a[:, -1], a[:, step]) if pair_depth > 1 else loss

    @staticmethod
    def _align(a: Tensor, b: Tensor) -> Tensor:
        scores, own = a @ b.T, torch.arange(len(a), device=a.device)
        return (F.cross_entropy(scores, own) + F.cross_entropy(scores.T, own)) / 2

    def step_log_probs(self, states: Tensor) -> Tensor:
        """Log-probabilities of the whole catalogue at every step, `[B, T, d]` -> `[B, T, N + 1]`."""
        return (states @ self.items.T).log_softmax(dim=-1)

    def rpt_loss(
        self,
        reference: NaiveBaseline,
        batch: dict[str, Tensor],
        depths: Sequence[int],
        starts: Sequence[Tensor | None] | None = None,
        k: int = 10,
        beta: float = 1.0,
    ) -> Tensor:
        """GRPO over a group of trajectories, one after the other, each against the reference policy's."""
        starts = [None] * (2 * len(depths)) if starts is None else starts
        target = batch["target"]
        of_policy, of_reference, rewards = [], [], []
        for depth, start in zip(depths, starts[: len(depths)], strict=True):
            log_probs = self.step_log_probs(self(batch["history"], batch["length"], depth, start))
            of_target = log_probs.gather(2, target[:, None, None].expand(-1, depth, 1)).squeeze(2)
            ranked = log_probs[:, -1, 1:].detach().topk(k, dim=-1).indices + 1
            rewards.append((ranked == target[:, None]).any(dim=1).float())
            of_policy.append(of_target)
        with torch.no_grad():
            for depth, start in zip(depths, starts[len(depths) :], strict=True):
                log_probs = reference.step_log_probs(reference(batch["history"], batch["length"], depth, start))
                of_reference.append(log_probs.gather(2, target[:, None, None].expand(-1, depth, 1)).squeeze(2))
        advantages = GroupAdvantage()(torch.stack(rewards, dim=1))
        losses = []
        for g, (log_p, log_q) in enumerate(zip(of_policy, of_reference, strict=True)):
            q = log_q - log_p
            term = (log_p - log_p.detach()).exp() * advantages[:, g, None] - beta * (q.exp() - q - 1)
            losses.append(term.mean(dim=1))
        return -torch.stack(losses, dim=1).mean()

    # ------------------------------------------------------------ ranking

    @torch.no_grad()
    def ranks(self, batch: dict[str, Tensor], depth: int, longest: int = 50) -> Tensor:
        """Rank of each target among the first `longest` of the whole score matrix, `longest + 1` beyond, `[B]`."""
        scores = self(batch["history"], batch["length"], depth)[:, -1] @ self.items.T
        scores[:, 0] = -torch.inf
        hits = scores.topk(longest, dim=1).indices == batch["target"][:, None]
        return torch.where(hits.any(dim=1), hits.int().argmax(dim=1) + 1, longest + 1)
