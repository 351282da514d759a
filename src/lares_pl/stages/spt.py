"""Stage 1, self-supervised pre-training (docs/method.md "Stage 1, SPT").

`loss = CE + alpha * TLA + gamma * SLA`. With prefix instances nothing deviates from the reference; the three passes run as
one rollout. With `data.instances: sequence` three things do: all targets of a sequence share the noise and dropout of one
pass; TLA and SLA align `data.aligned_positions` of them; targets far down a sequence longer than the history length may see
half of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.optim import Adam

from lares_pl.checks import check_arguments
from lares_pl.data.loading.batches import Batch
from lares_pl.errors import LaresError
from lares_pl.evaluation.metrics import RankingMetric
from lares_pl.losses.alignment import Alignment, GatheredRows, alignment_losses
from lares_pl.losses.next_item import FullSoftmax, NextItemLoss, Proposal
from lares_pl.losses.supervision import LastStep, Supervision
from lares_pl.model.architecture import BackboneConfig
from lares_pl.model.rollout import step_residual
from lares_pl.parsing import from_plain
from lares_pl.serialization import arguments
from lares_pl.stages.base import BaseStage, SchedulerFactory
from lares_pl.stages.distributed import all_gather_rows, alone, row_weight
from lares_pl.stages.optimizers import OptimizerFactory
from lares_pl.stages.recorded_updates import Loss, Numbers
from lares_pl.stages.schedules import WarmupCosine


class SPT(BaseStage):
    """Self-supervised pre-training: predict the target, align trajectories of one target and steps of one trajectory.

    The defaults are those of `spt.yaml`. The paper's (`paper.yaml`): alpha 0.1, gamma 0.5, the target's loss at the last step,
    Adam at 1e-3 without schedule and average. Without alignment and at depth 0 this is the supervised baseline without
    recurrence (SASRec, `sasrec.yaml`).

    Args:
        backbone: the architecture.
        alpha: weight of trajectory-level alignment (TLA); 0 leaves its pass out.
        gamma: weight of step-level alignment (SLA).
        alignment: how both compare states.
        supervision: which steps the loss of the target reads: `LastStep` (the paper's), `EveryStep`, `LastAndRandomStep`.
        loss: of predicting the target: `FullSoftmax`, or `SampledSoftmax` for catalogues too large for it.
        optimizer: the optimiser.
        scheduler: learning-rate schedule, stepped after every update; None keeps the learning rate.
        ema: decay of an average of the weights that is validated, saved and tested instead of them; 0 keeps none.
        exclude_seen: leave items of the history out of recommendations and of rankings (the paper ranks them). It decides which
            protocol the short names are of; validation and test report both.
        metrics: what validation and test report; None: Recall and NDCG at 5, 10, 20 and 50, and MRR.
        init_from: checkpoint whose backbone weights to start from (in a config also a stage of the same run by name, whose
            architecture is taken too). If it is of another catalogue, items are matched by id, and new ones start from the item
            nearest by text, or the mean of the table. To go on with an interrupted run use `--ckpt_path`.
        gather_negatives: contrast TLA and SLA with the rows of all processes, so that they do not depend on their number; False
            contrasts each process's own rows.
        cuda_graphs: on a GPU, record an update for each depth as a CUDA graph and replay it; without effect on a CPU.
        on_nonfinite: what to do with an update whose gradient is not finite: `stop` the run, or `skip` and count it.
    """

    def __init__(
        self,
        backbone: BackboneConfig = BackboneConfig(),
        alpha: float = 0.0,
        gamma: float = 0.0,
        alignment: Alignment = Alignment(),
        supervision: Supervision = LastStep(),
        loss: NextItemLoss = FullSoftmax(),
        optimizer: OptimizerFactory = partial(Adam, lr=2e-3),
        scheduler: SchedulerFactory | None = WarmupCosine,
        ema: float = 0.999,
        exclude_seen: bool = False,
        metrics: Sequence[RankingMetric] | None = None,
        init_from: str | None = None,
        gather_negatives: bool = True,
        cuda_graphs: bool = True,
        on_nonfinite: Literal["stop", "skip"] = "stop",
    ) -> None:
        check_arguments(SPT, locals())
        if alpha < 0 or gamma < 0:
            raise LaresError(f"SPT: alpha and gamma must not be negative, got {alpha} and {gamma}")
        backbone = from_plain(BackboneConfig, backbone, "backbone")
        super().__init__(
            arguments(locals()),
            backbone,
            optimizer,
            scheduler,
            exclude_seen,
            metrics,
            init_from,
            cuda_graphs,
            on_nonfinite,
            ema,
        )
        self.alpha = alpha
        self.gamma = gamma
        self.alignment: Alignment = from_plain(Alignment, alignment, "alignment")
        self.supervision: Supervision = from_plain(Supervision, supervision, "supervision")
        self.gather_negatives = gather_negatives
        self.loss: NextItemLoss = from_plain(NextItemLoss, loss, "loss")
        self._proposal: Proposal | None = None
        self._aligned_step, self._weight = Numbers(), Numbers()

    @property
    def needs_aligned(self) -> bool:  # type: ignore[override]
        """Whether batches of sequences must say which of their instances are aligned."""
        return self.alpha > 0 or self.gamma > 0

    @property
    def needs_partners(self) -> bool:  # type: ignore[override]
        """Whether batches must bring histories with the same target."""
        return self.alpha > 0

    @property
    def needs_fitted(self) -> bool:
        """Not where instances are aligned with those of other processes, which a recorded update does not wait for."""
        return not self._aligns_all and super().needs_fitted

    @property
    def _aligns_all(self) -> bool:
        """Whether alignment contrasts with instances of other processes."""
        return self.needs_aligned and self.gather_negatives and not alone(self.data_parallel_group)

    def setup(self, stage: str) -> None:
        """Count training targets, where negatives are drawn by them."""
        super().setup(stage)
        if stage == "fit" and self.loss.draws_negatives:
            counts = np.diff(self.trainer.datamodule.sequences.flat.of_item)  # type: ignore[attr-defined]
            self._proposal = self.loss.proposal(torch.from_numpy(counts).to(self.device))

    def training_step(self, batch: Batch, batch_idx: int = 0) -> Tensor:
        """One update: three passes (one without alignment) run as one rollout."""
        schedule, draws = self.backbone_config.depth, self.randomness.draws
        depth, pair_depth = schedule.sample(draws), schedule.sample(draws)
        step = int(torch.randint(max(pair_depth, 1), (), generator=draws))
        weight = row_weight(len(batch), self.device, self.data_parallel_group)
        of_pair: int | Tensor = step
        if batch.real is not None:
            of_pair = self._aligned_step.put([step], self.device)
            weight = weight if isinstance(weight, float) else self._weight.put(weight, self.device)
        compute = partial(self._loss, depth=depth, pair_depth=pair_depth, step=of_pair, weight=weight)
        loss = self.recorded(batch, (depth, pair_depth if self.needs_aligned else 0, self.alpha, self.gamma), compute)
        depths = {"depth": depth} | ({"pair_depth": pair_depth} if self.needs_aligned else {})
        self.log_training({"loss": loss.total.detach(), **loss.logged, **depths}, batch)
        return loss.total

    def _loss(self, batch: Batch, depth: int, pair_depth: int, step: int | Tensor, weight: Tensor | float) -> Loss:
        """The loss of a batch for given draws; `weight` is that of the cross-entropy."""
        histories, depths = [batch.histories], [depth]
        if self.needs_aligned:
            histories.append(batch.histories if batch.aligned is None else batch.aligned)
            depths.append(pair_depth)
        if self.alpha:
            assert batch.partners is not None
            histories.append(batch.partners)
            depths.append(pair_depth)
        read = [batch.target_positions, *[None] * (len(depths) - 1)]
        prediction, *pair = self.learner.rollout(histories, depths, self.randomness.noise, read=read)

        cross_entropy = self._next_item_loss(prediction, batch)
        loss, logged = cross_entropy * weight, {"ce": cross_entropy.detach()}
        if pair:
            trajectory_level, step_level = self._alignment_losses(pair[0], pair[-1], step, batch)
            loss = loss + self.alpha * trajectory_level + self.gamma * step_level
            logged["sla"] = step_level.detach()
            if self.alpha:
                logged["tla"] = trajectory_level.detach()
        if depth > 1:
            logged["residual"] = step_residual(prediction, batch.shares)
        if self.backbone_config.repeat_bias:
            logged["repeat_bias"] = self.learner.bias_of_repeats.detach()
        return Loss(loss, logged)

    def _alignment_losses(self, a: Tensor, b: Tensor, step: int | Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """TLA and SLA of the aligned instances, with those of all processes if they are gathered."""
        targets = batch.targets if batch.aligned_targets is None else batch.aligned_targets
        of_all = None
        if self._aligns_all:
            of_all = self._rows_of_all
        elif (real := batch.aligned_real) is not None:
            of_all = partial(GatheredRows, real=real)
        return alignment_losses(self.alignment, a, b, step, targets, of_all)

    def _rows_of_all(self, rows: Tensor) -> GatheredRows:
        """The aligned instances' rows of all processes."""
        return all_gather_rows(rows, self.trainer.datamodule.most_aligned, self.data_parallel_group)  # type: ignore[attr-defined]

    def _next_item_loss(self, trajectory: Tensor, batch: Batch) -> Tensor:
        """The loss of the targets at the supervised steps of a trajectory `[T, R, d]`, mean over instances."""
        draws = self.randomness.draws
        states, weights = self.supervision(trajectory, draws)
        steps, rows, _ = states.shape
        head = self.learner.head(batch.histories, batch.target_positions, batch.read).repeat(steps, rows)
        if (of_instances := batch.shares) is None:
            shares = (weights / rows).repeat_interleave(rows, output_size=steps * rows)
        else:
            shares = (weights[:, None] * of_instances).flatten()
        return self.loss(head, states.flatten(0, 1), batch.targets.repeat(steps), shares, self._proposal, draws)
