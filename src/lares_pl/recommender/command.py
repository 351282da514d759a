"""`lares recommend`: histories from a file in, ranked items in a file out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from lares_pl.atomic_io import atomic_write, check_free
from lares_pl.data.loading.external_histories import UnseenHistories
from lares_pl.data.prepare.columns import Columns
from lares_pl.data.prepare.source import Format, Source
from lares_pl.data.prepare.text_files import read_id_lines
from lares_pl.errors import LaresError
from lares_pl.model.reasoning import StopRule
from lares_pl.recommender.api import Recommender
from lares_pl.recommender.new_items import read_new_items
from lares_pl.recommender.recommendations import Recommendations


def recommend(
    ckpt_path: str,
    histories: str,
    output: str = "recommendations.parquet",
    k: int = 10,
    depth: int | None = None,
    stop: StopRule | None = None,
    trajectories: int = 1,
    average_steps: bool = False,
    exclude_seen: bool | None = None,
    candidates: str | None = None,
    new_items: str | None = None,
    columns: Columns = Columns(),
    format: Format | None = None,
    encoding: str | None = None,
    separator: str | None = None,
    header: list[str] | str | None = None,
    dataset: str | None = None,
    device: str = "cpu",
    batch_size: int = 1024,
    overwrite: bool = False,
) -> None:
    """Rank the catalogue for histories never seen in training; the checkpoint is all that is needed.

    Args:
        ckpt_path: checkpoint of a stage.
        histories: file or folder of interactions, in a format `lares prepare` reads, with original ids.
        output: file to write: `.parquet` with one row per user, `.csv` with one row per recommendation.
        k: length of each list.
        depth: number of reasoning steps; with `stop` the largest.
        stop: ends reasoning about a history early, such as `lares_pl.ResidualStop`.
        trajectories: trajectories from different initial states, whose scores are averaged.
        average_steps: average the scores of all steps, which suits more steps than the mean depth.
        exclude_seen: exclude the items of each history; default: as in the model's evaluation.
        candidates: text file with the original ids of the items to rank, one per line; default: all items.
        new_items: Parquet file of items to rank from their text alone, with columns `item_id` and `embedding`, such as
            `items.parquet` of a newer dataset; for models that read text. Items that are known, or have no text, are left out.
        columns: names of the columns of `histories`.
        format: format of `histories`; default: as its name tells.
        encoding: encoding of text files; default: UTF-8, or that of a byte order mark.
        separator: separator of fields, such as ; or | or :: or tab; default: a comma in CSV, a tab in TSV.
        header: names of the columns, a list or separated by commas, for text without a header line.
        dataset: prepared dataset with the original ids, for a checkpoint that contains none.
        device: cpu, cuda, or auto (the GPU if there is one).
        batch_size: histories per batch.
        overwrite: replace the file if it exists.

    Raises:
        LaresError: if something can't be read or written, or is out of range.

    Example:
        lares recommend --ckpt_path runs/beauty/rpt/checkpoints/best.ckpt --histories new.csv --k 20
        lares recommend --ckpt_path best.ckpt --histories new.csv --exclude_seen true --output new-lists.csv
        lares recommend --ckpt_path best.ckpt --histories new.csv --depth 16 --stop lares_pl.ResidualStop
    """
    place = Path(output)
    if place.suffix not in (".parquet", ".csv"):
        raise LaresError(f"--output {output}: name a file that ends with .parquet or .csv")
    check_free(place, overwrite)
    recommender = Recommender.from_checkpoint(ckpt_path, dataset, device)
    if new_items is not None:
        known = recommender.backbone.items
        recommender = recommender.with_items(*read_new_items(Path(new_items)))
        print(f"{recommender.backbone.items - known:,} new items are ranked from their text, beside {known:,} known ones")
    among = None if candidates is None else read_id_lines(Path(candidates), encoding)
    unseen = UnseenHistories.read(Source(Path(histories), format, encoding, separator, header), columns)
    found = recommender.recommend(
        dict(zip(unseen.users, np.split(unseen.items, unseen.offsets[1:-1]), strict=True)),
        k,
        depth=depth,
        stop=stop,
        trajectories=trajectories,
        average_steps=average_steps,
        exclude_seen=exclude_seen,
        candidates=among,
        batch_size=batch_size,
    )
    with atomic_write(place) as temporary:
        if place.suffix == ".csv":
            found.to_pandas().to_csv(temporary, index=False)
        else:
            pq.write_table(found.to_arrow(), temporary, compression="zstd")
    if found.unknown_candidates:
        print(
            f"{len(found.unknown_candidates):,} candidates are not in the catalogue and can't be ranked: the first is "
            f"{found.unknown_candidates[0]!r}"
        )
    if k > recommender.backbone.items:
        print(f"the catalogue has {recommender.backbone.items:,} items, so no list has {k:,} (--k)")
    print("\n".join([f"wrote {_lists(found):,} rankings to {place}", *_about_unknown(found, len(unseen.items))]))


def _lists(found: Recommendations) -> int:
    """Users that have a list."""
    return sum(map(bool, found.item_ids))


def _about_unknown(found: Recommendations, interactions: int) -> Iterator[str]:
    if unknown := sum(map(len, found.unknown)):
        row = next(row for row, items in enumerate(found.unknown) if items)
        yield (
            f"{unknown:,} of {interactions:,} interactions name items that the model does not know, and were skipped: the "
            f"first is {found.unknown[row][0]!r} of user {found.users[row]!r}"
        )
    if nothing := len(found) - _lists(found):
        user = next(user for user, items in zip(found.users, found.item_ids, strict=True) if not items)
        yield f"{nothing:,} users have no list: the first is {user!r}; a CSV file does not name them"
