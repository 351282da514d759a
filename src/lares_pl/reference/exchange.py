"""`lares import-reference` and `lares export-reference`: conversion of checkpoints from and to the authors' release."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor
from torch.optim import Adam

from lares_pl.atomic_io import check_free
from lares_pl.data.dataset.prepared import SequenceDataset
from lares_pl.data.prepare.text_files import read_id_lines
from lares_pl.errors import LaresError
from lares_pl.losses.alignment import Alignment
from lares_pl.losses.supervision import LastStep
from lares_pl.reference.files import read_reference, read_settings
from lares_pl.reference.names import Family, family_of, from_reference, to_reference
from lares_pl.reference.settings import backbone_config, complete_settings, reference_settings
from lares_pl.stages.base import BaseStage
from lares_pl.stages.checkpoint import read_checkpoint
from lares_pl.stages.checkpoint_io import write_checkpoint
from lares_pl.stages.loading import load_stage
from lares_pl.stages.spt import SPT


def import_reference(
    source: str,
    output: str = "imported.ckpt",
    settings: str | None = None,
    dataset: str | None = None,
    items: str | None = None,
    overwrite: bool = False,
) -> None:
    """Turn a checkpoint of the authors' release into one of ours, an SPT stage.

    The result can be used like any of our checkpoints: `lares test --ckpt_path`, `--model.init_from`, `load_stage`. No code in
    the file is run. Parameters that could not be mapped, and settings taken from the paper because the file has none, are
    printed.

    Args:
        source: RecBole's checkpoint, or only a state dict.
        output: checkpoint to write.
        settings: YAML or JSON file of the release's settings, which override those in the checkpoint.
        dataset: prepared dataset to use the model with.
        items: text file with the original item id of each row of the release's item embedding except the first, one per line:
            the rows are reordered to the dataset's order. Without it they are assumed to be in that order.
        overwrite: replace the file if it exists.

    Raises:
        LaresError: if the file can't be read, or its parameters are not those of a complete model.

    Example:
        lares import-reference LARES-Nov-2025.pth --dataset prepared --output imported.ckpt
    """
    check_free(Path(output), overwrite)
    state, found = read_reference(Path(source))
    family = family_of(state)
    given = {**found, **(read_settings(Path(settings)) if settings else {})}
    if "item_embedding.weight" not in state or "position_embedding.weight" not in state:
        raise LaresError(f"{source}: parameters item_embedding.weight and position_embedding.weight are missing")
    try:
        complete, assumed = complete_settings(given, state, family)
    except (KeyError, IndexError, StopIteration) as error:
        raise LaresError(f"{source}: not the parameters of a whole {family} model: {error!r} is not to be found") from error
    if broken := [name for name, value in state.items() if not bool(value.isfinite().all())]:
        raise LaresError(f"{source}: values that are not finite in {', '.join(broken[:5])}")
    weights, unknown = from_reference(state, family)
    known = None if dataset is None else SequenceDataset.load(dataset)
    catalogue, data = _catalogue(state, known)
    if items is not None:
        weights = _reordered(weights, _order(Path(items), catalogue["items"], known))
    if family == "tedrec":
        vectors = weights["embedding.text.vectors"]
        catalogue["text"] = {"size": vectors.shape[1], "precision": str(vectors.dtype).removeprefix("torch.")}

    stage = _stage(complete, family)
    stage.adopt_catalogue(catalogue)
    missing, _ = stage.backbone.load_state_dict(_fitting(source, stage, weights), strict=False)
    if missing:
        raise LaresError(
            f"{source}: no value for {', '.join(missing)}; not mapped: {', '.join(unknown) or 'nothing'}. "
            "Settings that do not belong to these weights can be the cause: give the right ones with --settings"
        )
    checkpoint: dict[str, Any] = {
        "state_dict": stage.state_dict(),
        "hyper_parameters": dict(stage.hparams),
        "datamodule_hyper_parameters": data,
        "pytorch-lightning_version": lightning.__version__,
        "epoch": 0,
        "global_step": 0,
    }
    stage.on_save_checkpoint(checkpoint)
    write_checkpoint(checkpoint, Path(output))
    print(_report(source, output, family, catalogue, assumed, unknown, ordered=items is not None, known=known is not None))


def _stage(settings: dict[str, Any], family: Family) -> SPT:
    """Our stage for the release's settings; the release compares states as it scores items."""
    return SPT(
        backbone_config(settings, family),
        alpha=settings["alpha"],
        gamma=settings["gamma"],
        alignment=Alignment(cosine=settings["sem_func"] == "cos", tau=settings["tau"], mask_same_target=False),
        supervision=LastStep(),
        optimizer=partial(Adam, lr=1e-3),
        scheduler=None,
        ema=0.0,
    )


