"""Between the stages: keep what the SPT model can nearly do (docs/method.md "Between the stages: pruning")."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lares_pl.checks import check_fields
from lares_pl.data.loading.batches import Batch
from lares_pl.errors import LaresError
from lares_pl.model.backbone import RecurrentBackbone
from lares_pl.model.recurrence import KeyedNoise
from lares_pl.model.sharding import local
from lares_pl.serialization import to_plain


@dataclass(frozen=True)
class Pruning:
    """Which training instances to keep.

    Args:
        passes: number of stochastic passes over all instances; one is made if the model's evaluation has no noise.
        top: keep an instance if its target is among the first `top` in any pass.
    """

    passes: int = 3
    top: int = 100

    def __post_init__(self) -> None:
        check_fields(self)
        if self.passes < 1 or self.top < 1:
            raise LaresError(f"Pruning: passes and top must be at least 1, got {self.passes} and {self.top}")

    def passes_of(self, backbone: RecurrentBackbone) -> int:
        """How many passes of a model differ and are made."""
        return self.passes if backbone.config.initial_state.random(training=False) else 1


@dataclass(frozen=True)
class KeptSet:
    """The instances that survived, and what they survived.

    Args:
        mask: which of the training instances, `[instances]` bool.
        fingerprint: of all that decided (`pruning_fingerprint`).
    """

    mask: np.ndarray
    fingerprint: str

    def to_plain(self) -> dict[str, Any]:
        """For a checkpoint: a bit an instance."""
        bits = torch.from_numpy(np.packbits(self.mask))
        return {"bits": bits, "instances": len(self.mask), "fingerprint": self.fingerprint}

    @staticmethod
    def from_plain(plain: Any) -> KeptSet | None:
        """From a checkpoint; None where it holds none."""
        if not isinstance(plain, Mapping):
            return None
        mask = np.unpackbits(plain["bits"].numpy(), count=plain["instances"]).astype(np.bool_)
        return KeptSet(mask, plain["fingerprint"])


def pruning_fingerprint(backbone: RecurrentBackbone, arrays: Iterable[np.ndarray], *settings: Any) -> str:
    """A checksum of what decides which instances survive.

    Args:
        backbone: the SPT model, weights (of a sharded catalogue this process's) and architecture.
        arrays: the data.
        settings: depth, rule, how histories are read.
    """
    digest = hashlib.blake2b(repr((*settings, to_plain(backbone.config))).encode(), digest_size=16)
    for name, value in sorted(backbone.state_dict().items()):
        digest.update(name.encode())
        digest.update(local(value).detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


@torch.no_grad()
def kept_instances(
    backbone: RecurrentBackbone, batches: Iterable[Batch], instances: int, depth: int, pruning: Pruning
) -> Tensor:
    """Which of these instances survive; the passes differ in their noise, which is a function of history and pass.

    Args:
        backbone: the SPT model, in evaluation mode.
        batches: (this process's share of) the training instances.
        instances: number of all training instances.
        depth: number of reasoning steps.
        pruning: the rule.

    Returns:
        1 for each instance kept, 0 for those pruned or not in `batches`, `[instances]`, uint8 on the backbone's device.
    """
    device = backbone.item_vectors.device
    kept = torch.zeros(instances, dtype=torch.uint8, device=device)
    for batch in batches:
        batch = batch.to(device)
        noise = [KeyedNoise(batch.histories, seed) for seed in range(pruning.passes_of(backbone))]
        head = backbone.head(batch.histories, batch.target_positions, batch.read)
        for states in backbone.rollout(batch.histories, [depth] * len(noise), noise, read=batch.target_positions):
            ranks = head.rank(states[-1], batch.targets)
            kept[batch.instances[batch.valid & (ranks <= pruning.top)]] = 1
    return kept
