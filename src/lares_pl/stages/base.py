"""Training as both stages do it: optimiser and schedule, randomness, averaged weights, non-finite gradients, logging."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from lares_pl.data.loading.batches import Batch
from lares_pl.errors import LaresError
from lares_pl.evaluation.metrics import RankingMetric
from lares_pl.model.architecture import BackboneConfig
from lares_pl.parsing import from_plain
from lares_pl.serialization import to_plain
from lares_pl.stages.averaging import Average
from lares_pl.stages.checkpoint import KEY
from lares_pl.stages.compatibility import check_trainer
from lares_pl.stages.cuda_graphs import CudaGraphs
from lares_pl.stages.distributed import average_gradients, clip
from lares_pl.stages.gradient_check import GradientCheck, Update
from lares_pl.stages.interruption import correct_progress
from lares_pl.stages.optimizers import OptimizerFactory, fused, options_of
from lares_pl.stages.plateau import PlateauSteps, plateau_config
from lares_pl.stages.randomness import BatchRandomness
from lares_pl.stages.ranking import RankingModule
from lares_pl.stages.recorded_updates import Loss, RecordedUpdates, can_be_recorded
from lares_pl.stages.resuming import apply_settings, follow_moved_folder, hold_saving_on_exception
from lares_pl.stages.schedules import WarmupCosine, end_with_training, expected_updates
from lares_pl.stages.training_log import TrainingLog
from lares_pl.stages.validation import check_optimizer, has_scaler, not_finite

SchedulerFactory = Callable[[Optimizer], LRScheduler]


class BaseStage(RankingModule, ABC):
    """Base of the stages: a network that ranks, with optimiser and logging; a stage adds its loss.

    Args:
        settings: all constructor arguments of the stage, for the checkpoint.
        backbone: the architecture.
        optimizer: factory of the optimiser; it updates all parameters in one kernel where it can (`fused`).
        scheduler: factory of a learning-rate schedule stepped after every update.
        exclude_seen, metrics: as `RankingModule`.
        init_from: checkpoint whose backbone weights to start from.
        cuda_graphs: record updates as CUDA graphs where they are made on a GPU.
        on_nonfinite: what to do with an update whose gradient is not finite: `stop` the run, or `skip` and count it.
        ema: decay of an exponential moving average of the weights, within [0, 1); 0 keeps none. With it `backbone` is the
            average: what is validated, saved, tested, exported and handed on; `learner` is what updates change.
    """

    def __init__(
        self,
        settings: Mapping[str, Any],
        backbone: BackboneConfig,
        optimizer: OptimizerFactory | Mapping[str, Any] = Adam,
        scheduler: SchedulerFactory | Mapping[str, Any] | None = None,
        exclude_seen: bool = False,
        metrics: Sequence[RankingMetric] | None = None,
        init_from: str | None = None,
        cuda_graphs: bool = True,
        on_nonfinite: Literal["stop", "skip"] = "stop",
        ema: float = 0.0,
    ) -> None:
        super().__init__(backbone, init_from, ema, exclude_seen, metrics)
        if on_nonfinite not in ("stop", "skip"):
            raise LaresError(f"on_nonfinite must be stop or skip, got {on_nonfinite}")
        self.optimizer = from_plain(OptimizerFactory, optimizer, "optimizer")
        self.scheduler = None if scheduler is None else from_plain(SchedulerFactory, scheduler, "scheduler")
        self.cuda_graphs = cuda_graphs
        self.on_nonfinite = on_nonfinite
        self.skipped_updates = 0  # of this start
        self.save_hyperparameters(to_plain({key: value for key, value in settings.items() if key != "init_from"}))
        #: what training draws from, from its setup on
        self.randomness: BatchRandomness
        self._gradients = GradientCheck(waits=True)
        self._seed: int | None = None  # of the run that a checkpoint is of
        self._held: list[ModelCheckpoint] = []  # what saves on exceptions once training starts
        self._log = TrainingLog()
        self._recorded: RecordedUpdates | None = None
        self._average: Average | None = None
        self._latest: tuple[dict[str, Tensor | float | int], Tensor] = ({}, torch.empty(0))  # logged values and instances

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what a reader needs to rebuild this stage without its data."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[KEY]["seed"] = self._seed
        if self._trainer is not None and "loops" in checkpoint:
            correct_progress(checkpoint, self.trainer)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Build the network that the weights are for, or check that they are for this one; a resumed run keeps its seed.

        Raises:
            LaresError: if a resumed run can't go on with the settings of this stage.
        """
        resumes = self._is_fitting and KEY in checkpoint and "optimizer_states" in checkpoint
        if resumes:
            apply_settings(checkpoint, self.hparams, self.optimizer, self.trainer.datamodule)  # type: ignore[attr-defined]
            self._held = hold_saving_on_exception(self.trainer)
        if self._trainer is not None:
            follow_moved_folder(checkpoint.get("callbacks", {}), self.trainer)
        super().on_load_checkpoint(checkpoint)
        seed = checkpoint[KEY].get("seed")
        if not resumes:
            self._seed = seed
        elif seed is not None:
            self._draw_from(seed)

    #: whether training leaves out some instances, which it finds before its first update
    prunes_instances = False

    def configure_callbacks(self) -> list[Callback]:
        """Check the trainer; build the network; add what steps a schedule that waits for a metric.

        Raises:
            LaresError: if it does not fit this stage; as of the network.
        """
        if self._is_fitting:
            check_trainer(self.trainer, self)
        own = super().configure_callbacks()
        attached = any(isinstance(callback, PlateauSteps) for callback in self.trainer.callbacks)  # type: ignore[attr-defined]
        return own if attached else [*own, PlateauSteps()]

    # ------------------------------------------------------------ randomness

    def setup(self, stage: str) -> None:
        """One seed for all processes."""
        super().setup(stage)
        if stage == "fit":
            self._draw_from(int(self.trainer.strategy.broadcast(torch.initial_seed() % 2**62)))

    def _draw_from(self, seed: int) -> None:
        rank = dist.get_rank(self.data_parallel_group) if dist.is_initialized() else 0
        self._seed = seed
        self.randomness = BatchRandomness(seed, rank, self.device)

    def on_fit_start(self) -> None:
        """Begin to measure speed and to check gradients, without what a fit that failed has left."""
        self._recorded = self._average = None
        self.skipped_updates = 0
        self._log.restart()
        self._gradients = GradientCheck(waits=self.device.type == "cpu")

    def on_train_start(self) -> None:
        """Save after exceptions from now on."""
        for callback in self._held:
            callback.save_on_exception = True
        self._held = []

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Randomness of this batch."""
        self.randomness.begin(self.trainer.current_epoch, batch_idx)

    # ------------------------------------------------------------ CUDA graphs

    @property
    def needs_fitted(self) -> bool:
        """Whether training batches must have the same shapes, since updates are recorded."""
        return self.cuda_graphs and can_be_recorded(self.trainer, self, self.learner)

    def recorded(self, batch: Batch, numbers: Hashable, compute: Callable[[Batch], Loss]) -> Loss:
        """The loss of a batch; on a GPU from a graph, if one can be made.

        Args:
            batch: as its loader serves it.
            numbers: all numbers of the host that `compute` depends on.
            compute: gives the loss; it draws nothing on the host and waits for no other process.
        """
        if batch.real is None:
            return compute(batch)
        if self._recorded is None or not self._recorded.is_valid():  # a callback froze or thawed some parameters
            generators = [self.randomness.of_noise]
            is_parallel = dist.is_available() and dist.is_initialized()
            self._recorded = RecordedUpdates(self.learner, self.randomness.draws, generators, CudaGraphs(), apart=is_parallel)
        return self._recorded(batch, numbers, compute)

    @property
    def replayed_flops(self) -> int | None:
        """Of the last batch's loss and gradients, if they came from a graph."""
        return None if self._recorded is None else self._recorded.flops

    def on_fit_end(self) -> None:
        """Give back what graphs hold."""
        self._recorded = self._average = None

    # ------------------------------------------------------------ training

    @abstractmethod
    def training_step(self, batch: Batch, batch_idx: int = 0) -> Tensor:
        """The loss of one batch, whatever its number in the epoch."""

    def configure_optimizers(self) -> Any:
        """The optimiser and, where there is one, its schedule by update.

        Raises:
            LaresError: if all parameters are frozen; if an optimiser is to update all in one kernel where some are sharded.
        """
        # a callback such as BaseFinetuning freezes some before, and adds them to the optimiser later
        trained = [parameter for parameter in self.learner.parameters() if parameter.requires_grad]
        if not trained:
            raise LaresError("all parameters are frozen, so there is nothing to train: call stage.unfreeze() first")
        # sharded parameters can't be updated together with others; a scaler clips after unscaling
        alone = self.device_mesh is not None or has_scaler(self.trainer)
        optimizer = (self.optimizer if alone else fused(self.optimizer))(trained)
        if self.device_mesh is not None:
            check_optimizer(optimizer)
        if self.scheduler is None:
            return optimizer
        schedule = self.scheduler(optimizer)
        if isinstance(schedule, WarmupCosine):
            end_with_training(schedule, self.trainer.max_steps, self.expected_updates)
        if isinstance(schedule, ReduceLROnPlateau):
            return {"optimizer": optimizer, "lr_scheduler": plateau_config(schedule)}
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    @property
    def lr(self) -> float:
        """The learning rate of the optimiser, under the name that Lightning's tuner looks for."""
        return float(options_of(self.optimizer)["lr"])

    @lr.setter
    def lr(self, rate: float) -> None:
        self.optimizer = partial(self.optimizer, lr=rate)
        self.hparams["optimizer"] = to_plain(self.optimizer)

    def expected_updates(self) -> float:
        """Updates that this training makes if nothing ends it early."""
        return expected_updates(self.trainer)

    def optimizer_step(self, *arguments: Any, **options: Any) -> None:
        """An update, and the average of the weights after it."""
        update = self.trainer.global_step
        super().optimizer_step(*arguments, **options)
        if self.learner is not self.backbone:
            if self._average is None:
                self._average = Average(self.backbone, self.learner, self.ema)
            self._average.update(update)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Average gradients where no strategy does; keep one that is not finite from the weights (`on_nonfinite`).

        Raises:
            LaresError: with the update, the parts of the loss and the instances, where the run is to stop.
        """
        if has_scaler(self.trainer):
            return  # with float16 the scaler skips such updates and lowers its scale: they are part of the method
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        if self.device_mesh is not None:
            average_gradients(parameters, self.device_mesh)
        update = Update(self.trainer.global_step + 1, self.trainer.current_epoch, *self._latest)
        self._left_out(self._gradients.check(parameters, optimizer, update))

    def _left_out(self, update: Update | None) -> None:
        """Count an update whose gradient was not finite, or stop the run."""
        if update is not None and self.on_nonfinite == "stop":
            raise not_finite(type(self).__name__, update)
        self.skipped_updates += update is not None

    def on_train_epoch_end(self) -> None:
        """Name the epoch's last update if it was left out."""
        self._left_out(self._gradients.last())

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """As Lightning does, also where some of the gradients are sharded, or bfloat16 meets a fused optimiser."""
        if has_scaler(self.trainer):
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif gradient_clip_val:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            clip(parameters, float(gradient_clip_val), by_norm=gradient_clip_algorithm != "value")

    def log_training(self, values: Mapping[str, Tensor | float | int], batch: Batch) -> None:
        """Log values of one update under `train/`, with learning rate and speed."""
        skipped = {"skipped_updates": self.skipped_updates} if self.on_nonfinite == "skip" else {}
        self._latest = {**values, **skipped}, batch.instances[: len(batch)]
        self._log(self, self._latest[0], len(batch))

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """As of the network; a trainer that is told to stop logs this update as its last."""
        super().on_train_batch_end(outputs, batch, batch_idx)
        if self.trainer.should_stop:
            self._log.last(self, self._latest[0])

    def on_validation_end(self) -> None:
        """Speed of training leaves validation out."""
        self._log.restart()
