"""The results page from the study's lines: tables in Markdown, paired tests, and the chart of quality by depth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lares_pl.report.statistics import mean_and_spread, seed_test
from study_grid import BUDGETS, MODELS
from study_runs import DEPTHS, PROTOCOLS, results

START, END = "<!-- study: written by benchmarks/study.py -->", "<!-- end of study -->"
FRONT_PAGE = ("sasrec", "sasrec4", "recipe")
BASELINE = "sasrec"
READ_OUTS = {"test": "last step", "test_averaged": "mean score of all steps"}
Lines = Sequence[dict[str, Any]]


def write_results(record: Path, output: Path) -> None:
    """Replace the study's part of `results.md` and of the README beside the folder, and draw `assets/depth.svg`."""
    lines = results(record)
    replace_part(output / "results.md", "\n\n".join([quality(lines), by_depth(lines), cost(lines)]))
    replace_part(output.parent / "README.md", front_page(lines))
    draw(lines, output / "assets" / "depth.svg")


def replace_part(page: Path, part: str) -> None:
    """Replace what stands between the two marks of a page."""
    text = page.read_text()
    if START not in text or END not in text:
        raise SystemExit(f"{page}: expected the lines {START} and {END}")
    before, rest = text.split(START)
    page.write_text(f"{before}{START}\n\n{part}\n\n{END}{rest.split(END)[1]}")


def front_page(lines: Lines) -> str:
    """Test NDCG@10 of a few models, both protocols in one cell: items seen before ranked / left out."""
    datasets = found(lines)[0]
    rows = ["| test NDCG@10, seen items ranked / left out | parameters* | " + " | ".join(datasets) + " |"]
    rows += ["|---|---|" + "---|" * len(datasets)]
    for model in FRONT_PAGE:
        own = [line for line in lines if line["model"] == model]
        if not own:
            continue
        texts = []
        for dataset in datasets:
            of_dataset = cells(lines, dataset, model)
            means = [np.mean([value(line, protocol) for line in of_dataset]) for protocol in PROTOCOLS] if of_dataset else []
            texts.append(" / ".join(f"{mean:.4f}" for mean in means) or "not run")
        rows.append(f"| {MODELS[model].label} | {own[0]['parameters_without_items']:,} | " + " | ".join(texts) + " |")
    seeds = sorted({line["seed"] for line in lines})
    over = f"Means over up to {len(seeds)} seeds." if len(seeds) > 1 else "One seed so far."
    return "\n".join([*rows, "", f"\\* without the item embeddings. {over}"])


def cells(lines: Lines, dataset: str, model: str) -> Lines:
    """The lines of one model on one dataset, by seed."""
    own = (line for line in lines if (line["dataset"], line["model"]) == (dataset, model))
    return sorted(own, key=lambda line: line["seed"])


def found(lines: Lines) -> tuple[list[str], list[str]]:
    """Datasets and models with a finished cell, in the order of the grid."""
    datasets = [name for name in BUDGETS if any(line["dataset"] == name for line in lines)]
    return datasets, [name for name in MODELS if any(line["model"] == name for line in lines)]


