"""Warnings about choices that this package makes on purpose."""

from __future__ import annotations

import logging
import os
import warnings

_MESSAGES = (
    ".*does not have many workers.*",  # batches are cut from flat arrays: workers would have nothing to do
    ".*weights_only.*",  # checkpoints are always read with weights_only=True
    ".*callbacks used to create the checkpoint.*",  # evaluation needs none of them
    ".*exists and is not empty.*",  # a resumed run writes to the same folder
    ".*in eval mode at the start of training.*",  # the frozen reference policy
    ".*instantiate_classes.*",  # Lightning 2.6 calls what jsonargparse will drop
    ".*LeafSpec.*",  # between Lightning and torch
)


def silence_known_warnings() -> None:
    """Silence these warnings, and Lightning's tips."""
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch"):
        logging.getLogger(name).addFilter(lambda record: "💡" not in record.getMessage())
    for message in _MESSAGES:
        warnings.filterwarnings("ignore", message=message)
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
