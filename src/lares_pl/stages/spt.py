"""Stage 1, self-supervised pre-training (docs/method.md "Stage 1, SPT").

`loss = CE + alpha * TLA + gamma * SLA`. With prefix instances nothing deviates from the reference; the three passes run as
one rollout. With `data.instances: sequence` three things do: all targets of a sequence share the noise and dropout of one
pass; TLA and SLA align `data.aligned_positions` of them; targets far down a sequence longer than the history length may see
half of it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.optim import Adam

from lares_pl.config import from_plain
from lares_pl.data.batches import Batch
from lares_pl.errors import LaresError
from lares_pl.model.backbone import BackboneConfig
from lares_pl.objectives.alignment import alignment
from lares_pl.objectives.softmax import FullSoftmax, NextItemLoss, Proposal
from lares_pl.stages.processes import rows_of_all, share_of_rows
from lares_pl.stages.ranking import OptimizerFactory, RankingStage, SchedulerFactory, arguments, step_residual


def alignment_loss(
    a: Tensor, b: Tensor, step: int, tau: float, of_all: Callable[[Tensor], Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Trajectory- and step-level alignment of a pair of trajectories.

    Args:
        a: user states of the same histories, `[T, B, d]`; normalised beforehand where cosines are meant.
        b: user states of histories with the same targets, `[T, B, d]`.
        step: index (from 0) of the step that is aligned with the end of `a`.
        tau: temperature.
        of_all: gives the rows of all processes for those of this one.

    Returns:
        TLA and SLA; SLA is 0 where T = 1.
    """
    rows = torch.cat([a[-1], a[step], b[-1]], dim=1)
    last, of_step, of_partner = (rows if of_all is None else of_all(rows)).chunk(3, dim=1)
    step_level = alignment(last, of_step, tau) if len(a) > 1 else a.new_zeros(())
    return alignment(last, of_partner, tau), step_level


class SPT(RankingStage):
    """Self-supervised pre-training: predict the target, align trajectories of one target and steps of one trajectory.

    With `alpha: 0`, `gamma: 0` and depth 0 this is the supervised baseline without recurrence (SASRec).

    Args:
        backbone: the architecture.
        alpha: weight of trajectory-level alignment (TLA); 0 leaves its pass out.
        gamma: weight of step-level alignment (SLA).
        tau: temperature of both alignments.
        optimizer: the optimiser.
        scheduler: learning-rate schedule, stepped after every update.
        exclude_seen: leave items of the history out of rankings and recommendations (the paper ranks them).
        init_from: checkpoint whose backbone weights to start from (in a config also a stage of the same run by name, whose
            architecture is taken too); to go on with an interrupted run use `--ckpt_path`.
        gather_negatives: contrast TLA and SLA with the rows of all processes, so that they do not depend on their number; False
            contrasts each process's own rows.
        compile_core: compile the core-blocks with `torch.compile` for training; measure whether it pays on your device
            (on a CPU it does not).
        on_nonfinite: what to do with an update whose gradient is not finite: `stop` the run, or `skip` and count it.
        loss: of predicting the target: `FullSoftmax`, or `SampledSoftmax` for catalogues too large for it.
    """

    def __init__(
        self,
        backbone: BackboneConfig = BackboneConfig(),
        alpha: float = 0.1,
        gamma: float = 0.5,
        tau: float = 1.0,
        optimizer: OptimizerFactory = Adam,
        scheduler: SchedulerFactory | None = None,
        exclude_seen: bool = False,
        init_from: str | None = None,
        gather_negatives: bool = True,
        compile_core: bool = False,
        on_nonfinite: Literal["stop", "skip"] = "stop",
        loss: NextItemLoss = FullSoftmax(),
    ) -> None:
        if alpha < 0 or gamma < 0 or tau <= 0:
            raise LaresError("SPT: alpha and gamma must not be negative, tau must be above 0")
        backbone = from_plain(BackboneConfig, backbone, "backbone")
        super().__init__(
            arguments(locals()), backbone, optimizer, scheduler, exclude_seen, init_from, compile_core, on_nonfinite
        )
        self.alpha = alpha
        self.gamma = gamma
        self.tau = tau
        self.gather_negatives = gather_negatives
        self.loss: NextItemLoss = from_plain(NextItemLoss, loss, "loss")
        self._proposal: Proposal | None = None

    @property
    def needs_aligned(self) -> bool:  # type: ignore[override]
        """Whether batches of sequences must say which of their instances are aligned."""
        return self.alpha > 0 or self.gamma > 0

    @property
    def needs_partners(self) -> bool:  # type: ignore[override]
        """Whether batches must bring histories with the same target."""
        return self.alpha > 0

    def on_fit_start(self) -> None:
        """Count training targets, where negatives are drawn by them."""
        super().on_fit_start()
        if self.loss.draws_negatives:
            counts = np.diff(self.trainer.datamodule.sequences.flat.of_item)  # type: ignore[attr-defined]
            self._proposal = self.loss.proposal(torch.from_numpy(counts).to(self.device))

    def training_step(self, batch: Batch) -> Tensor:
        """One update: three passes (one without alignment) run as one rollout."""
        schedule, draws = self.backbone_config.depth, self.randomness.draws
        depth, pair_depth = schedule.sample(draws), schedule.sample(draws)
        step = int(torch.randint(max(pair_depth, 1), (), generator=draws))

        histories, depths = [batch.histories], [depth]
        if self.alpha or self.gamma:
            histories.append(batch.histories if batch.aligned is None else batch.aligned)
            depths.append(pair_depth)
        if self.alpha:
            assert batch.partners is not None
            histories.append(batch.partners)
            depths.append(pair_depth)
        read = [batch.places, *[None] * (len(depths) - 1)]
        prediction, *pair = self.backbone.rollout(histories, depths, self.randomness.noise, read=read)

        cross_entropy = self.loss(self.backbone, prediction[-1], batch.targets, self._proposal, draws)
        logged: dict[str, Tensor | float | int] = {"ce": cross_entropy.detach(), "depth": depth}
        loss = cross_entropy * share_of_rows(len(batch), self.device, self.readers)
        if pair:
            normalised = [self.backbone_config.similarity.normalise(states) for states in pair]
            of_all = partial(rows_of_all, group=self.readers) if self.gather_negatives else None
            trajectory_level, step_level = alignment_loss(normalised[0], normalised[-1], step, self.tau, of_all)
            loss = loss + self.alpha * trajectory_level + self.gamma * step_level
            logged |= {"sla": step_level.detach(), "pair_depth": pair_depth}
            if self.alpha:
                logged["tla"] = trajectory_level.detach()
        if depth > 1:
            logged["residual"] = step_residual(prediction)
        self.log_training({"loss": loss.detach(), **logged}, batch)
        return loss
