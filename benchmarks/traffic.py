"""What the updates of `bench.py` read, write and multiply on a card, counted without one: on the meta device.

    python benchmarks/traffic.py DATASET

DATASET is a prepared dataset. Batches are filled up as for CUDA graphs, and attention is computed as within one. Bytes are
those of the operands and results of all operations that launch a kernel, forward and backward, without the optimiser; a gather
counts what it takes. A card's caches serve a part of them.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import bench
from lares_pl import SequenceDataset
from lares_pl.model import attention

#: views, and memory that nobody has written to
NO_KERNEL = frozenset(
    "view t transpose expand detach slice select unsqueeze squeeze alias as_strided split split_with_sizes permute "  # noqa: SIM905
    "_unsafe_view unbind diagonal _reshape_alias lift_fresh unfold empty empty_like empty_strided new_empty "
    "new_empty_strided".split()
)
#: they read as much as they give of their first operand, or nothing
GATHERS = frozenset({"index_select", "gather", "index", "embedding"})
FILLS = frozenset("zeros zeros_like new_zeros ones ones_like new_ones full full_like new_full fill_ zero_".split())  # noqa: SIM905


class Traffic(TorchDispatchMode):
    """Counts the operations that launch a kernel, by name, and the bytes of their operands and results.

    Args:
        device: type of the device on which results lie.
    """

    def __init__(self, device: str = "meta") -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.device = device
        self.launches: Counter[str] = Counter()
        self.bytes = 0

    @property
    def total(self) -> int:
        """Number of kernels."""
        return sum(self.launches.values())

    def __torch_dispatch__(
        self, function: Any, types: Sequence[type], arguments: Sequence[Any] = (), options: Mapping[str, Any] | None = None
    ) -> Any:
        result = function(*arguments, **(options or {}))
        name = function.overloadpacket.__name__
        first = result[0] if isinstance(result, (tuple, list)) and result else result
        on_device = isinstance(first, Tensor) and first.device.type == self.device
        in_place = first is None and ("_foreach_" in name or "_fused_" in name)
        if in_place or (on_device and name not in NO_KERNEL):
            read = [] if name in FILLS else [first, *arguments[1:]] if name in GATHERS else [*arguments]
            self.launches[name] += 1
            self.bytes += _bytes(read) + _bytes(result)
        return result


def _bytes(value: Any) -> int:
    """Of all tensors in a value."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    return sum(map(_bytes, value)) if isinstance(value, (tuple, list)) else 0


def _dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """The kernel of CUDA, which the meta device takes apart."""
    return torch.native_dropout(x, p, True)[0] if training else x


def spt(data: SequenceDataset) -> Callable[[], Tensor]:
    """The released SPT step, with all trajectories at the mean depth."""
    model = bench.backbone(data.catalogue_size, 0.5).train()
    _, batch = bench.one_batch(data, 1024, partners=True)
    recorder, depth = bench.Recorder(model), bench.CONFIG.depth.evaluation_depth
    return lambda: bench.spt_loss(recorder, model, batch, depth, depth, 1)


def rpt(data: SequenceDataset) -> Callable[[], Tensor]:
    """The released RPT step, with one trajectory of twice the mean depth and three of the mean."""
    mean = bench.CONFIG.depth.evaluation_depth
    policy, frozen = bench.backbone(25_000, 0.1).train(), bench.backbone(25_000, 0.1).eval()
    _, batch = bench.one_batch(data, 400, partners=False)
    depths = torch.tensor([2 * mean, mean, mean, mean], device="meta")
    return lambda: bench.rpt_loss(policy, frozen, batch, depths, (2 * mean, mean, mean, mean))


def main() -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path, help="prepared dataset")
    data = SequenceDataset.load(parser.parse_args().dataset)
    bench.DEVICE = torch.device("meta")
    print("| update | kernels | GB | GFLOP |\n|---|---|---|---|")
    for name, make in {"SPT step, batch 1,024": spt, "RPT step, batch 400, G 4, catalogue 25,000": rpt}.items():
        compute = make(data)
        written = mock.patch.object(attention, "_writes_weights", return_value=True)
        with mock.patch.object(F, "dropout", _dropout), written, FlopCounterMode(display=False) as flops, Traffic() as traffic:
            compute().backward()
        counted = f"{traffic.total:,} | {traffic.bytes / 1e9:.1f} | {flops.get_total_flops() / 1e9:.0f}"
        print(f"| {name} | {counted} |")


if __name__ == "__main__":
    main()
