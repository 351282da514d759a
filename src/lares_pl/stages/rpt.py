"""Stage 2, reinforcement post-training by GRPO in latent space (docs/method.md "Stage 2, RPT").

Deviations from the reference: none in the loss. The noise of evaluation and pruning is a function of the history
(`KeyedNoise`) instead of fresh draws, so that results do not depend on batches or processes. With
`data.instances: sequence` all kept targets of a sequence share each trajectory's noise and dropout.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch.optim import Adam

from lares_pl.checks import check_arguments
from lares_pl.data.loading.batches import Batch
from lares_pl.data.module import SequenceDataModule
from lares_pl.errors import LaresError
from lares_pl.evaluation.metrics import RankingMetric
from lares_pl.losses.actions import Actions, TargetAmongBest
from lares_pl.losses.advantages import Advantage, GroupAdvantage
from lares_pl.losses.rewards import NDCGReward, RecallReward, Reward
from lares_pl.model.architecture import BackboneConfig, with_dropout
from lares_pl.parsing import from_plain
from lares_pl.serialization import arguments
from lares_pl.stages.base import BaseStage, SchedulerFactory
from lares_pl.stages.checkpoint import KEY, read_checkpoint
from lares_pl.stages.distributed import row_weight, sum_of_all
from lares_pl.stages.group_loss import Counted, GroupObjective, group_loss, rounded_up
from lares_pl.stages.optimizers import OptimizerFactory
from lares_pl.stages.pruning import KeptSet, Pruning, kept_instances, pruning_fingerprint
from lares_pl.stages.recorded_updates import Loss, Numbers
from lares_pl.stages.starting_point import StartingPoint


class RPT(BaseStage):
    """Reinforcement post-training of an SPT model.

    Architecture and weights come from `init_from`; the same weights, frozen, are the reference policy.

    The defaults are those of `rpt.yaml`. The paper's (`paper-rpt.yaml`): Recall@10 as reward, the whole catalogue as actions,
    no anchor, dropout 0.1, Adam at 5e-4 without average.

    Args:
        init_from: checkpoint of the SPT stage to start from.
        backbone: the architecture, where no checkpoint is to be read for it.
        group_size: trajectories of each instance (G).
        reward: reward of a trajectory.
        advantage: what a reward is compared with: `GroupAdvantage` (the paper's), `BatchAdvantage`.
        actions: what the policy chooses from: `WholeCatalogue` (the paper's), `TargetAmongBest`.
        beta: weight of the KL term.
        anchor: weight of the cross-entropy of the target at the end of each trajectory. Within a group advantages sum to zero,
            so that without it nothing raises the target's probability as such.
        dropout: dropout of the policy everywhere, instead of the checkpoint's; None keeps the checkpoint's.
        pruning: which training instances to keep; None keeps all.
        optimizer: the optimiser.
        scheduler: learning-rate schedule, stepped after every update; None keeps the learning rate.
        ema: decay of an average of the weights that is validated, saved and tested instead of them; 0 keeps none.
        exclude_seen: leave items of the history out of recommendations and of rankings (the paper ranks them). It decides which
            protocol the short names are of; validation and test report both.
        metrics: what validation and test report; None: Recall and NDCG at 5, 10, 20 and 50, and MRR.
        cuda_graphs: as in SPT.
        on_nonfinite: what to do with an update whose gradient is not finite: `stop` the run, or `skip` and count it.
    """

    def __init__(
        self,
        init_from: str | None = None,
        backbone: BackboneConfig | None = None,
        group_size: int = 4,
        reward: Reward = NDCGReward(),
        advantage: Advantage = GroupAdvantage(),
        actions: Actions = TargetAmongBest(),
        beta: float = 1.0,
        anchor: float = 1.0,
        dropout: float | None = None,
        pruning: Pruning | None = Pruning(),
        optimizer: OptimizerFactory = partial(Adam, lr=1e-4),
        scheduler: SchedulerFactory | None = None,
        ema: float = 0.99,
        exclude_seen: bool = False,
        metrics: Sequence[RankingMetric] | None = None,
        cuda_graphs: bool = True,
        on_nonfinite: Literal["stop", "skip"] = "stop",
    ) -> None:
        check_arguments(RPT, locals())
        if group_size < 2:
            raise LaresError(f"RPT: group_size must be at least 2 to have a spread of rewards, got {group_size}")
        if backbone is None:
            if init_from is None:
                raise LaresError("RPT starts from an SPT checkpoint: give init_from (--model.init_from PATH)")
            backbone = from_plain(BackboneConfig, read_checkpoint(init_from).settings["backbone"], "backbone")
        backbone = from_plain(BackboneConfig, backbone, "backbone")
        if dropout is not None:
            backbone = with_dropout(backbone, dropout)
        settings = {**arguments(locals()), "backbone": backbone}
        super().__init__(
            settings, backbone, optimizer, scheduler, exclude_seen, metrics, init_from, cuda_graphs, on_nonfinite, ema
        )
        self.group_size = group_size
        self.objective = GroupObjective(
            from_plain(Reward, reward, "reward"),
            from_plain(Advantage, advantage, "advantage"),
            from_plain(Actions, actions, "actions"),
            beta,
            anchor,
        )
        self.pruning = None if pruning is None else from_plain(Pruning, pruning, "pruning")
        self._kept: KeptSet | None = None
        self._groups = 0  # of this epoch
        self._varied: Tensor | int = 0  # updates in which a group's rewards differed; a tensor stays on its device
        self._depths = Numbers()  # of the group

    @property
    def kept(self) -> KeptSet | None:
        """What pruning kept, once it has pruned."""
        return self._kept

    @property
    def prunes_instances(self) -> bool:  # type: ignore[override]
        """Whether it does."""
        return self.pruning is not None

    def configure_callbacks(self) -> list[Callback]:
        """The weights that RPT starts from are validated before the first update: its best checkpoint is never worse."""
        own = super().configure_callbacks()
        attached = any(isinstance(callback, StartingPoint) for callback in self.trainer.callbacks)  # type: ignore[attr-defined]
        return own if attached else [*own, StartingPoint()]

    # ------------------------------------------------------------ building

    def build(self) -> None:
        """Policy and reference policy."""
        super().build()
        self.reference = self._new_backbone()
        self.reference.load_state_dict(self.backbone.state_dict())
        self.reference.requires_grad_(False).eval()
        self._leave_text_to_each_process()

    @property
    def needs_fitted(self) -> bool:
        """Not where other instances decide about an instance's advantage, nor where a trajectory has no step."""
        within = self.objective.advantage.within_groups and self.backbone_config.depth.least > 0
        return within and super().needs_fitted

    def train(self, mode: bool = True) -> RPT:
        """The reference policy never trains: its dropout stays off."""
        super().train(mode)
        if hasattr(self, "reference"):
            self.reference.eval()
        return self

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the pruned set with the run."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[KEY]["kept"] = None if self._kept is None else self._kept.to_plain()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the pruned set back."""
        super().on_load_checkpoint(checkpoint)
        self._kept = KeptSet.from_plain(checkpoint[KEY].get("kept"))

    # ------------------------------------------------------------ training

    def setup(self, stage: str) -> None:
        """Warn where the reward can't tell trajectories apart."""
        super().setup(stage)
        reward, items = self.objective.reward, self.backbone.items
        if stage == "fit" and getattr(reward, "k", 0) >= items:
            equal = isinstance(reward, RecallReward)
            rank_zero_warn(
                f"model.reward.k is {reward.k}, and the catalogue has {items} items: "  # type: ignore[attr-defined]
                f"{'all rewards are equal, so that RPT learns nothing from them' if equal else 'the cut-off has no effect'}. "
                "Set a k below the size of the catalogue"
            )

    def on_train_epoch_start(self) -> None:
        """Count the groups of each epoch anew."""
        self._groups, self._varied = 0, 0

    def on_train_epoch_end(self) -> None:
        """Warn if no group had rewards that differ."""
        super().on_train_epoch_end()
        if self._groups and int(self._varied) == 0:
            rank_zero_warn(
                f"epoch {self.trainer.current_epoch}: in each of its {self._groups:,} groups all trajectories had the same "
                "reward, so that RPT learned nothing from them. Choose another reward (model.reward: lares_pl.LogProbReward "
                "differs wherever trajectories do), a larger group_size, or noise in the initial state"
            )

    def on_fit_start(self) -> None:
        """Prune the training instances, unless a resumed run did, with the same model, rule and data."""
        super().on_fit_start()
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if self.init_from is None and self._kept is None and self.trainer.ckpt_path is None:
            raise LaresError("RPT starts from SPT weights: give init_from (--model.init_from PATH)")
        if self.pruning is None:
            return
        self._kept = self._prune(data, self.pruning)
        instances, kept = len(self._kept.mask), int(self._kept.mask.sum())
        passes = self.pruning.passes_of(self.reference)
        rank_zero_info(
            f"pruning kept {kept:,} of {instances:,} training instances ({kept / instances:.1%}): target among the first "
            f"{self.pruning.top}" + (f" in any of {passes} passes" if passes > 1 else "")
        )
        if kept == 0:
            raise LaresError("pruning left no training instance: the SPT model ranks no target that high; raise pruning.top")
        data.keep(self._kept.mask)

    def _prune(self, data: SequenceDataModule, pruning: Pruning) -> KeptSet:
        sequences = data.sequences
        how = (self.evaluation_depth, pruning, data.reads_sequences, data.max_length)
        mine = pruning_fingerprint(self.reference, (sequences.items, sequences.offsets, sequences.flat.validation), *how)
        fingerprint = self.trainer.strategy.broadcast(mine)  # with a sharded catalogue each process has other weights
        known = self._kept is not None and self._kept.fingerprint == fingerprint
        if self.trainer.strategy.reduce_boolean_decision(known, all=True):
            assert self._kept is not None
            return self._kept
        instances = len(sequences.training_instances)
        passes = pruning.passes_of(self.reference)
        rank_zero_info(f"pruning {instances:,} training instances: {passes} x {self.evaluation_depth} steps each")
        loader = data.instances_loader(self.reference.causal)
        kept = kept_instances(self.reference, loader, instances, self.evaluation_depth, pruning)
        of_all = self.trainer.strategy.reduce(kept.int(), reduce_op="sum") > 0
        return KeptSet(of_all.cpu().numpy(), fingerprint)

    def expected_updates(self) -> float:
        """Of RPT only a budget in updates is known before its instances are pruned."""
        if self.pruning is None:
            return super().expected_updates()
        if self.trainer.max_steps == -1:
            raise LaresError("RPT prunes its instances first: set model.scheduler.total, or trainer.max_steps")
        return self.trainer.max_steps

    def training_step(self, batch: Batch, batch_idx: int = 0) -> Tensor:
        """One update from one group of trajectories an instance."""
        schedule = self.backbone_config.depth
        depths = sorted((schedule.sample(self.randomness.draws) for _ in range(self.group_size)), reverse=True)
        if batch.real is None:
            loss = self._loss(batch, depths)
        else:  # there are too many combinations of depths to record each
            counted, run = self._depths.put(depths, self.device), rounded_up(depths, schedule.evaluation_depth)
            weights = self.objective.beta, self.objective.anchor
            loss = self.recorded(batch, (run, weights), partial(self._loss, depths=run, counted=counted))
        equal = loss.logged["groups_without_variance"]
        self._groups, self._varied = self._groups + len(batch), self._varied + (equal < 1 - 1e-6)
        self.log_training({"loss": loss.total.detach(), **loss.logged, "depth": sum(depths) / len(depths)}, batch)
        return loss.total * row_weight(len(batch), self.device, self.data_parallel_group)

    def _loss(self, batch: Batch, depths: Sequence[int], counted: Tensor | None = None) -> Loss:
        """The loss of a batch whose trajectories are run to these depths, of which `counted` steps count."""
        shares = batch.shares
        of_batch = None if counted is None or shares is None else Counted(counted, shares)
        outcome = group_loss(
            self.learner,
            self.reference,
            batch.histories,
            batch.targets,
            depths,
            self.objective,
            self.randomness.noise,
            places=batch.target_positions,
            read=batch.read,
            total=partial(sum_of_all, group=self.data_parallel_group),
            counted=of_batch,
        )
        mean = torch.mean if of_batch is None else of_batch.mean
        spread = outcome.advantages.square().mean(dim=1)  # their mean over a group is 0
        logged = {
            "kl": outcome.kl,
            "reward": mean(outcome.rewards.mean(dim=1)),
            "groups_without_variance": mean((outcome.rewards.std(dim=1) == 0).float()),
            "advantage_std": mean(spread).sqrt(),
            **({} if outcome.cross_entropy is None else {"ce": outcome.cross_entropy}),
            **({} if outcome.residual is None else {"residual": outcome.residual}),
        }
        return Loss(outcome.loss, logged)
