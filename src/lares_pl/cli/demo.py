"""`lares demo`: everything in one go, with the commands a person would type, and a summary at the end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lares_pl.atomic_io import move_aside, write_json
from lares_pl.errors import LaresError

if TYPE_CHECKING:
    from lares_pl.data.trips import Trips

DEPTHS = (1, 2, 4, 8)
STOP_BELOW = 0.3  # adaptive depth: a step that changes the state by less is the last
# rows of the table, and the stages they come from; the layers of all three are alike
TRAINED = {"2 layers, not repeated": "flat-2", "4 layers, not repeated": "flat-4", "SPT, 1 + 1 layers": "spt"}
FOLDER = Path("runs") / "demo"
#: hops between the last item and the target, of the embedded data
HOPS = {"1-2": (1, 2), "3-4": (3, 4), "5+": (5, 1 << 30)}

Row = dict[str, float]  # a value over all users ("all"), and over the users of each range of hops


def demo(data: str | None = None) -> None:
    """Prepare, train without recurrence, pre-train (SPT), post-train (RPT) and predict, on a CPU in about five minutes.

    The final table shows test NDCG@10 of each model, and of the last one at several depths. On the embedded data, where the
    target is a known number of hops away, it splits users by that number. Everything is kept in runs/demo; what is there
    already is moved aside.

    Args:
        data: file with interactions of your own, in a format `lares prepare` reads; the embedded data where not given.

    Example:
        lares demo
        lares demo --data ml-100k.inter
    """
    if data is not None and not Path(data).is_file():
        raise LaresError(f"no such file: {data}")
    if data is not None and FOLDER.resolve() in Path(data).resolve().parents:
        raise LaresError(f"{data} lies in {FOLDER}, which the demonstration moves aside; put it elsewhere")
    if (former := move_aside(FOLDER)) is not None:
        print(f"{FOLDER} was there already: moved it to {former}")
    process = None
    source = data
    if source is None:
        from lares_pl.data.synthetic import write_interactions
        from lares_pl.data.trips import Trips

        process = Trips()
        source = str(FOLDER / "interactions.tsv")
        write_interactions(process, Path(source))
        print(f"embedded data: {process.users} users, {process.items} items -> {source}")
    dataset = str(FOLDER / "dataset")
    _train(source, dataset)
    summary = measure(dataset, process)
    write_json(FOLDER / "summary.json", summary)
    print(table(summary))


def _train(source: str, dataset: str) -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # tensors so small that a second thread costs more than it gives
    run = ["--run", "demo", "--trainer.accelerator", "cpu", "--trainer.devices", "1"]
    flat = ["fit", "--config", "sasrec.yaml", "--config", "demo-flat.yaml", *run, "--data.dataset", dataset]
    _lares("prepare", source, "--output", dataset)
    _lares(*flat, "--stage", "flat-2")
    _lares(*flat, "--stage", "flat-4", "--model.backbone.pre_layers", "4")
    _lares("fit", "--config", "spt.yaml", "--config", "demo.yaml", *run, "--data.dataset", dataset)
    _lares("fit", "--config", "rpt.yaml", "--config", "demo-rpt.yaml", *run)
    _lares("predict", "--ckpt_path", str(_best("rpt")), "--output", str(FOLDER / "predictions.parquet"))


def _lares(*arguments: str) -> None:
    """Run a command as a person would, and show it."""
    print(f"\n$ lares {' '.join(arguments)}", flush=True)
    status = subprocess.run([sys.executable, "-m", "lares_pl", *arguments], check=False).returncode
    if status:
        raise LaresError(f"the demonstration stopped: `lares {arguments[0]}` ended with status {status}")


def _best(stage: str) -> Path:
    return FOLDER / stage / "checkpoints" / "best.ckpt"


# ---------------------------------------------------------------- what came out


def measure(dataset: str, process: Trips | None) -> dict[str, Any]:
    """Test NDCG@10 of everything that was trained.

    Args:
        dataset: the prepared dataset.
        process: that the data come from; None for other data.

    Returns:
        `models`: a row each; `depth`: the last model's rows by depth; `adaptive`: NDCG@10 and mean number of steps where each
        user's reasoning stops by itself; `users`: how many there are.
    """
    groups = _groups(dataset, process)

    def row(values: np.ndarray) -> Row:
        return {name: float(values[members].mean()) for name, members in groups.items() if members.any()}

    models = {"popularity": row(_popularity_of_users(dataset))}
    for name, stage in TRAINED.items():
        models[name] = row(_evaluate(str(_best(stage)), dataset)[0])
    depths = {str(depth): row(_evaluate(str(_best("rpt")), dataset, depth)[0]) for depth in DEPTHS}
    models["SPT + RPT"] = row(_evaluate(str(_best("rpt")), dataset)[0])
    if process is not None:
        items, lengths = _of_users(process.sample(), dataset)
        models["best possible"] = row(process.best_ndcg(items, lengths))
    ndcg, steps = _evaluate(str(_best("rpt")), dataset, max(DEPTHS), STOP_BELOW)
    adaptive = {"ndcg": row(ndcg), "steps": row(steps)}
    counts = {name: int(members.sum()) for name, members in groups.items()}
    return {"models": models, "depth": depths, "adaptive": adaptive, "users": counts}


def _groups(dataset: str, process: Trips | None) -> dict[str, np.ndarray]:
    """Which users of the test split count for each column of the table."""
    from lares_pl.data.dataset.prepared import SequenceDataset

    users = len(SequenceDataset.load(dataset).held_out("test"))
    groups = {"all": np.ones(users, dtype=bool)}
    if process is not None:
        items, lengths = _of_users(process.sample(), dataset)
        hops = process.travel(items, lengths - 1)[1]
        groups |= {name: (first <= hops) & (hops <= last) for name, (first, last) in HOPS.items()}
    return groups


def _of_users(arrays: tuple[np.ndarray, ...], dataset: str) -> tuple[np.ndarray, ...]:
    """Rows of the process in the order of the prepared dataset's users, whose ids are u0, u1, …"""
    from lares_pl.data.dataset.prepared import SequenceDataset

    rows = [int(user[1:]) for user in SequenceDataset.load(dataset).user_ids.to_pylist()]
    return tuple(array[rows] for array in arrays)


