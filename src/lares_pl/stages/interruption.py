"""The progress of a run that ended within an epoch, as if it had been saved after its last complete update.

`ModelCheckpoint(save_on_exception=True)` saves in the middle of a batch: the loader has served it, but its update was not
made. A run resumed from such a state would leave the batch out. After a training that `max_steps` ended, Lightning has counted
its epoch: a run resumed from a checkpoint of that moment would leave out the rest of it. A validation can come between the
batches of one update (`accumulate_grad_batches`): a checkpoint of that moment does not hold the gradients of the first ones.
"""

from __future__ import annotations

from typing import Any

from lightning import Trainer


def correct_progress(checkpoint: dict[str, Any], trainer: Trainer) -> None:
    """Make the progress in a checkpoint that of its last complete update, in place.

    Args:
        checkpoint: as Lightning has made it.
        trainer: of the run.
    """
    loop = checkpoint["loops"]["fit_loop"]
    epoch = loop["epoch_progress"]["current"]
    if trainer.interrupted:
        rewind(loop, trainer.accumulate_grad_batches)
    elif 0 < epoch["ready"] == epoch["processed"]:
        whole = loop["epoch_loop.batch_progress"]["is_last_batch"]
        if not whole or trainer.max_steps != -1:  # with max_steps Lightning would make an empty epoch after a whole one
            reopen_epoch(loop)
            checkpoint["epoch"] = epoch["processed"]
    drop_open_update(loop, trainer.accumulate_grad_batches)


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


def drop_open_update(loop: dict[str, Any], accumulate: int) -> None:
    """Set the progress of a training loop back by the batches behind its last complete update, if a validation follows them.

    A resumed run makes that validation again.

    Args:
        loop: state of Lightning's fit loop, as in a checkpoint.
        accumulate: batches of an update.
    """
    progress = loop["epoch_loop.batch_progress"]
    current, total = progress["current"], progress["total"]
    behind = current["ready"] % accumulate
    if behind == 0 or progress["is_last_batch"] or current["completed"] < current["ready"]:
        return
    for counts in (current, total):
        counts.update({name: count - behind for name, count in counts.items()})
    for loader in loop["state_dict"].get("combined_loader", ()):
        loader["served"] -= behind


def reopen_epoch(loop: dict[str, Any]) -> None:
    """Set the progress of a training loop back to the last update of an epoch that is counted as done, in place.

    Args:
        loop: state of Lightning's fit loop, as in a checkpoint.
    """
    epoch, batch = loop["epoch_progress"], loop["epoch_loop.batch_progress"]
    for counts in (epoch["current"], epoch["total"]):
        counts["processed"] -= 1
        counts["completed"] = min(counts["completed"], counts["processed"])
    for counts in (batch["current"], batch["total"]):
        counts["completed"] = counts["processed"] - 1  # as Lightning itself saves after an update, which it counts again
    loop["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1
