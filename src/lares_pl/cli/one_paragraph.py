"""Errors of a run as one paragraph, whoever raised them: Lightning, PyTorch, a callback."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from lightning.fabric.utilities.exceptions import MisconfigurationException

from lares_pl.errors import LaresError
from lares_pl.parsing import readable


@contextmanager
def one_paragraph() -> Iterator[None]:
    """Turn errors into a `LaresError` with their cause and place; those of the operating system are reported elsewhere."""
    try:
        yield
    except (LaresError, OSError):
        raise
    except MisconfigurationException as error:
        raise LaresError(readable(str(error))) from error
    except Exception as error:
        said = " ".join(str(error).split()) or "no message"
        *_, (frame, line) = traceback.walk_tb(error.__traceback__)
        place = f"{frame.f_code.co_filename}, line {line}, in {frame.f_code.co_name}"
        raise LaresError(
            f"{type(error).__name__}: {said} ({place}). LARES_TRACEBACK=1 shows how it came to this; checkpoints saved before "
            "are unchanged"
        ) from error