def _evaluate(
    checkpoint: str, dataset: str, depth: int | None = None, threshold: float | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Test NDCG@10 and number of steps of each user; what `lares test --depth` averages."""
    import torch

    from lares_pl.data.module import SequenceDataModule
    from lares_pl.losses.rewards import ndcg
    from lares_pl.model.reasoning import Reasoning, ResidualStop
    from lares_pl.stages.loading import load_stage

    stage = load_stage(checkpoint)
    data = SequenceDataModule(dataset)
    data.setup("test")
    stop = None if threshold is None else ResidualStop(threshold)
    reasoning = Reasoning(stage.evaluation_depth if depth is None else depth, stop)
    values, steps = [], []
    with torch.inference_mode():
        for batch in data.test_dataloader():
            reasoned = reasoning(stage.backbone, batch.histories)
            ranks = stage.backbone.head(batch.histories).rank(reasoned.states, batch.targets)
            values.append(ndcg(ranks, 10))
            steps.append(reasoned.steps)
    return torch.cat(values).numpy(), torch.cat(steps).numpy()


def popularity_ndcg(dataset: str, k: int = 10) -> float:
    """Test NDCG@k of ranking by the number of training interactions; ties count against the target."""
    return float(_popularity_of_users(dataset, k).mean())


def _popularity_of_users(dataset: str, k: int = 10) -> np.ndarray:
    from lares_pl.data.dataset.prepared import SequenceDataset

    sequences = SequenceDataset.load(dataset)
    test = sequences.held_out("test").all()
    held = np.zeros(len(sequences.items), dtype=bool)
    held[test.ends] = held[test.ends - 1] = True
    counts = np.bincount(sequences.items[~held], minlength=sequences.catalogue_size + 1)
    ranked = np.sort(counts[1:])
    ranks = len(ranked) - np.searchsorted(ranked, counts[sequences.targets(test)], side="left")
    return np.where(ranks <= k, 1 / np.log2(1 + ranks), 0.0)


# ---------------------------------------------------------------- the table


def table(summary: dict[str, Any]) -> str:
    """The summary as text."""
    columns = list(summary["users"])
    width = 30 + 9 * len(columns)
    head = [f"{name} hops" if name in HOPS else name for name in columns]
    lines = ["", f"{'test NDCG@10':<30}" + "".join(f"{name:>9}" for name in head), "-" * width]
    lines += [_line(name, row, columns) for name, row in summary["models"].items()]
    lines += ["", *(_line(f"SPT + RPT at depth {depth}", row, columns) for depth, row in summary["depth"].items())]
    lines += ["", _line("SPT + RPT, adaptive depth", summary["adaptive"]["ndcg"], columns)]
    lines += [_line("  mean steps it made", summary["adaptive"]["steps"], columns, ".1f")]
    files = f"also in {FOLDER / 'summary.json'}; rankings in {FOLDER / 'predictions.parquet'}"
    return "\n".join([*lines, "", files])


def _line(name: str, row: Row, columns: list[str], form: str = ".3f") -> str:
    return f"{name:<30}" + "".join(f"{row[column]:>9{form}}" if column in row else " " * 9 for column in columns)
