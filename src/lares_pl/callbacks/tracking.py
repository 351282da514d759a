"""Weights & Biases, with and without an account."""

from __future__ import annotations

import netrc
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlparse

import wandb
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only, rank_zero_warn

_RESUMES_OFFLINE = (0, 31)  # before, W&B warned that it can't
STEP = "trainer/global_step"  # the x axis of W&B's charts: updates


def has_account() -> bool:
    """Whether there is an API key or a login for W&B."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL") or wandb.Settings().base_url).netloc
    for path in (os.environ.get("NETRC"), "~/.netrc", "~/_netrc"):
        if path is None:
            continue
        try:
            if netrc.netrc(os.path.expanduser(path)).authenticators(host) is not None:
                return True
        except (OSError, netrc.NetrcParseError):
            continue
    return False


class Wandb(WandbLogger):
    """Lightning's W&B logger: online with an account, offline without one; it never prompts.

    `WANDB_MODE` overrides this if set. An offline run is uploaded later with `wandb sync DIR`.

    Args:
        project: W&B project.
        name: name of the run; None: `RUN-STAGE`.
        save_dir: folder of the run; None: the stage's folder.
        group: group of the run; None: the name of `--run`, so that the stages of one run are grouped.
        id: id of a run to continue; the command line sets it for a resumed run.
        checkpoint: the best checkpoint and the one a stage starts from as artifacts (with the callback `Lineage`, which the
            command line adds): `reference` sends name, checksum and path, `upload` also the file, `off` nothing.
        dataset: the prepared dataset as an artifact, likewise.
    """

    def __init__(
        self,
        project: str = "lares",
        name: str | None = None,
        save_dir: str | None = None,
        group: str | None = None,
        id: str | None = None,
        checkpoint: Literal["off", "reference", "upload"] = "reference",
        dataset: Literal["off", "reference", "upload"] = "reference",
    ) -> None:
        mode = os.environ.get("WANDB_MODE")
        if mode == "":
            del os.environ["WANDB_MODE"]  # W&B would take the empty string as a mode
        offline = mode in ("offline", "dryrun") if mode else not has_account()
        self.checkpoint = checkpoint
        self.dataset = dataset
        super().__init__(
            name=name,
            save_dir=save_dir or ".",
            project=project,
            offline=offline,
            id=id,
            group=group,
            # seconds to wait for an unreachable server; what a user can act on is printed here
            settings=wandb.Settings(init_timeout=30, silent=True),
        )
        self._wandb_init.pop("anonymous", None)  # Lightning passes it on; W&B warns that it has no effect
        if offline and tuple(map(int, wandb.__version__.split(".")[:2])) < _RESUMES_OFFLINE:
            self._wandb_init.pop("resume", None)  # the same
        self._why_offline = f"WANDB_MODE is {mode}" if mode else "no account found"

    @property
    def experiment(self) -> Any:
        """The W&B run; falls back to an offline run if the server can't be reached."""
        from wandb.errors import CommError, UsageError

        if self._experiment is not None or rank_zero_only.rank > 0:  # type: ignore[attr-defined]
            return super().experiment
        folder = Path(self.save_dir or ".")
        if self._offline:  # said here, since many a run is refused before it is tracked
            rank_zero_info(
                f"W&B: {self._why_offline}, keeping an offline run in {folder / 'wandb'} (`wandb sync` sends it later)"
            )
        folder.mkdir(parents=True, exist_ok=True)
        try:
            run = super().experiment
        except (CommError, UsageError) as error:
            if self._offline:
                raise
            rank_zero_warn(f"W&B can't be reached ({error}); keeping an offline run instead")
            self._offline = True
            self._wandb_init["mode"] = "offline"
            run = super().experiment
        if not self._offline:
            rank_zero_info(f"W&B: {run.url}")
        run.define_metric("train/*", step_metric=STEP)
        run.define_metric("val/*", step_metric=STEP)
        run.define_metric("val/ndcg@10", step_metric=STEP, summary="max")  # the best checkpoint's, which sweeps maximise
        return run

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log training and validation metrics by update; put test metrics into the summary."""
        tested = {name: value for name, value in metrics.items() if name.startswith("test/")}
        if not tested:
            super().log_metrics(metrics, step)
            return
        self.experiment.summary.update(tested)

    def use(self, artifact: wandb.Artifact) -> None:
        """Record that the run uses an artifact, which is logged if W&B does not have it."""
        run = self.experiment
        if self._offline:  # `use_artifact` refuses to work offline, although `wandb sync` uploads such records
            run._log_artifact(artifact, aliases=[], is_user_created=True, use_after_commit=True)
            return
        try:
            run.use_artifact(artifact)
        except (wandb.Error, ValueError) as error:  # the run continues without it
            rank_zero_warn(f"W&B did not accept the artifact {artifact.name}: {error}")
