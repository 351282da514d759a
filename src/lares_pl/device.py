"""What computes, by its name."""

from __future__ import annotations

import torch

from lares_pl.errors import LaresError


def resolve_device(name: str | torch.device) -> torch.device:
    """The device of a name; `auto` is the GPU where there is one.

    Raises:
        LaresError: if there is no such device.
    """
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
        torch.zeros(1, device=device).item()  # some devices hold tensors, and no numbers
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise LaresError(f"--device {name}: {reason}. There are auto, cpu and, with a GPU, cuda") from error
    return device
