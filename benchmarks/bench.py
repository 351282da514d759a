"""The slow side against ours: seconds in one process, peak memory in a process each; ratios as a table.

    python benchmarks/bench.py [DATASET] [--config FILE] [--case NAME …] [--device cuda] [--json FILE]

DATASET is a prepared dataset; by default Beauty is prepared from LARES_DATA_DIR. FILE is the `config.yaml` of a run, whose
architecture (of the transformer family) is measured instead of the paper's. On a CPU: CPU seconds of one thread, resident
memory. On CUDA: seconds between synchronised ends, memory allocated on the device. For steps also our tokens and
floating-point operations (of matrix products) per second. On CUDA also, of our side, how many kernels ran, how many launches
the host made, and the share of time in which the card was busy. Medians of ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch.utils.data import default_collate
from torch.utils.flop_counter import FlopCounterMode

import device_profile
from lares_pl import (
    AddInjection,
    BackboneConfig,
    DotSimilarity,
    NormalState,
    PoissonLogNormal,
    Pruning,
    RecallReward,
    RecurrentBackbone,
    SequenceDataset,
    TransformerBlock,
    prepare,
)
from lares_pl.data.dataset.instances import Instances, TrainingInstances
from lares_pl.data.loading.batches import Batch
from lares_pl.data.loading.loaders import InstanceLoader, WindowLoader
from lares_pl.data.loading.partners import SameTargetPartners
from lares_pl.data.loading.windows import training_windows
from lares_pl.losses.alignment import Alignment, GatheredRows, alignment_losses
from lares_pl.model.architecture import with_dropout
from lares_pl.model.recurrence import KeyedNoise
from lares_pl.parsing import from_plain
from lares_pl.serialization import class_of
from lares_pl.stages.cuda_graphs import CudaGraphs
from lares_pl.stages.group_loss import Counted, GroupObjective, group_loss, rounded_up
from lares_pl.stages.optimizers import fused
from lares_pl.stages.pruning import kept_instances
from lares_pl.stages.recorded_updates import Loss, Numbers, RecordedUpdates
from naive_baseline import NaiveBaseline, PaddedRows

L = 20
DEVICE = torch.device("cpu")
REAL_DATA = Path(os.environ.get("LARES_DATA_DIR", Path(__file__).resolve().parents[2] / "shared" / "data"))
BEAUTY = REAL_DATA / "beauty" / "Beauty.txt"
# as released (paper.yaml)
CONFIG = BackboneConfig(
    hidden_size=64,
    pre_layers=2,
    core_layers=2,
    dropout=0.5,
    pre_block=partial(TransformerBlock, heads=2, inner_size=256),
    core_block=partial(TransformerBlock, heads=2, inner_size=256),
    injection=AddInjection(),
    initial_state=NormalState(std=1.0, scale=3.0),
    depth=PoissonLogNormal(mean=4, sigma=0.5),
    similarity=DotSimilarity(),
    repeat_bias=False,
)
ALIGNMENT = Alignment(cosine=False, tau=1.0, mask_same_target=False)

Side = Callable[[int], object]


@dataclass(frozen=True)
class Case:
    """One thing that both sides do, on the same instances and depths in each repetition.

    Args:
        slow, fast: do it, given the number of the repetition.
        what: said in the table.
        at_least, aim: the ratios wanted.
        tokens: that one repetition reads, counted once for each trajectory; 0 where that says nothing.
    """

    slow: Side
    fast: Side
    what: str
    at_least: float
    aim: float
    tokens: int = 0


def backbone(items: int, dropout: float) -> RecurrentBackbone:
    torch.manual_seed(0)
    return RecurrentBackbone(items, L, with_dropout(CONFIG, dropout)).to(DEVICE)


def chosen(instances: TrainingInstances, count: int, seed: int = 0) -> TrainingInstances:
    return instances.keeping(np.random.default_rng(seed).permutation(len(instances)) < count)


def batches(
    data: SequenceDataset,
    instances: Instances,
    size: int,
    partners: bool = False,
    shuffle: bool = False,
    fitted: bool = False,
) -> InstanceLoader:
    same = SameTargetPartners(data) if partners else None
    return InstanceLoader(data, instances, size, L, partners=same, shuffle=shuffle, fitted=fitted and DEVICE.type != "cpu")


def one_batch(data: SequenceDataset, size: int, partners: bool) -> tuple[dict[str, torch.Tensor], Batch]:
    """The same training instances for the slow side and for ours, drawn as in training.

    The sizes of fitted batches follow from some batches of the loader: in the order of users these differ far more than drawn
    ones, and would be filled up by as much.
    """
    instances = chosen(data.training_instances, 8 * size)
    rows = PaddedRows(data, instances, L, partners)
    batch = next(iter(batches(data, instances, size, partners=partners, shuffle=True, fitted=True)))
    slow = default_collate([rows[index] for index in batch.instances[batch.valid].tolist()])
    return on_device(slow), batch.to(DEVICE)


def updates(model: torch.nn.Module) -> tuple[Callable[[torch.Tensor], None], Callable[[torch.Tensor], None]]:
    """One update of the model from a loss: of the slow side, and of ours, whose optimiser is fused."""
    of_each: list[Callable[[torch.Tensor], None]] = []
    for factory in (torch.optim.Adam, fused(torch.optim.Adam)):
        optimizer = factory(model.parameters())

        def update(loss: torch.Tensor, optimizer: torch.optim.Optimizer = optimizer) -> None:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        of_each.append(update)
    slow, fast = of_each
    return slow, fast


class Recorder:
    """Losses of a model as a stage computes them: on CUDA from graphs, for fitted batches."""

    def __init__(self, model: RecurrentBackbone) -> None:
        on_cuda = DEVICE.type == "cuda"
        self.recorded = RecordedUpdates(model, torch.Generator(), [], CudaGraphs()) if on_cuda else None
        self.numbers = Numbers()

    def loss(self, batch: Batch, numbers: Hashable, compute: Callable[[Batch], Loss]) -> torch.Tensor:
        """The loss of a batch."""
        return (compute(batch) if self.recorded is None else self.recorded(batch, numbers, compute)).total


def on_device(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: values.to(DEVICE) for name, values in batch.items()}


def depths_of(repetition: int, count: int) -> list[int]:
    generator = torch.Generator().manual_seed(repetition)
    return [CONFIG.depth.sample(generator) for _ in range(count)]


# ---------------------------------------------------------------- the cases


def spt_step(data: SequenceDataset) -> Case:
    model = backbone(data.catalogue_size, 0.5).train()
    slow_model = NaiveBaseline(model)
    slow_batch, batch = one_batch(data, 1024, partners=True)
    slow_update, update = updates(model)
    recorder = Recorder(model)

    def slow(repetition: int) -> None:
        depth, pair = depths_of(repetition, 2)
        slow_update(slow_model.spt_loss(slow_batch, depth, pair, repetition % pair))

    def fast(repetition: int) -> None:
        depth, pair = depths_of(repetition, 2)
        update(spt_loss(recorder, model, batch, depth, pair, repetition % pair))

    assert batch.partners is not None
    tokens = 2 * batch.histories.tokens + batch.partners.tokens
    return Case(slow, fast, "SPT step, batch 1,024", 2.5, 4, tokens)


def spt_loss(recorder: Recorder, model: RecurrentBackbone, batch: Batch, depth: int, pair: int, step: int) -> torch.Tensor:
    """Of stage 1, as released."""
    of_pair = recorder.numbers.put([step], DEVICE)

    def compute(batch: Batch) -> Loss:
        assert batch.partners is not None
        aligned = batch.histories if batch.aligned is None else batch.aligned
        histories = [batch.histories, aligned, batch.partners]
        prediction, a, b = model.rollout(histories, [depth, pair, pair], read=[batch.target_positions, None, None])
        cross_entropy = model.head().cross_entropy(prediction[-1], batch.targets, batch.shares)
        targets = batch.targets if batch.aligned_targets is None else batch.aligned_targets
        real = batch.aligned_real
        of_all = None if real is None else partial(GatheredRows, real=real)
        trajectory, of_step = alignment_losses(ALIGNMENT, a, b, of_pair, targets, of_all)
        return Loss(cross_entropy + 0.1 * trajectory + 0.5 * of_step, {})

    return recorder.loss(batch, (depth, pair), compute)


def rpt_step(data: SequenceDataset) -> Case:
    policy, frozen = backbone(25_000, 0.1).train(), backbone(25_000, 0.1).eval()
    slow_policy, slow_frozen = NaiveBaseline(policy), NaiveBaseline(frozen)
    slow_frozen.eval()
    slow_batch, batch = one_batch(data, 400, partners=False)
    slow_update, update = updates(policy)
    recorder = Recorder(policy)

    def slow(repetition: int) -> None:
        slow_update(slow_policy.rpt_loss(slow_frozen, slow_batch, depths_of(repetition, 4)))

    def fast(repetition: int) -> None:
        depths = sorted(depths_of(repetition, 4), reverse=True)
        on_device, run = recorder.numbers.put(depths, DEVICE), rounded_up(depths, CONFIG.depth.evaluation_depth)

        def compute(batch: Batch) -> Loss:
            together = depths if batch.real is None else run
            return Loss(rpt_loss(policy, frozen, batch, on_device, together), {})

        update(recorder.loss(batch, run, compute))

    return Case(slow, fast, "RPT step, batch 400, G 4, catalogue 25,000", 2, 3, 8 * batch.histories.tokens)


def rpt_loss(
    policy: RecurrentBackbone, frozen: RecurrentBackbone, batch: Batch, depths: torch.Tensor, run: Sequence[int]
) -> torch.Tensor:
    """Of stage 2, as released; trajectories of a fitted batch may be run deeper than they are."""
    counted = None if batch.shares is None else Counted(depths, batch.shares)
    goal = GroupObjective(RecallReward(10))
    return group_loss(policy, frozen, batch.histories, batch.targets, run, goal, counted=counted).loss


def evaluated_together() -> int:
    """Users, or instances, of a batch of both sides where nothing is trained."""
    return 8192 if DEVICE.type == "cuda" else 1024


def validation(data: SequenceDataset) -> Case:
    instances = data.held_out("validation")
    model = backbone(data.catalogue_size, 0.5).eval()
    slow_model = NaiveBaseline(model).eval()
    rows = PaddedRows(data, instances, L)

    def slow(repetition: int) -> None:
        for batch in rows.loader(evaluated_together()):
            slow_model.ranks(on_device(batch), 4)

    def fast(repetition: int) -> None:
        with torch.no_grad():
            for batch in batches(data, instances, evaluated_together()):
                batch = batch.to(DEVICE)
                (states,) = model.rollout(batch.histories, [4], KeyedNoise(batch.histories))
                model.head().rank(states[-1], batch.targets)

    return Case(slow, fast, f"validation over {len(instances):,} users", 2.5, 4)


def some_users(data: SequenceDataset, share: int) -> SequenceDataset:
    """One in `share` of the users, drawn once."""
    users = np.sort(np.random.default_rng(0).permutation(data.users)[: data.users // share])
    items = [data.items[data.offsets[user] : data.offsets[user + 1]] for user in users]
    offsets = np.concatenate([[0], np.cumsum([len(part) for part in items])])
    return SequenceDataset.of_arrays(np.concatenate(items), offsets, data.user_ids.take(users), data.item_ids, data.path)


def epoch(whole: SequenceDataset) -> Case:
    data = some_users(whole, 16)
    instances = data.training_instances
    partners = SameTargetPartners(data)
    model = backbone(data.catalogue_size, 0.5).train()
    slow_model = NaiveBaseline(model)
    rows = PaddedRows(data, instances, L, partners=True)
    fitted = DEVICE.type == "cuda"
    windows = WindowLoader(
        data, training_windows(data, L), 256, L, aligned=1, partners=partners, shuffle=True, pin=fitted, fitted=fitted
    )
    slow_update, update = updates(model)
    recorder = Recorder(model)

    def slow(repetition: int) -> None:
        depth, pair = depths_of(repetition, 2)
        for batch in rows.loader(1024, shuffle=True):
            slow_update(slow_model.spt_loss(on_device(batch), depth, pair, repetition % pair))

    def fast(repetition: int) -> None:
        depth, pair = depths_of(repetition, 2)
        for batch in windows:
            update(spt_loss(recorder, model, batch.to(DEVICE, non_blocking=True), depth, pair, repetition % pair))

    what = f"SPT over {len(instances):,} training targets (a sixteenth of the users), sequence against prefix instances"
    return Case(slow, fast, what, 12, 25)


def pruning(whole: SequenceDataset) -> Case:
    data = some_users(whole, 16)
    instances = data.training_instances
    model = backbone(data.catalogue_size, 0.5).eval()
    slow_model = NaiveBaseline(model).eval()
    rows = PaddedRows(data, instances, L)
    # as the data module serves them
    together = evaluated_together() if DEVICE.type == "cuda" else 256
    windows = WindowLoader(data, training_windows(data, L, overlap=L), together, L)

    def slow(repetition: int) -> None:
        for _ in range(3):
            for batch in rows.loader(evaluated_together()):
                slow_model.ranks(on_device(batch), 4, longest=100)

    def fast(repetition: int) -> None:
        kept_instances(model, windows, len(instances), 4, Pruning(3, 100))

    return Case(slow, fast, f"pruning, 3 passes over {len(instances):,} training instances (a sixteenth of the users)", 6, 10)


def data_module(data: SequenceDataset) -> Case:
    instances = data.training_instances
    rows = PaddedRows(data, instances, L, partners=True).loader(1024, shuffle=True)
    loader = batches(data, instances, 1024, partners=True, shuffle=True)

    def run(served: Iterator[Any]) -> None:
        for _ in islice(served, 16):
            pass

    return Case(lambda _: run(iter(rows)), lambda _: run(iter(loader)), "16 training batches of 1,024 with partners", 20, 50)


CASES: dict[str, tuple[Callable[[SequenceDataset], Case], int]] = {  # and how often it is repeated
    "spt_step": (spt_step, 5),
    "rpt_step": (rpt_step, 5),
    "epoch": (epoch, 3),
    "validation": (validation, 3),
    "pruning": (pruning, 3),
    "data_module": (data_module, 5),
}

# ---------------------------------------------------------------- measuring


def seconds(side: Side, repetition: int) -> float:
    """CPU seconds; on CUDA those until the device has ended."""
    clock = time.process_time
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
        clock = time.perf_counter
    started = clock()
    side(repetition)
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return clock() - started


def operations(side: Side, repetition: int) -> int:
    """Floating-point operations of the matrix products of one repetition."""
    with FlopCounterMode(display=False) as counter:
        side(repetition)
    return int(counter.get_total_flops())


def compare(data: SequenceDataset, name: str) -> dict[str, Any]:
    """Both sides in this process, in turns; medians."""
    build, repeats = CASES[name]
    case = build(data)
    # what comes first warms up; on CUDA also what is recorded once for each depth
    warm_up = range(repeats + 1) if DEVICE.type == "cuda" else range(1)
    for repetition in warm_up:
        case.slow(repetition)
        case.fast(repetition)
    slow, fast = [], []
    for repetition in range(1, repeats + 1):
        slow.append(seconds(case.slow, repetition))
        fast.append(seconds(case.fast, repetition))
    ratios = [a / b for a, b in zip(slow, fast, strict=True)]
    result: dict[str, Any] = {
        "case": name,
        "what": case.what,
        "slow_s": statistics.median(slow),
        "fast_s": statistics.median(fast),
        "ratio": statistics.median(ratios),
        "at_least": case.at_least,
        "aim": case.aim,
    }
    if case.tokens:
        rate = operations(case.fast, repeats) / fast[-1]
        result |= {"tokens_per_s": case.tokens / statistics.median(fast), "gflop_per_s": rate / 1e9}
    if DEVICE.type == "cuda":
        result |= device_profile.row(partial(case.fast, repeats), fast[-1])
    return result


def peak_mib(data: SequenceDataset, name: str, side: str) -> float:
    """Peak memory of one side above the idle process, in MiB; to be called in a process of its own."""
    build, repeats = CASES[name]
    case = build(data)
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() / 2**20
    else:
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far (Linux)
        before = resident("VmRSS")
    for repetition in range(repeats):
        (case.slow if side == "slow" else case.fast)(repetition)
    peak = torch.cuda.max_memory_allocated() / 2**20 if DEVICE.type == "cuda" else resident("VmHWM")
    return peak - before


def resident(field: str) -> float:
    """Memory of this process in MiB: now (`VmRSS`) or at its peak (`VmHWM`)."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field)]
    return int(line.split()[1]) / 1024