def value(line: dict[str, Any], protocol: str, depth: int | None = None, split: str = "test") -> float:
    """Test NDCG@10 at the depth of evaluation, or another one."""
    number: float = line[split][protocol][str(line["depth"] if depth is None else depth)]["ndcg@10"]
    return number


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation over seeds, and their number where it is less than three."""
    mean, deviation = mean_and_spread(values)
    around = f" ± {deviation:.4f}" if len(values) > 1 else ""
    few = {1: " (one seed)", 2: " (two seeds)"}.get(len(values), "")
    return f"{mean:.4f}{around}{few}"


def quality(lines: Lines) -> str:
    """Test NDCG@10 of every model and dataset, both protocols, and how far it is from the baseline."""
    datasets, models = found(lines)
    rows = []
    for protocol in PROTOCOLS:
        rows += [f"### Test NDCG@10, items seen before {protocol}", ""]
        rows += ["| model | " + " | ".join(datasets) + " |", "|---|" + "---|" * len(datasets)]
        for model in models:
            texts = [_cell(lines, dataset, model, protocol) for dataset in datasets]
            rows.append(f"| {MODELS[model].label} | " + " | ".join(texts) + " |")
        rows.append("")
    return "\n".join(rows).rstrip()


def _cell(lines: Lines, dataset: str, model: str, protocol: str) -> str:
    own, base = cells(lines, dataset, model), cells(lines, dataset, BASELINE)
    if not own:
        return "not run"
    text = spread([value(line, protocol) for line in own])
    if model == BASELINE or not base:
        return text
    ours, theirs = ({line["seed"]: value(line, protocol) for line in some} for some in (own, base))
    return f"{text}, {_gain(ours, theirs)}" if ours.keys() & theirs.keys() else text


def _gain(ours: Mapping[int, float], theirs: Mapping[int, float]) -> str:
    """How far one value is above another, over the seeds that both have, with a paired test where there are several."""
    both = sorted(ours.keys() & theirs.keys())
    ours, theirs = ({seed: some[seed] for seed in both} for some in (ours, theirs))
    gain = np.mean([*ours.values()]) / np.mean([*theirs.values()]) - 1
    test = seed_test(ours, theirs)
    return f"{gain:+.1%}" + (f" (p {test.p_value:.1g})" if test is not None else "")


def by_depth(lines: Lines) -> str:
    """Test NDCG@10 of models with recurrence at other depths, the same weights: by the last step, and by all steps."""
    datasets, models = found(lines)
    rows = ["### Depth, the same weights: test NDCG@10, items seen before left out", ""]
    rows += [
        "| model | dataset | ranked by | " + " | ".join(f"depth {depth}" for depth in DEPTHS) + " | 4 against 1 | 8 against 4 |"
    ]
    rows += ["|---|---|---|" + "---|" * (len(DEPTHS) + 2)]
    for model in models:
        for dataset in datasets:
            own = [line for line in cells(lines, dataset, model) if line["depth"]]
            if not own:
                continue
            for split, label in READ_OUTS.items():
                of = {depth: {line["seed"]: value(line, "left out", depth, split) for line in own} for depth in DEPTHS}
                texts = " | ".join(f"{np.mean([*of[depth].values()]):.4f}" for depth in DEPTHS)
                gains = f"{_gain(of[4], of[1])} | {_gain(of[8], of[4])}"
                rows.append(f"| {MODELS[model].label} | {dataset} | {label} | {texts} | {gains} |")
    return "\n".join(rows)


def cost(lines: Lines) -> str:
    """CPU seconds of training and numbers of parameters."""
    datasets, models = found(lines)
    rows = ["### Cost: CPU seconds of one thread, validations included; parameters beside the item embeddings", ""]
    rows += ["| model | parameters | " + " | ".join(datasets) + " |", "|---|---|" + "---|" * len(datasets)]
    for model in models:
        texts = [_seconds(lines, dataset, model) for dataset in datasets]
        (parameters, *_) = [line["parameters_without_items"] for line in lines if line["model"] == model]
        rows.append(f"| {MODELS[model].label} | {parameters:,} | " + " | ".join(texts) + " |")
    return "\n".join(rows)


def _seconds(lines: Lines, dataset: str, model: str) -> str:
    own, base = ([_total(line) for line in cells(lines, dataset, name)] for name in (model, BASELINE))
    known, of_base = ([seconds for seconds in some if seconds is not None] for some in (own, base))
    if not known:
        return "not known" if own else "not run"
    ratio = f" ({np.mean(known) / np.mean(of_base):.2f} x)" if of_base else ""
    return f"{np.mean(known):.0f}{ratio}"


def _total(line: dict[str, Any]) -> float | None:
    seconds = list(line["cpu_seconds"].values())
    return None if None in seconds else sum(seconds)


def draw(lines: Lines, path: Path) -> None:
    """Quality by depth of the recipe, with the baseline as a line."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "lares"  # the same file from the same figures
    from matplotlib import pyplot as plt

    datasets = [name for name in found(lines)[0] if cells(lines, name, "recipe")]
    panels = max(1, len(datasets))
    columns = min(3, panels)
    rows = -(-panels // columns)
    for_legend = 0.7  # inches
    height = 2.6 * rows + for_legend
    figure, axes = plt.subplots(rows, columns, figsize=(3.2 * columns, height), squeeze=False)
    for axis in axes.flat[len(datasets) :]:
        axis.set_axis_off()
    for axis, dataset in zip(axes.flat, datasets, strict=False):
        own = cells(lines, dataset, "recipe")
        for split, label in READ_OUTS.items():
            of_seeds = np.array([[value(line, "left out", d, split) for d in DEPTHS] for line in own])
            axis.plot(DEPTHS, of_seeds.mean(axis=0), marker="o", markersize=4, label=f"recipe, {label}")
            axis.fill_between(DEPTHS, of_seeds.min(axis=0), of_seeds.max(axis=0), alpha=0.15)
        for name, style in (("sasrec", ":"), ("sasrec4", "--"), ("flat", "-.")):
            baseline = [value(line, "left out") for line in cells(lines, dataset, name)]
            if baseline:
                axis.axhline(float(np.mean(baseline)), linestyle=style, color="black", linewidth=1, label=MODELS[name].label)
        axis.set(title=dataset, xlabel="reasoning steps", xticks=[d for d in DEPTHS if d != 1])
    for row in axes:
        row[0].set_ylabel("test NDCG@10,\nseen items left out")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=columns, frameon=False)
    figure.tight_layout(rect=(0, for_legend / height, 1, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
