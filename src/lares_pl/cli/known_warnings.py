"""Messages of dependencies that a user can't act on: choices of this package, advertisements, deprecations."""

from __future__ import annotations

import logging
import os
import re
import warnings

_WARNINGS = (
    ".*does not have many workers.*",  # batches are cut from flat arrays: workers would have nothing to do
    ".*weights_only.*",  # checkpoints are always read with weights_only=True
    ".*callbacks used to create the checkpoint.*",  # evaluation needs none of them
    ".*exists and is not empty.*",  # a resumed run writes to the same folder
    ".*in eval mode at the start of training.*",  # the frozen reference policy
    ".*instantiate_classes.*",  # Lightning 2.6 calls what jsonargparse will drop
    ".*LeafSpec.*",  # between Lightning and torch
    ".*could not find the monitored key.*",  # monitors are checked; without a validation the final weights are saved
    ".*hooks will not be called on every batch.*",  # the average is of updates
)
_LINES = (
    "💡",  # advertisements of other products
    "GPU available:",
    "TPU available:",
    "HPU available:",
    "LOCAL_RANK:",
    "Seed set to",
    "`weights_only` was not set",
    "Restoring states from the checkpoint",  # a resumed run says so itself
    "Restored all states from the checkpoint",
    "Loaded model weights from the checkpoint",
    "An SIGTERMException was raised",  # the command says how to resume
    "Received SIGTERM:",
)
_DEPENDENCIES = r"(lightning|lightning_utilities|torch|torchmetrics|wandb|jsonargparse|pydantic|pyarrow|pandas)(\.|$)"


def silence_known_warnings() -> None:
    """Silence these warnings, and these lines of Lightning's log."""
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        for handler in logging.getLogger(name).handlers:
            handler.addFilter(_is_of_use)
    for message in _WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    for category in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):
        warnings.filterwarnings("ignore", category=category, module=_DEPENDENCIES)
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"  # without the line of the source
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")


def _is_of_use(record: logging.LogRecord) -> bool:
    return not re.sub(r"^\[rank: \d+\] ", "", record.getMessage()).startswith(_LINES)
