"""The study behind docs/results.md: models x datasets x seeds, trained by the command line, skipped where done.

    python benchmarks/study.py run --data DIRECTORY --folder study [--datasets beauty …] [--models recipe …] [--seeds 1 2 3]
    python benchmarks/study.py table [--record docs/study.jsonl] [--output docs]

DIRECTORY holds prepared datasets (`lares prepare`), one a folder. Every run is an ordinary `lares fit` in FOLDER/DATASET/SEED,
with what it printed in a log beside it; a run that was killed is resumed from its last checkpoint, a finished one is skipped.
Its line in the record (`docs/study.jsonl`) holds settings, CPU seconds of training, and Recall@10 and NDCG@10 of both protocols
(items seen before ranked, or left out) at depths 0 to 16, by the last step and by the mean score of all steps. `table` writes
tables, paired tests and the chart of the results page from these lines alone.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from study_grid import BUDGETS, MODELS
from study_runs import run_grid
from study_tables import write_results


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="train and evaluate what is missing")
    run.add_argument("--data", type=Path, required=True, help="folder of prepared datasets")
    run.add_argument("--datasets", nargs="+", choices=list(BUDGETS), default=list(BUDGETS))
    run.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    run.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    run.add_argument("--device", default="cpu", choices=["cpu", "gpu"])
    table = commands.add_parser("table", help="write table, tests and chart")
    table.add_argument("--output", type=Path, default=Path("docs"), help="folder of the pages")
    run.add_argument("--folder", type=Path, default=Path("study"), help="where the runs go")
    for command in (run, table):
        command.add_argument("--record", type=Path, default=Path("docs/study.jsonl"), help="a line for each finished cell")
    options = parser.parse_args()
    if options.command == "run":
        run_grid(options.record, options.folder, options.data, options.datasets, options.models, options.seeds, options.device)
    else:
        write_results(options.record, options.output)


if __name__ == "__main__":
    main()
