"""What both stages share: the backbone, evaluation by ranking, checkpoints that explain themselves."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple, Self, cast

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import MetricCollection

from lares_pl.data.loading.batches import Batch
from lares_pl.data.module import SequenceDataModule
from lares_pl.errors import LaresError
from lares_pl.evaluation.metrics import ranking_metrics
from lares_pl.model.architecture import BackboneConfig
from lares_pl.model.backbone import RecurrentBackbone
from lares_pl.model.blocks import compile_block
from lares_pl.model.embedding import ItemText
from lares_pl.model.item_pairs import ItemPairs
from lares_pl.model.reasoning import Reasoning, StopRule
from lares_pl.parsing import from_plain
from lares_pl.serialization import class_path_of, to_plain
from lares_pl.stages.averaging import update_average
from lares_pl.stages.checkpoint import KEY, read_checkpoint
from lares_pl.stages.distributed import average_gradients, clip, share_values, total_norm
from lares_pl.stages.randomness import BatchRandomness
from lares_pl.stages.schedules import WarmupCosine
from lares_pl.stages.validation import (
    check_optimizer,
    check_serializable,
    check_sharding,
    compare_catalogues,
    compare_weights,
    not_finite,
)

OptimizerFactory = Callable[[Iterable[torch.nn.Parameter]], Optimizer]
SchedulerFactory = Callable[[Optimizer], LRScheduler]

CUTOFFS = (5, 10, 20, 50)


class Ranked(NamedTuple):
    """What `predict_step` gives for B rows."""

    instances: Tensor  # [B]
    valid: Tensor  # [B]
    items: Tensor  # [B, k]
    scores: Tensor  # [B, k]


class BaseStage(L.LightningModule):
    """Base of the stages: owns backbone, optimiser, evaluation and logging; a stage adds its loss.

    The network is built when the data is known (`configure_model`), from catalogue size and history length.

    Args:
        settings: all constructor arguments of the stage, for the checkpoint.
        backbone: the architecture.
        optimizer: factory of the optimiser.
        scheduler: factory of a learning-rate schedule stepped after every update.
        exclude_seen: leave items of the history out of rankings and recommendations (the paper ranks them).
        init_from: checkpoint whose backbone weights to start from.
        compile_core: compile the core-blocks with `torch.compile` for training.
        on_nonfinite: what to do with an update whose gradient is not finite: `stop` the run, or `skip` and count it.
        ema: decay of an exponential moving average of the weights, within [0, 1); 0 keeps none. With it `backbone` is the
            average: what is validated, saved, tested, exported and handed on; `learner` is what updates change.
    """

    #: what training batches must bring: instances to align (of a sequence), histories with the same targets
    needs_aligned = False
    needs_partners = False

    def __init__(
        self,
        settings: Mapping[str, Any],
        backbone: BackboneConfig,
        optimizer: OptimizerFactory | Mapping[str, Any] = Adam,
        scheduler: SchedulerFactory | Mapping[str, Any] | None = None,
        exclude_seen: bool = False,
        init_from: str | None = None,
        compile_core: bool = False,
        on_nonfinite: Literal["stop", "skip"] = "stop",
        ema: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0 <= ema < 1:
            raise LaresError(f"ema must be within [0, 1), got {ema}: 0 keeps no average, 0.999 is a common decay")
        if on_nonfinite not in ("stop", "skip"):
            raise LaresError(f"on_nonfinite must be stop or skip, got {on_nonfinite}")
        self.backbone_config = backbone
        check_serializable(self.backbone_config)
        self.optimizer = from_plain(OptimizerFactory, optimizer, "optimizer")
        self.scheduler = None if scheduler is None else from_plain(SchedulerFactory, scheduler, "scheduler")
        self.exclude_seen = exclude_seen
        self.init_from = init_from
        self.compile_core = compile_core
        self.on_nonfinite = on_nonfinite
        self.ema = ema
        self.skipped_updates = 0  # of this start
        self._latest: tuple[Mapping[str, float], Tensor] = ({}, torch.empty(0))  # of the last batch: logged values, instances
        #: checkpoint this run's weights came from; kept over resuming, for the record
        self.initial_checkpoint = init_from
        #: depth of validation, test and prediction
        self.evaluation_depth = self.backbone_config.depth.evaluation_depth
        #: ends reasoning about a history before that depth, once it has arrived
        self.stop: StopRule | None = None
        #: trajectories whose scores are averaged in validation, test and prediction
        self.trajectories = 1
        #: length of the lists that `predict` gives
        self.predict_k = 10
        self.save_hyperparameters(to_plain({key: value for key, value in settings.items() if key != "init_from"}), logger=False)
        self.metrics = torch.nn.ModuleDict({split: ranking_metrics(f"{split}/", CUTOFFS) for split in ("val", "test")})
        self._catalogue: dict[str, Any] | None = None
        self._text_vectors: Tensor | None = None  # of the dataset, until the network takes them
        #: what training draws from, once it has started
        self.randomness: BatchRandomness
        self._seed: int | None = None  # of the run that a checkpoint is of
        self._since = (0.0, 0)  # time and number of instances at the last report of speed

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *arguments: Any, **options: Any) -> Self:
        """As Lightning's, for files that are sound.

        Raises:
            LaresError: as `read_checkpoint`.
        """
        read_checkpoint(checkpoint_path)
        return super().load_from_checkpoint(checkpoint_path, *arguments, **options)

    # ------------------------------------------------------------ building

    @property
    def needs_seen(self) -> bool:
        """Whether batches of evaluation must bring the items seen before."""
        return self.exclude_seen

    def setup(self, stage: str) -> None:
        """Take catalogue size and history length from the data module.

        Raises:
            LaresError: if the model was made for another catalogue or history length.
        """
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if data is None:
            raise LaresError("this stage takes the catalogue from a data module: trainer.fit(stage, SequenceDataModule(…))")
        self.take_catalogue(data, self.trainer.ckpt_path)
        if stage == "fit":
            data.keep(None)

    def take_catalogue(self, data: SequenceDataModule, checkpoint: Any = None) -> None:
        """Take catalogue (its size and original ids) and history length from this data module; raises as `setup`.

        Args:
            data: the data module.
            checkpoint: path of a checkpoint whose weights will be loaded.
        """
        found = {
            "items": data.sequences.catalogue_size,
            "max_length": data.max_length,
            "fingerprint": data.sequences.catalogue_fingerprint(),
            "item_ids": data.sequences.packed_item_ids,
        }
        if self.backbone_config.embedder.reads_text:
            found["text"] = self._read_text(data, checkpoint or self.init_from)
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

    def _read_text(self, data: SequenceDataModule, checkpoint: Any) -> dict[str, Any]:
        """Size and precision of the item text; the vectors too, unless the network has them or a checkpoint brings them."""
        known: dict[str, Any] | None = None
        if hasattr(self, "backbone"):
            assert self._catalogue is not None
            known = self._catalogue["text"]
        elif checkpoint is not None:
            known = read_checkpoint(checkpoint).catalogue.get("text")
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

    def configure_model(self) -> None:
        """Build the network once the catalogue is known; shard it once the processes are.

        Raises:
            LaresError: if weights to start from don't fit; if the strategy asks for what a sharded catalogue can't do.
        """
        if self._catalogue is None:
            return  # loaded from a checkpoint, which brings it
        if not hasattr(self, "backbone"):
            self.build()
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
            if self._catalogue["fingerprint"] != checkpoint.catalogue["fingerprint"]:
                compare_catalogues(checkpoint.catalogue, self._catalogue, str(checkpoint.path))
            try:
                self.backbone.load_state_dict(checkpoint.backbone_weights())
            except RuntimeError as error:
                raise LaresError(f"{self.init_from}: its weights don't fit this architecture: {error}") from error

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

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what a reader needs to rebuild this stage without its data."""
        checkpoint[KEY] = {
            "class_path": class_path_of(type(self)),
            "catalogue": self._catalogue,
            "initial_checkpoint": self.initial_checkpoint,
            "seed": self._seed,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Build the network that the weights are for, or check that they are for this one."""
        if KEY not in checkpoint:
            raise LaresError("not a checkpoint of a lares_pl stage")
        stored = checkpoint[KEY]["catalogue"]
        self.initial_checkpoint = checkpoint[KEY]["initial_checkpoint"]
        self._seed = checkpoint[KEY].get("seed")
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
            compare_weights(checkpoint["state_dict"], self.state_dict())

    # ------------------------------------------------------------ randomness

    def on_fit_start(self) -> None:
        """One seed for all processes."""
        if self.compile_core:
            for block in self.learner.core_blocks:
                compile_block(block)
        if self._seed is None or self.trainer.ckpt_path is None:  # a resumed run goes on with its own
            self._seed = torch.initial_seed() % 2**62
        self._seed = int(self.trainer.strategy.broadcast(self._seed))
        rank = dist.get_rank(self.data_parallel_group) if dist.is_initialized() else 0
        self.randomness = BatchRandomness(self._seed, rank, self.device)
        self._since = (time.perf_counter(), 0)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Randomness of this batch."""
        self.randomness.begin(self.trainer.current_epoch, batch_idx)

    # ------------------------------------------------------------ training

    def configure_optimizers(self) -> Any:
        """The optimiser and, where there is one, its schedule by update.

        Raises:
            LaresError: if an optimiser is to update all parameters in one kernel where some are sharded.
        """
        optimizer = self.optimizer(self.learner.parameters())
        if self.device_mesh is not None:
            check_optimizer(optimizer)
        if self.scheduler is None:
            return optimizer
        schedule = self.scheduler(optimizer)
        if isinstance(schedule, WarmupCosine):
            self._fit_schedule(schedule)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _fit_schedule(self, schedule: WarmupCosine) -> None:
        """Let a schedule end with training; warn where it is told to end elsewhere.

        Raises:
            LaresError: if nobody knows how long training will be.
        """
        most = self.trainer.max_steps
        if schedule.total is None:
            updates = self.expected_updates()
            if not 0 < updates < math.inf:
                raise LaresError("model.scheduler.total: training has no end; set it, or trainer.max_epochs or max_steps")
            schedule.total = int(updates)
        elif most not in (-1, schedule.total):
            rank_zero_warn(
                f"model.scheduler.total is {schedule.total:,} updates, trainer.max_steps {most:,}: the "
                "learning rate is at its lowest after the former; keep the two equal"
            )

    def expected_updates(self) -> float:
        """Updates that this training makes if nothing ends it early."""
        return self.trainer.estimated_stepping_batches

    def optimizer_step(self, *arguments: Any, **options: Any) -> None:
        """An update, and the average of the weights after it."""
        update = self.trainer.global_step
        super().optimizer_step(*arguments, **options)
        if self.learner is not self.backbone:
            update_average(self.backbone, self.learner, self.ema, update)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Average gradients where no strategy does; keep one that is not finite from the weights (`on_nonfinite`).

        Raises:
            LaresError: with the update, the parts of the loss and the instances, where the run is to stop.
        """
        if getattr(self.trainer.precision_plugin, "scaler", None) is not None:
            return  # with float16 the scaler skips such updates and lowers its scale: they are part of the method
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        if self.device_mesh is not None:
            average_gradients(parameters, self.device_mesh)
        if bool(total_norm(p.grad for p in parameters if p.grad is not None).isfinite()):
            return
        if self.on_nonfinite == "skip":
            self.skipped_updates += 1
            for parameter in self.parameters():
                parameter.grad = None
            return
        where = f"update {self.trainer.global_step + 1} (epoch {self.trainer.current_epoch})"
        raise not_finite(f"{type(self).__name__}: the gradient of {where}", *self._latest)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """As Lightning does, also where some of the gradients are sharded."""
        if self.device_mesh is None:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif gradient_clip_val:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            clip(parameters, float(gradient_clip_val), by_norm=gradient_clip_algorithm != "value")

    def log_training(self, values: Mapping[str, Tensor | float | int], batch: Batch) -> None:
        """Log values of one update under `train/`, with learning rate and speed."""
        batch_size = len(batch)
        numbers = {name: float(value) for name, value in values.items()}
        if self.on_nonfinite == "skip":
            numbers["skipped_updates"] = self.skipped_updates
        self._latest = numbers, batch.instances
        since, instances = self._since
        readers = (self.trainer.distributed_sampler_kwargs or {}).get("num_replicas", 1)
        now, instances = time.perf_counter(), instances + batch_size * readers
        self.log_dict({f"train/{name}": value for name, value in numbers.items()}, batch_size=batch_size)
        self.log("train/lr", self.trainer.optimizers[0].param_groups[0]["lr"], batch_size=batch_size)
        self.log("train/instances_per_second", instances / max(now - since, 1e-9), batch_size=batch_size)
        every = max(1, int(getattr(self.trainer, "log_every_n_steps", 1)))
        self._since = (now, 0) if (self.trainer.global_step + 1) % every == 0 else (since, instances)

    def on_validation_end(self) -> None:
        """Speed of training leaves validation out."""
        self._since = (time.perf_counter(), 0)

    # ------------------------------------------------------------ evaluation

    @property
    def reasoning(self) -> Reasoning:
        """What evaluation spends on a history."""
        return Reasoning(self.evaluation_depth, self.stop, self.trajectories)

    def excluded(self, batch: Batch) -> ItemPairs | None:
        """Items that are not ranked: those seen before, where they are to be left out."""
        if not self.exclude_seen:
            return None
        assert batch.seen_rows is not None
        assert batch.seen_items is not None
        return ItemPairs(batch.seen_rows, batch.seen_items)

    def _evaluate(self, batch: Batch, split: str) -> None:
        states, steps = self.reasoning(self.backbone, batch.histories)
        ranks = self.backbone.head(batch.histories).rank(states, batch.targets, self.excluded(batch))
        metrics = cast(MetricCollection, self.metrics[split])
        metrics.update(ranks[batch.valid])
        self.log_dict(metrics, on_step=False, on_epoch=True, batch_size=len(batch))
        if self.stop is not None:
            counted = int(batch.valid.sum())
            mean = steps[batch.valid].sum() / max(counted, 1)
            self.log(f"{split}/steps", mean, on_step=False, on_epoch=True, sync_dist=True, batch_size=counted)

    def validation_step(self, batch: Batch) -> None:
        """Rank validation targets."""
        self._evaluate(batch, "val")

    def test_step(self, batch: Batch) -> None:
        """Rank test targets."""
        self._evaluate(batch, "test")

    def predict_step(self, batch: Batch) -> Ranked:
        """The best `predict_k` items of each user."""
        k = min(self.predict_k, self.backbone.items)
        states, _ = self.reasoning(self.backbone, batch.histories)
        scores, items = self.backbone.head(batch.histories).top_k(states, k, self.excluded(batch))
        return Ranked(batch.instances, batch.valid, items, scores)


def arguments(local: Mapping[str, Any]) -> dict[str, Any]:
    """A constructor's arguments from its `locals()`."""
    return {key: value for key, value in local.items() if key not in ("self", "__class__")}


def step_residual(trajectory: Tensor) -> Tensor:
    """Mean of `|z_T - z_(T-1)| / |z_T|` over user states `[T, B, d]`, T at least 2."""
    last, before = trajectory[-1].detach(), trajectory[-2].detach()
    residual: Tensor = ((last - before).norm(dim=-1) / last.norm(dim=-1).clamp(min=1e-12)).mean()
    return residual
