"""Checks of a stage's settings and state, and the errors they raise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.optim import Optimizer

from lares_pl.errors import LaresError
from lares_pl.model.architecture import BackboneConfig
from lares_pl.model.backbone import RecurrentBackbone
from lares_pl.parsing import from_plain
from lares_pl.serialization import changed_settings, to_plain
from lares_pl.stages.checkpoint import StageCheckpoint
from lares_pl.stages.gradient_check import Update

if TYPE_CHECKING:
    from lightning import Trainer
    from torch.distributed.device_mesh import DeviceMesh


def not_finite(stage: str, update: Update) -> LaresError:
    """Build the error for a non-finite gradient.

    Args:
        stage: class of the stage.
        update: the update.
    """
    parts = ", ".join(f"{name} {float(value):.4g}" for name, value in update.values.items())
    listed = ", ".join(map(str, update.instances[:10].tolist())) + (", …" if len(update.instances) > 10 else "")
    return LaresError(
        f"{stage}: the gradient of update {update.number} (epoch {update.epoch}) is not finite. Its last batch had {parts}; "
        f"training instances {listed}. The weights are those before this update. Lower the learning rate, clip gradients "
        "(trainer.gradient_clip_val), or skip such updates (model.on_nonfinite: skip)"
    )


def has_scaler(trainer: Trainer) -> bool:
    """Whether a scaler of float16 gradients decides about updates."""
    return getattr(trainer.precision_plugin, "scaler", None) is not None


def check_sharding(trainer: Trainer, mesh: DeviceMesh) -> None:
    """Check that a sharded catalogue supports the settings of the trainer."""
    if getattr(trainer.strategy, "_save_distributed_checkpoint", False):
        raise LaresError(
            "trainer.strategy: a lares checkpoint is a single file, which any number of devices can read; set "
            "save_distributed_checkpoint: false"
        )
    if mesh["tensor_parallel"].size() == 1:
        raise LaresError(
            "trainer.strategy: with tensor_parallel_size 1 there is nothing to shard the catalogue over; use at least 2, "
            "or the strategy ddp"
        )
    if has_scaler(trainer):
        raise LaresError("trainer.precision: a sharded catalogue trains with bf16-mixed or 32-true, not with float16")


def check_optimizer(optimizer: Optimizer) -> None:
    """Check that an optimiser does not update sharded and other parameters in one kernel."""
    at_once = [name for name in ("foreach", "fused") if any(group.get(name) for group in optimizer.param_groups)]
    if at_once:
        raise LaresError(
            f"model.optimizer: {at_once[0]} updates parameters together and can't mix sharded ones with others: leave it "
            "out if the catalogue is sharded (PyTorch then updates them one by one)"
        )


def check_serializable(config: BackboneConfig) -> None:
    """Check before training that an architecture can be rebuilt from a checkpoint."""
    try:
        from_plain(BackboneConfig, to_plain(config), "backbone")
    except LaresError as error:
        raise LaresError(
            f"this architecture could not be rebuilt from a checkpoint: {error}. A block's class must be importable by name "
            "(not defined inside a function), its options named in its constructor, plain numbers, strings, lists or dicts"
        ) from error


def compare_weights(given: Mapping[str, Tensor], expected: Mapping[str, Tensor], what: str) -> None:
    """Check that weights are those of this architecture.

    Args:
        given: the weights.
        expected: those of the network.
        what: what they are, for the error.
    """
    for name in [*expected, *given]:
        found, wanted = (list(of[name].shape) if name in of else None for of in (given, expected))
        if found != wanted:
            raise LaresError(
                f"the {what} are not those of its architecture: {name} is {found or 'not there'}, expected "
                f"{wanted or 'no such parameter'}"
            )


def load_initial_weights(
    backbone: RecurrentBackbone, weights: Mapping[str, Tensor], checkpoint: StageCheckpoint, config: BackboneConfig
) -> None:
    """Load the weights of a checkpoint into a network of this architecture.

    Raises:
        LaresError: if it was trained with another one, with the settings that differ, or on histories of another length.
    """
    _compare_lengths(f"model.init_from {checkpoint.path}: its", checkpoint.catalogue["max_length"], backbone.max_length)
    try:
        backbone.load_state_dict(weights)
    except RuntimeError as error:
        differ = ", ".join(changed_settings(checkpoint.settings["backbone"], to_plain(config)))
        why = f"model.backbone: {differ}" if differ else str(error)
        raise LaresError(
            f"model.init_from {checkpoint.path}: its weights don't fit this model ({why}). Train with the architecture of that "
            "checkpoint, or without its weights"
        ) from error


def compare_catalogues(of_model: Mapping[str, Any], of_data: Mapping[str, Any], where: str) -> None:
    """Check that model and data have the same catalogue."""
    fingerprints = {of_model["fingerprint"], of_data["fingerprint"]} - {None}  # an imported checkpoint may have none
    if of_model["items"] != of_data["items"] or len(fingerprints) > 1:
        raise LaresError(
            f"{where}: the checkpoint's model has another catalogue ({of_model['items']:,} items, fingerprint "
            f"{of_model['fingerprint']}) than this dataset ({of_data['items']:,} items, fingerprint {of_data['fingerprint']}). "
            "Use the dataset the model was trained on (--data.dataset), or train a model on this one."
        )
    _compare_lengths("the checkpoint's", of_model["max_length"], of_data["max_length"])


def _compare_lengths(whose: str, longest: int, of_data: int) -> None:
    """Check that a model reads histories of the data's length; `whose` it is."""
    if longest != of_data:
        raise LaresError(
            f"{whose} model reads histories of up to {longest} items and data.max_length is {of_data}: set data.max_length to "
            f"{longest}"
        )
