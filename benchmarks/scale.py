"""A log of any size: what preparing, opening and serving it takes.

    python benchmarks/scale.py --interactions 100000000 --folder /scratch

writes a log of Parquet files (text ids, items by popularity, rows in the order of time), prepares it, and serves training
batches from several processes at once. Prints CPU and wall seconds, and peak memory: of preparing the resident memory of
the process, of serving each process's own (what is not shared with the others through the memory map).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

PART = 10_000_000  # rows a file


def write_log(folder: Path, interactions: int, users: int, items: int) -> None:
    """The generated log: popularity falls with the square root of an item's rank, users are equally active."""
    folder.mkdir(parents=True)
    for part, start in enumerate(range(0, interactions, PART)):
        rng = np.random.default_rng(part)
        count = min(PART, interactions - start)
        item = (items * rng.random(count) ** 2).astype(np.int64)
        columns = {
            "user_id": _named("u", rng.integers(0, users, count), users),
            "item_id": _named("i", item, items),
            "timestamp": pa.array(1_600_000_000 + start + np.arange(count)),
        }
        pq.write_table(pa.table(columns), folder / f"part-{part:04}.parquet")


def _named(prefix: str, numbers: np.ndarray, count: int) -> pa.Array:
    names = pa.array([f"{prefix}{number}" for number in range(count)])
    return names.take(pa.array(numbers))


def measured(*command: str) -> dict[str, float]:
    """Run a process; its wall and CPU seconds and the peak of its resident memory."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{' '.join(command)}: ended with {status}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall": time.perf_counter() - start, "cpu": cpu, "peak": usage.ru_maxrss * 1024}


def serve(dataset: str, instances: str, rank: int, processes: int, batches: int) -> None:
    """Open a dataset and serve training batches as one of several processes; prints what it took as JSON."""
    from itertools import islice
    from typing import Any, cast

    from lares_pl.data.dataset.prepared import SequenceDataset
    from lares_pl.data.loading.loaders import InstanceLoader, WindowLoader
    from lares_pl.data.loading.partners import SameTargetPartners
    from lares_pl.data.loading.sampler import Shard
    from lares_pl.data.loading.windows import training_windows

    imported = _own_memory()
    start = time.perf_counter()
    data = SequenceDataset.load(dataset)
    options: dict[str, Any] = {"shuffle": True, "shard": Shard(rank, processes)}
    partners = SameTargetPartners(data)
    if instances == "sequence":
        loader: Any = WindowLoader(data, training_windows(data, 20), 256, 20, aligned=1, partners=partners, **options)
    else:
        loader = InstanceLoader(data, data.training_instances, 1024, 20, partners, **options)
    first = next(iter(loader))
    opened = time.perf_counter() - start
    cpu = time.process_time()
    targets = sum(len(batch) for batch in islice(cast(Any, loader), batches))
    cpu = time.process_time() - cpu
    own = _own_memory() - imported
    print(json.dumps({"opened": opened, "batches": batches / cpu, "targets": targets / cpu, "own": own, "B": len(first)}))


def _own_memory() -> int:
    """Bytes of this process that neither another one nor a file shares."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_Dirty"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--interactions", type=int, default=1_000_000)
    parser.add_argument("--users", type=int, help="a twentieth of the interactions where not given")
    parser.add_argument("--items", type=int, help="a hundredth of them")
    parser.add_argument("--folder", type=Path, default=Path("scale"))
    parser.add_argument("--memory", help="--engine.memory of prepare")
    parser.add_argument("--processes", type=int, default=2, help="that serve at the same time")
    parser.add_argument("--serve", nargs=4, metavar=("DATASET", "INSTANCES", "RANK", "PROCESSES"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        serve(given.serve[0], given.serve[1], int(given.serve[2]), int(given.serve[3]), 500)
        return
    log, dataset = given.folder / "log", given.folder / "prepared"
    if not log.exists():
        write_log(log, given.interactions, given.users or given.interactions // 20, given.items or given.interactions // 100)
    size = sum(path.stat().st_size for path in log.iterdir())
    print(f"log: {given.interactions:,} interactions, {size / 2**30:.2f} GiB of Parquet", flush=True)
    if not dataset.exists():
        memory = ["--engine.memory", given.memory] if given.memory else []
        done = measured(sys.executable, "-m", "lares_pl", "prepare", str(log), "--output", str(dataset), *memory)
        print(f"prepare: {done['wall']:.0f} s, {done['cpu']:.0f} CPU s, peak {done['peak'] / 2**30:.2f} GiB", flush=True)
    for instances in ("prefix", "sequence"):
        command = [sys.executable, __file__, "--serve", str(dataset), instances]
        count = given.processes
        each = [subprocess.Popen([*command, str(r), str(count)], stdout=subprocess.PIPE, text=True) for r in range(count)]
        for rank, process in enumerate(each):
            got = json.loads(process.communicate()[0])
            print(
                f"{instances}, process {rank} of {count}: open and first batch {got['opened']:.2f} s, "
                f"{got['batches']:.0f} batches ({got['targets']:,.0f} targets) a CPU second, "
                f"{got['own'] / 2**20:.0f} MiB of its own",
                flush=True,
            )


if __name__ == "__main__":
    main()