def _catalogue(state: dict[str, Tensor], dataset: SequenceDataset | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """The entries of our checkpoint for catalogue and data."""
    size, length = len(state["item_embedding.weight"]) - 1, len(state["position_embedding.weight"])
    data: dict[str, Any] = {"max_length": length}
    catalogue: dict[str, Any] = {"items": size, "max_length": length, "fingerprint": None}
    if dataset is not None:
        if dataset.catalogue_size != size:
            raise LaresError(
                f"{dataset.path} has {dataset.catalogue_size:,} items and the checkpoint {size:,}: prepare the data that it "
                "was trained on, with the same filters"
            )
        catalogue |= {"fingerprint": dataset.catalogue_fingerprint, "item_ids": dataset.packed_item_ids}
        data["dataset"] = str(Path(dataset.path).absolute())
    return catalogue, data


def _order(path: Path, size: int, dataset: SequenceDataset | None) -> Tensor:
    """For each row of our item embedding (padding first) the row of the release's."""
    if dataset is None:
        raise LaresError("--items says which item each row is, and needs the --dataset whose order is wanted")
    ids = read_id_lines(path)
    row_of = {item_id: row for row, item_id in enumerate(ids, start=1)}
    wanted = [str(item_id) for item_id in dataset.item_ids.to_pylist()]
    lacking = [item_id for item_id in wanted if item_id not in row_of]
    if len(ids) != size or len(row_of) != size or lacking:
        raise LaresError(
            f"{path}: {len(ids):,} lines, {len(row_of):,} different, for {size:,} items"
            + (f"; item {lacking[0]!r} of {dataset.path} is not among them" if lacking else "")
            + ". Expected the original id of each item once, in the order of the release's rows, without padding"
        )
    return torch.tensor([0, *(row_of[item_id] for item_id in wanted)])


_BY_ITEM = ("embedding.item.weight", "embedding.text.vectors")


def _reordered(weights: dict[str, Tensor], order: Tensor) -> dict[str, Tensor]:
    return {name: value[order] if name in _BY_ITEM else value for name, value in weights.items()}


def _fitting(source: str, stage: SPT, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights, their shapes checked."""
    expected = stage.backbone.state_dict()
    for name, value in weights.items():
        if name not in expected or expected[name].shape != value.shape:
            wanted = list(expected[name].shape) if name in expected else "no such parameter"
            raise LaresError(f"{source}: {name} is {list(value.shape)}, the settings make it {wanted}: give --settings")
    return weights


def _report(
    source: str,
    output: str,
    family: str,
    catalogue: dict[str, Any],
    assumed: dict[str, Any],
    unknown: list[str],
    ordered: bool,
    known: bool,
) -> str:
    size, length = catalogue["items"], catalogue["max_length"]
    order = "put into the dataset's order" if ordered else "taken as they are: row i is item i of the dataset"
    rows = [
        ("family", f"{family}, {size:,} items, histories of up to {length}"),
        ("not mapped", ", ".join(unknown) or "nothing: every parameter has its counterpart"),
        ("not in the file", ", ".join(f"{k}={v}" for k, v in assumed.items()) + " (the paper's)" if assumed else "nothing"),
        ("items", order + ("" if known else "; name it with --data.dataset when you use the checkpoint")),
    ]
    return "\n".join([f"imported {source} as {output}", *(f"  {name:<16} {value}" for name, value in rows)])


# ---------------------------------------------------------------- and back


def export_reference(
    source: str, output: str = "reference.pth", dataset: str | None = None, items: str | None = None, overwrite: bool = False
) -> None:
    """Turn a checkpoint of ours into the form of the authors' release: `{"config", "state_dict"}` under their names.

    Args:
        source: checkpoint of a stage.
        output: file to write.
        dataset: the dataset the model was trained on, if `items` is given; default: the checkpoint's.
        items: text file with original item ids, one per line, in the order of the item rows to write; default: the dataset's
            order.
        overwrite: replace the file if it exists.

    Raises:
        LaresError: if the release has no such architecture.

    Example:
        lares export-reference runs/default/spt/checkpoints/best.ckpt --output reference.pth
    """
    check_free(Path(output), overwrite)
    checkpoint = read_checkpoint(source)
    stage = load_stage(source)
    settings, family = reference_settings(stage.backbone_config)
    weights = stage.backbone.state_dict()
    if items is not None:
        folder = dataset or checkpoint.data.get("dataset")
        order = _order(Path(items), stage.backbone.items, None if folder is None else SequenceDataset.load(folder))
        weights = _reordered(weights, order.argsort())
    settings |= _losses(stage, settings)
    state = to_reference(weights, family)
    write_checkpoint({"config": settings, "state_dict": state}, Path(output))
    print(
        f"exported {source} as {output}\n  family           {family}, {stage.backbone.items:,} items, {len(state)} parameters"
    )


def _losses(stage: BaseStage, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Weights and temperature of SPT's alignment as the release names them; none of RPT.

    Raises:
        LaresError: if the stage aligns in a way that the release can't express.
    """
    if not isinstance(stage, SPT):
        return {}
    losses: dict[str, Any] = {"alpha": stage.alpha, "gamma": stage.gamma}
    alignment, scores_by_cosine = stage.alignment, settings["sem_func"] == "cos"
    if not (stage.alpha or stage.gamma):
        return losses
    if alignment.cosine != scores_by_cosine or alignment.mask_same_target:
        raise LaresError(f"the release aligns states as it scores items, and masks no rows; this stage has {alignment}")
    if scores_by_cosine and alignment.tau != settings["tau"]:
        raise LaresError(
            f"the release has one tau for scores and alignment; this stage has {settings['tau']} and {alignment.tau}"
        )
    return losses | {"tau": alignment.tau}