def memory(dataset: Path, name: str, side: str, config: Path | None) -> float:
    """`peak_mib` in a new process."""
    command = [sys.executable, __file__, str(dataset), "--peak", name, side, "--device", DEVICE.type]
    command += ["--config", str(config)] if config else []
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def table(results: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| what | s, slow side | ours | times less | at least / aim "
        "| peak MiB, slow side | ours | times less | tokens/s | GFLOP/s | kernels / launches | busy |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in results:
        spent = f"{r['slow_s']:.2f} | {r['fast_s']:.2f} | **{r['ratio']:.1f}** | {r['at_least']:g} / {r['aim']:g}"
        peak = f"{r['slow_mib']:.0f} | {r['fast_mib']:.0f} | {r['memory_ratio']:.1f}" if "slow_mib" in r else "| |"
        rate = f"{r['tokens_per_s']:,.0f} | {r['gflop_per_s']:,.0f}" if "tokens_per_s" in r else "|"
        card = f"{r['kernels']:,} / {r['launches']:,} | {r['busy_share']:.0%}" if "kernels" in r else "|"
        lines.append(f"| {r['what']} | {spent} | {peak} | {rate} | {card} |")
    return "\n".join(lines)


def architecture(path: Path) -> BackboneConfig:
    """The architecture that a run's configuration names."""
    backbone = yaml.safe_load(path.read_text())["model"]["init_args"]["backbone"]
    config: BackboneConfig = from_plain(BackboneConfig, backbone, "backbone")
    kinds = {class_of(config.pre_block), class_of(config.core_block)}
    if kinds != {TransformerBlock} or (config.injection, config.similarity) != (AddInjection(), DotSimilarity()):
        raise SystemExit(f"{path}: the slow side knows TransformerBlock, AddInjection and DotSimilarity alone")
    return config


def main() -> None:
    """Measure and print."""
    global CONFIG, DEVICE
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", nargs="?", type=Path, help="prepared dataset")
    parser.add_argument("--config", type=Path, help="config.yaml of a run, for its architecture")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--case", nargs="*", choices=list(CASES), default=list(CASES), help="which to measure")
    parser.add_argument("--json", type=Path, help="file to write the figures to as well")
    parser.add_argument("--no-memory", action="store_true", help="leave out peak memory")
    parser.add_argument("--peak", nargs=2, metavar=("CASE", "SIDE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    DEVICE = torch.device(options.device)
    if options.config is not None:
        CONFIG = architecture(options.config)
    with tempfile.TemporaryDirectory() as folder:
        dataset = options.dataset
        if dataset is None:
            dataset = Path(folder) / "beauty"
            prepare(str(BEAUTY), str(dataset))
        data = SequenceDataset.load(dataset)
        if options.peak:
            print(peak_mib(data, *options.peak))
            return
        results = []
        for name in options.case:
            result = compare(data, name)
            if not options.no_memory:
                slow, fast = (memory(dataset, name, side, options.config) for side in ("slow", "fast"))
                result |= {"slow_mib": slow, "fast_mib": fast, "memory_ratio": slow / max(fast, 1.0)}
            results.append(result)
            print(json.dumps(result), file=sys.stderr, flush=True)
    machine = device_profile.machine(DEVICE.type)
    print(f"{machine}\n\n{table(results)}")
    if options.json:
        options.json.write_text(json.dumps({"machine": machine, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
