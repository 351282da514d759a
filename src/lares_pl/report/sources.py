"""The checkpoints of a report: found in run folders and files, and grouped if they differ only in their seed."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lares_pl.errors import LaresError
from lares_pl.runs import BEST, LAST
from lares_pl.stages.checkpoint import StageCheckpoint, read_checkpoint

_MOVED_ASIDE = re.compile(r"\.\d+$")  # `spt.1`: what a new run of the same name moved out of its way
# what tells one training of a configuration from another, or says where and how it is shown
_NOT_CONFIGURATION = (
    "seed_everything",
    "run",
    "stage",
    "ckpt_path",
    "depth",
    "stop",
    "trajectories",
    "average_steps",
    "test_after_fit",
    "data.seed",
    "data.dataset",  # these two as the checkpoint has them: a resumed run records the same values in other words
    "model",
    "trainer.logger",
    "trainer.enable_progress_bar",
    "trainer.enable_model_summary",
    "trainer.default_root_dir",
)


@dataclass(frozen=True)
class Source:
    """A checkpoint to report on.

    Args:
        checkpoint: its description.
        run: name of its run.
        stage: name of its stage (that of the folder, if it is in one).
        folder: of the stage, with metrics and configuration; None for a single file.
        configuration: everything that determined the training except the seed, as JSON types, for comparison.
    """

    checkpoint: StageCheckpoint
    run: str
    stage: str
    folder: Path | None
    configuration: dict[str, Any]

    @property
    def path(self) -> Path:
        """The file."""
        return self.checkpoint.path

    @property
    def name(self) -> str:
        """`RUN/STAGE`; for a file that is not a run's best, with the file's name."""
        place = f"{self.run}/{self.stage}" if self.folder is not None else self.run
        return place if self.folder is None or self.path.name == BEST.name else f"{place} ({self.path.stem})"

    @property
    def seed(self) -> int | None:
        """The seed of its run."""
        return self.checkpoint.seed


@dataclass(frozen=True)
class Group:
    """Checkpoints of one configuration, trained with different seeds.

    Args:
        label: a short name, unique in the report.
        sources: one per seed.
    """

    label: str
    sources: tuple[Source, ...]


def find_sources(paths: Sequence[str]) -> tuple[list[Source], list[str]]:
    """Find the checkpoints of run folders (`runs/NAME`), stage folders (`runs/NAME/STAGE`) and files.

    Returns:
        The checkpoints, and a sentence about each folder that was left out.

    Raises:
        LaresError: if there is none at a path, or it can't be read.
    """
    files: list[Path] = []
    remarks: list[str] = []
    for path in map(Path, paths):
        if path.is_file():
            files.append(path)
            continue
        stages = [path, *(sorted(path.iterdir()) if path.is_dir() else [])]
        found = {stage: stage / name for stage in stages for name in (LAST, BEST) if (stage / name).is_file()}
        chosen: list[Path] = []
        left_out = [
            f"{stage} has no checkpoint and is left out."
            for stage in stages
            if stage not in found and (stage / "config.yaml").is_file()
        ]
        for stage, file in found.items():
            if stage != path and _MOVED_ASIDE.search(stage.name):
                left_out.append(f"{stage} was moved aside by a later run and is left out; name it to have it reported.")
                continue
            if file.name == LAST.name:
                remarks.append(f"{stage} has no {BEST.name}, its {LAST.name} is used instead.")
            chosen.append(file)
        remarks += left_out

        files += sorted(chosen, key=lambda file: read_checkpoint(file).initial_checkpoint is not None)  # SPT before RPT
        if not chosen:
            raise LaresError(
                f"{path}: no run to report on. {''.join(f'{why} ' for why in left_out)}"
                f"Name a run's folder (runs/NAME, with {BEST} in the folders of its stages), "
                "a stage's folder (runs/NAME/STAGE) or a checkpoint file"
            )
    unique = list({file.resolve(): file for file in files}.values())
    return [_source(file) for file in unique], remarks


def _source(path: Path) -> Source:
    checkpoint = read_checkpoint(path)
    in_run = path.absolute().parent.name == BEST.parent.name
    folder = path.absolute().parent.parent if in_run else None
    run = folder.parent.name if folder is not None else path.stem
    stage = folder.name if folder is not None else checkpoint.stage_name.lower()
    configuration = json.loads(json.dumps(_configuration(checkpoint, folder), default=str))
    return Source(checkpoint, run, stage, folder, configuration)


def _configuration(checkpoint: StageCheckpoint, folder: Path | None, depth: int = 0) -> dict[str, Any]:
    """Everything but the seed that determined the training: the recorded config, if any, and that of the initial checkpoint."""
    parts: dict[str, Any] = {"class": checkpoint.class_path, "settings": checkpoint.settings}
    parts |= {"items": checkpoint.catalogue, "data": checkpoint.data}
    record = None if folder is None else folder / "config.yaml"
    if record is not None and record.is_file():
        try:
            parts["record"] = _without_names(yaml.safe_load(record.read_text(encoding="utf-8")))
        except (ValueError, yaml.YAMLError) as error:
            raise LaresError(
                f"{record}: can't be read as YAML: {error}. Restore it, or report on the checkpoint alone"
            ) from error
    start = checkpoint.initial_checkpoint
    if start is not None and depth < 8 and Path(start).is_file():  # 8: of a chain that leads back to itself
        first = Path(start)
        parts["start"] = _configuration(
            read_checkpoint(first), first.parent.parent if first.parent.name == BEST.parent.name else None, depth + 1
        )
    return parts


def _without_names(record: Any) -> Any:
    """A recorded config without the keys that may differ between seeds of one configuration."""
    for key in _NOT_CONFIGURATION:
        *path, last = key.split(".")
        place = record
        for name in path:
            place = place.get(name) if isinstance(place, dict) else None
        if isinstance(place, dict):
            place.pop(last, None)
    return record


def group_by_seed(sources: Sequence[Source]) -> list[Group]:
    """Group checkpoints by configuration, in the order of their first one; a group never has two of the same seed."""
    groups: list[list[Source]] = []
    for source in sources:
        for group in groups:
            same = group[0].configuration == source.configuration and group[0].stage == source.stage
            if same and source.seed is not None and all(source.seed != other.seed for other in group):
                group.append(source)
                break
        else:
            groups.append([source])
    return [Group(label, tuple(group)) for label, group in zip(_labels(groups), groups, strict=True)]


def why_apart(groups: Sequence[Group]) -> list[str]:
    """Explain for each further group of a stage how its configuration differs from that of the most similar earlier group."""
    said = []
    for number, group in enumerate(groups):
        first = group.sources[0]
        others = [other.sources[0] for other in groups[:number] if other.sources[0].stage == first.stage]
        apart = {other.name: _differences(other.configuration, first.configuration) for other in others}
        if apart:
            name, keys = min(apart.items(), key=lambda item: len(item[1]))
            listed = ", ".join(keys[:_FEW]) + (f" and {len(keys) - _FEW} more" if len(keys) > _FEW else "")
            seed = f"that group already has seed {first.seed}" if first.seed is not None else "its seed is unknown"
            why = f"they differ in {listed}" if keys else seed
            said.append(f"{first.name} is not grouped with {name} as another seed of one configuration: {why}.")
    return said


_FEW = 4


def _differences(a: Any, b: Any, key: str = "") -> list[str]:
    """Dotted keys at which two records differ."""
    if isinstance(a, dict) and isinstance(b, dict):
        names = sorted(a.keys() | b.keys())
        return [found for name in names for found in _differences(a.get(name), b.get(name), f"{key}.{name}" if key else name)]
    return [] if a == b else [key]


_LONGEST = 28


def _labels(groups: Sequence[Sequence[Source]]) -> list[str]:
    """Short, unique labels: the name of the stage, with that of the run if several groups share it, and the number of seeds."""
    stages = Counter(group[0].stage for group in groups)
    labels = []
    for group in groups:
        first = group[0]
        label = first.stage if stages[first.stage] == 1 and first.folder is not None else first.name
        seeds = f" ({len(group)} seeds)" if len(group) > 1 else ""
        label = label if len(label) + len(seeds) <= _LONGEST else "…" + label[-(_LONGEST - len(seeds) - 1) :]
        labels.append(label + seeds)
    taken: Counter[str] = Counter()
    unique = []
    for label in labels:
        taken[label] += 1
        unique.append(label if taken[label] == 1 else f"{label} #{taken[label]}")
    return unique
