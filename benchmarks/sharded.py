"""Memory of a process that trains on a large catalogue: alone, and as one of several that share it.

    python benchmarks/sharded.py [--items 2000000] [--hidden 64] [--processes 2] [--updates 2]

A backbone of the paper's architecture makes updates of the cross-entropy with Adam over random histories, in one process and in
several (gloo, CPU). Printed of the largest process: what parameters, gradients and Adam hold, and peak resident memory above
the idle process, of the updates and of building the model.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor  # noqa: F401  (imported before memory is measured)
from torch.multiprocessing.spawn import spawn

from bench import CONFIG, resident
from lares_pl import Histories, RecurrentBackbone
from lares_pl.model.sharding import local
from lares_pl.stages.distributed import average_gradients

MIB = 2**20


def trained(items: int, hidden: int, processes: int, updates: int) -> dict[str, float]:
    """Memory of this process, in MiB, after so many updates."""
    mesh = init_device_mesh("cpu", (1, processes), mesh_dim_names=("data_parallel", "tensor_parallel"))
    torch.manual_seed(0)
    idle = resident("VmRSS")
    backbone = RecurrentBackbone(items, 20, replace(CONFIG, hidden_size=hidden, dropout=0.0))
    if processes > 1:
        backbone.shard(mesh["tensor_parallel"])
    built = resident("VmHWM") - idle
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far (Linux)
    optimizer = torch.optim.Adam(backbone.parameters())
    parameters = list(backbone.parameters())
    for _ in range(updates):
        histories = Histories(torch.randint(1, items + 1, (64 * 8,)), torch.full((64,), 8), 8)
        states = backbone.rollout(histories, [2])[0][-1]
        backbone.head().cross_entropy(states, torch.randint(1, items + 1, (64,))).backward()
        average_gradients(parameters, mesh)
        optimizer.step()
        held = [*parameters, *(p.grad for p in parameters if p.grad is not None)]
        held += [value for state in optimizer.state.values() for value in state.values()]
        optimizer.zero_grad()
    size = sum(local(value).numel() * value.element_size() for value in held)
    peak = resident("VmHWM") - idle
    return {"held": size / MIB, "building": built, "updates": peak}


def _process(rank: int, processes: int, options: argparse.Namespace, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=processes)
    result = trained(options.items, options.hidden, processes, options.updates)
    Path(folder, f"{rank}.json").write_text(json.dumps(result))
    dist.destroy_process_group()


def measured(processes: int, options: argparse.Namespace) -> dict[str, float]:
    """The largest process's memory."""
    with tempfile.TemporaryDirectory() as folder:
        spawn(_process, (processes, options, folder), nprocs=processes)
        each = [json.loads(path.read_text()) for path in Path(folder).glob("*.json")]
    return {name: max(result[name] for result in each) for name in each[0]}


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=2_000_000)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--updates", type=int, default=2)
    options = parser.parse_args()
    alone, shared = measured(1, options), measured(options.processes, options)
    print(f"{options.items:,} items x {options.hidden}: MiB of a process\n")
    print(f"| | alone | one of {options.processes} | times less |\n|---|---|---|---|")
    for name, what in (("held", "parameters, gradients, Adam"), ("updates", "peak, updates"), ("building", "peak, building")):
        print(f"| {what} | {alone[name]:,.0f} | {shared[name]:,.0f} | {alone[name] / shared[name]:.2f} |")


if __name__ == "__main__":
    main()
