"""Weights & Biases that works with and without an account."""

from __future__ import annotations

import netrc
import os
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlparse

import wandb
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn


def has_account() -> bool:
    """Whether a key or a login of W&B is at hand."""
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
    """Lightning's W&B logger that is online with an account and keeps an offline run without one; it never prompts.

    `WANDB_MODE`, where set, decides instead. An offline run is sent later with `wandb sync DIR`.

    Args:
        project: W&B project.
        name: name of the run; `RUN-STAGE` where None.
        save_dir: where the run is kept; the stage's folder where None.
        group: group of the run; the name of `--run` where None, so that the stages of one run stand together.
        log_model: whether checkpoints are sent as artifacts; needs an account.
    """

    def __init__(
        self,
        project: str = "lares",
        name: str | None = None,
        save_dir: str | None = None,
        group: str | None = None,
        log_model: Literal["all"] | bool = False,
    ) -> None:
        mode = os.environ.get("WANDB_MODE")
        if mode == "":
            del os.environ["WANDB_MODE"]  # W&B takes the empty word for a mode
        offline = mode in ("offline", "dryrun") if mode else not has_account()
        if offline and log_model:
            rank_zero_warn("W&B is offline: checkpoints are not sent as artifacts (log_model)")
        super().__init__(
            name=name,
            save_dir=save_dir or ".",
            project=project,
            offline=offline,
            log_model=log_model and not offline,
            group=group,
            settings=wandb.Settings(init_timeout=30),  # seconds until an unreachable server is given up
        )
        self._wandb_init.pop("anonymous", None)  # Lightning passes it on; W&B warns that it has no effect
        if offline:
            rank_zero_info(f"W&B: no account found, keeping an offline run in {save_dir or '.'}/wandb")

    @property
    def experiment(self) -> Any:
        """The W&B run; falls back to an offline run where the server can't be reached."""
        from wandb.errors import CommError, UsageError

        Path(self.save_dir or ".").mkdir(parents=True, exist_ok=True)
        try:
            return super().experiment
        except (CommError, UsageError) as error:
            if self._offline:
                raise
            rank_zero_warn(f"W&B can't be reached ({error}); keeping an offline run instead")
            self._offline = True
            self._wandb_init["mode"] = "offline"
            return super().experiment
