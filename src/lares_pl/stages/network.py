"""A LightningModule whose network is built once the catalogue is known, sharded, saved and loaded."""

from __future__ import annotations

from typing import Any, Self

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.nn.parallel import DistributedDataParallel

from lares_pl.data.dataset.ids import unpacked_ids
from lares_pl.data.module import SequenceDataModule
from lares_pl.errors import LaresError
from lares_pl.model.architecture import BackboneConfig
from lares_pl.model.backbone import RecurrentBackbone
from lares_pl.model.embedding import ItemText
from lares_pl.serialization import class_path_of, with_subclasses
from lares_pl.stages.checkpoint import KEY, StageCheckpoint, read_checkpoint
from lares_pl.stages.compatibility import check_not_compiled
from lares_pl.stages.distributed import share_values
from lares_pl.stages.growth import ITEM_TABLE, TEXT_TABLE, grown_table, match_catalogues
from lares_pl.stages.validation import (
    check_serializable,
    check_sharding,
    compare_catalogues,
    compare_weights,
    load_initial_weights,
)


class NetworkModule(L.LightningModule):
    """Owns a backbone, and its average where one is kept.

    The network is built when the data is known (`configure_model`), from catalogue size and history length.

    Args:
        backbone: the architecture.
        init_from: checkpoint whose backbone weights to start from; if it is of another catalogue, items are matched by id.
        ema: decay of an average of the weights, within [0, 1); 0 keeps none. With it `backbone` is the average, and `learner`
            is what updates change.
    """

    #: what training batches must bring: instances to align (of a sequence), histories with the same targets
    needs_aligned = False
    needs_partners = False

    def __init__(self, backbone: BackboneConfig, init_from: str | None, ema: float) -> None:
        super().__init__()
        if not 0 <= ema < 1:
            raise LaresError(f"ema must be within [0, 1), got {ema}: 0 keeps no average, 0.999 is a common decay")
        check_serializable(backbone)
        self.backbone_config = backbone
        self.init_from = init_from
        self.ema = ema
        #: checkpoint this run's weights came from; kept over resuming, for the record
        self.initial_checkpoint = init_from
        self._catalogue: dict[str, Any] | None = None
        self._text_vectors: Tensor | None = None  # of the dataset, until the network takes them

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *arguments: Any, **options: Any) -> Self:
        """As Lightning's, for files that are sound.

        Raises:
            LaresError: as `read_checkpoint`; if the checkpoint is of another kind of stage.
        """
        checkpoint = read_checkpoint(checkpoint_path)
        stored = next((kind for kind in with_subclasses(NetworkModule) if class_path_of(kind) == checkpoint.class_path), cls)
        if not (issubclass(cls, stored) or issubclass(stored, cls)):
            raise LaresError(
                f"{checkpoint_path} is of {stored.__name__}, not of {cls.__name__}: load it with lares_pl.load_stage(PATH), or "
                f"train a new {cls.__name__} from its weights (init_from=PATH)"
            )
        return super().load_from_checkpoint(checkpoint_path, *arguments, **options)

    # ------------------------------------------------------------ catalogue

    def configure_callbacks(self) -> list[Callback]:
        """Build the network before the `setup` of callbacks, which may copy or freeze parts of it.

        Raises:
            LaresError: if there is no data module; if the model was made for another catalogue or history length.
        """
        if (data := self.trainer.datamodule) is None:  # type: ignore[attr-defined]
            called = self.trainer.state.fn.value  # type: ignore[union-attr]
            raise LaresError(f"the data module is missing: trainer.{called}(stage, datamodule=SequenceDataModule(DATASET))")
        self.take_catalogue(data, self.trainer.ckpt_path)
        self.configure_model()
        return []

    def setup(self, stage: str) -> None:
        """Train on all instances, until a stage prunes some."""
        if stage == "fit":
            self.trainer.datamodule.keep(None)  # type: ignore[attr-defined]

    def take_catalogue(self, data: SequenceDataModule, checkpoint: Any = None) -> None:
        """Take catalogue (its size and original ids) and history length from this data module.

        Args:
            data: the data module.
            checkpoint: path of a checkpoint whose weights will be loaded.

        Raises:
            LaresError: if the model was made for another catalogue or history length.
        """
        found: dict[str, Any] = {
            "items": data.sequences.catalogue_size,
            "max_length": data.max_length,
            "fingerprint": data.sequences.catalogue_fingerprint,
            "item_ids": data.sequences.packed_item_ids,
        }
        if self.backbone_config.embedder.reads_text:
            found["text"] = self._read_text(data, checkpoint or self.init_from, found["fingerprint"])
        if self._catalogue is not None:
            compare_catalogues(self._catalogue, found, data.dataset_path)
        self._catalogue = found

    def check_instances(self, data: SequenceDataModule) -> None:
        """Refuse to train on every position of a sequence a model that sees later items, and options that say nothing.

        Raises:
            LaresError: as `check_causal`; if aligned positions are asked for and this stage aligns nothing.
        """
        data.decide_instances(self.backbone.causal)
        if data.reads_sequences:
            self.backbone.check_causal()
        if data.asks_alignment and not data.reads_sequences:
            raise LaresError("data.aligned_positions: this model's instances are read by themselves; leave the option out")
        if data.asks_alignment and not self.needs_aligned:
            raise LaresError(f"data.aligned_positions: this {type(self).__name__} aligns nothing; leave the option out")

    def adopt_catalogue(self, catalogue: dict[str, Any]) -> None:
        """Build the network for a catalogue known from elsewhere than a data module; text vectors are left to load."""
        self._catalogue = catalogue
        self.configure_model()

    def _read_text(self, data: SequenceDataModule, checkpoint: Any, fingerprint: str) -> dict[str, Any]:
        """Size and precision of the item text; the vectors too, unless the network has them or a checkpoint brings them."""
        known: dict[str, Any] | None = None
        if hasattr(self, "backbone"):
            assert self._catalogue is not None
            known = self._catalogue["text"]
        elif checkpoint is not None:
            of_model = read_checkpoint(checkpoint).catalogue
            # text of another catalogue is of no use (`init_from`)
            known = of_model.get("text") if of_model["fingerprint"] in (None, fingerprint) else None
        if known is not None:
            return known
        vectors = data.sequences.text_vectors()
        if vectors is None:
            raise LaresError(
                f"{data.dataset_path}: this model reads item text ({type(self.backbone_config.embedder).__name__}) and the "
                "dataset has none: prepare it again with --item_text"
            )
        self._text_vectors = torch.from_numpy(vectors)
        return {"size": vectors.shape[1], "precision": vectors.dtype.name}

    # ------------------------------------------------------------ building

    def configure_model(self) -> None:
        """Build the network once the catalogue is known; shard it once the processes are.

        Raises:
            LaresError: if weights to start from don't fit; if the strategy asks for what a sharded catalogue can't do.
        """
        if self._catalogue is None:
            return  # loaded from a checkpoint, which brings it
        if not hasattr(self, "backbone"):
            self.build()
        check_not_compiled(self.backbone)
        if self._is_fitting:
            self.check_instances(self.trainer.datamodule)  # type: ignore[attr-defined]
            if self.ema and not hasattr(self, "trained"):
                self._split_learner()
        if self.device_mesh is not None:
            self._shard(self.device_mesh)

    @property
    def _is_fitting(self) -> bool:
        return self._trainer is not None and self.trainer.state.fn == TrainerFn.FITTING

    def build(self) -> None:
        """The network, from the catalogue."""
        self.backbone = self._new_backbone()
        self._leave_text_to_each_process()
        if self.init_from is not None:
            assert self._catalogue is not None
            checkpoint = read_checkpoint(self.init_from)
            weights = checkpoint.backbone_weights()
            if self._catalogue["fingerprint"] != checkpoint.catalogue["fingerprint"]:
                weights = self._for_this_catalogue(weights, checkpoint)
            load_initial_weights(self.backbone, weights, checkpoint, self.backbone_config)

    def _for_this_catalogue(self, weights: dict[str, Tensor], checkpoint: StageCheckpoint) -> dict[str, Tensor]:
        """Weights of another catalogue with the items of this one; raises if no item has a known id."""
        assert self._catalogue is not None
        old = checkpoint.item_ids
        change = None if old is None else match_catalogues(old, unpacked_ids(self._catalogue["item_ids"]))
        if change is None or change.matched == 0:
            compare_catalogues(checkpoint.catalogue, self._catalogue, str(checkpoint.path))
            return weights
        text = {name: value for name, value in self.backbone.state_dict().items() if name == TEXT_TABLE}
        known = weights.get(TEXT_TABLE)
        if text and known is not None and known.shape[1] == text[TEXT_TABLE].shape[1]:
            change = change.with_text(known, text[TEXT_TABLE])
        rank_zero_info(f"{checkpoint.path} is of another catalogue: {change}")
        return {**weights, ITEM_TABLE: grown_table(weights[ITEM_TABLE], change), **text}

    @property
    def learner(self) -> RecurrentBackbone:
        """The network that updates change: `backbone` itself, unless that is an average."""
        return self.trained if hasattr(self, "trained") else self.backbone

    def _split_learner(self) -> None:
        """Make `backbone` an average of a network that is trained from its weights."""
        self.trained = self._new_backbone()
        self.trained.load_state_dict(self.backbone.state_dict())
        self.backbone.requires_grad_(False)
        self._leave_text_to_each_process()

    def _new_backbone(self) -> RecurrentBackbone:
        assert self._catalogue is not None
        size, length = self._catalogue["items"], self._catalogue["max_length"]
        return RecurrentBackbone(size, length, self.backbone_config, self._item_text())

    def _shard(self, mesh: DeviceMesh) -> None:
        """Item rows over the processes of a tensor-parallel group; all else the same everywhere."""
        check_sharding(self.trainer, mesh)
        for part in self.modules():
            if isinstance(part, RecurrentBackbone):
                part.shard(mesh["tensor_parallel"])
        self.to(self.trainer.strategy.root_device)
        share_values(self)

    @property
    def data_parallel_group(self) -> dist.ProcessGroup | None:
        """The processes that read different rows of a batch; all of them (None) unless they share a catalogue."""
        return None if self.device_mesh is None else self.device_mesh["data_parallel"].get_group()

    def _leave_text_to_each_process(self) -> None:
        """Keep frozen text out of what DDP broadcasts before each pass: all processes read the same."""
        frozen = [name for name, _ in self.named_buffers(remove_duplicate=False) if name.endswith("embedding.text.vectors")]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self, frozen)

    def _item_text(self) -> ItemText | None:
        """The item text, one for all backbones of the stage, so that it is held and saved once."""
        assert self._catalogue is not None
        if hasattr(self, "backbone"):
            shared: ItemText | None = getattr(self.backbone.embedding, "text", None)
            return shared
        text = self._catalogue.get("text")
        if text is None:
            return None
        vectors, self._text_vectors = self._text_vectors, None
        if vectors is None:  # from a checkpoint alone, which brings the values
            vectors = torch.zeros(self._catalogue["items"] + 1, text["size"], dtype=getattr(torch, text["precision"]))
        return ItemText(vectors)

    # ------------------------------------------------------------ checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what a reader needs to rebuild this stage without its data.

        Raises:
            LaresError: if there are no weights, or they have names that no stage could load.
        """
        if (
            self._trainer is None or self.trainer.is_global_zero
        ):  # with a sharded catalogue only the first process has the weights
            compare_weights(checkpoint["state_dict"], self.state_dict(), "weights to save")
        checkpoint[KEY] = {
            "class_path": class_path_of(type(self)),
            "catalogue": self._catalogue,
            "initial_checkpoint": self.initial_checkpoint,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Build the network that the weights are for, or check that they are for this one."""
        if KEY not in checkpoint:
            raise LaresError("not a checkpoint of a lares_pl stage")
        stored = checkpoint[KEY]["catalogue"]
        self.initial_checkpoint = checkpoint[KEY]["initial_checkpoint"]
        if self._catalogue is None:
            self._catalogue = stored
        else:
            compare_catalogues(stored, self._catalogue, "the dataset")
        self.configure_model()
        if not hasattr(self, "trained"):  # loaded for anything but training: the average is all that is asked for
            weights = checkpoint.get("state_dict", {})
            for name in [name for name in weights if name.startswith("trained.")]:
                del weights[name]
        # a strategy that loads by parts gives weights to the first process alone, and compares itself
        if "state_dict" in checkpoint:
            compare_weights(checkpoint["state_dict"], self.state_dict(), "checkpoint's weights")
