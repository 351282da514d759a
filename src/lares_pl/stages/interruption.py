"""The progress of a run that an exception ended, as if it had been saved after its last complete update.

`ModelCheckpoint(save_on_exception=True)` saves in the middle of a batch: the loader has served it, but its update was not
made. A run resumed from such a state would leave the batch out.
"""

from __future__ import annotations

from typing import Any


def rewind(loop: dict[str, Any], accumulate: int) -> None:
    """Set the progress of a training loop back to its last complete update, in place.

    Args:
        loop: state of Lightning's fit loop, as in a checkpoint.
        accumulate: batches of an update.
    """
    progress = loop["epoch_loop.batch_progress"]
    current, total = progress["current"], progress["total"]
    validation = loop["epoch_loop.val_loop.batch_progress"]
    if validation["total"]["processed"] < validation["total"]["started"]:  # it is repeated from its first batch
        validation["current"] = dict.fromkeys(validation["current"], 0)
        validation["is_last_batch"] = False
    served, processed = current["ready"], current["processed"]
    if current["completed"] == served:
        return  # between two batches, or in a validation
    ends_epoch = progress["is_last_batch"] and processed == served
    whole = processed if ends_epoch else processed - processed % accumulate
    if served > processed and whole:
        loop["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1  # Lightning counts the last update again
    # Lightning itself saves after an update with one batch less completed than processed
    begun, ended = total["ready"] - (served - whole), int(whole > 0)
    for counts, last in ((current, whole), (total, begun)):
        counts.update(ready=last, started=last, processed=last, completed=last - ended)
    progress["is_last_batch"] = ends_epoch
    for loader in loop["state_dict"].get("combined_loader", ()):
        loader["served"] = whole
