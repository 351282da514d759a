"""Tensors that stand in for the parameters of a network and share their memory.

What is computed meanwhile is differentiated by them, so that nothing that observes gradients of the parameters takes part.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def stand_ins(network: nn.Module) -> Iterator[dict[nn.Parameter, nn.Parameter]]:
    """Replace the parameters of a network meanwhile.

    Args:
        network: whose modules read them as attributes.

    Returns:
        The stand-in of each parameter.
    """
    found = {parameter: nn.Parameter(parameter.detach(), parameter.requires_grad) for parameter in network.parameters()}
    places = [
        (part, name, own)
        for part in network.modules()
        for name, own in part.named_parameters(recurse=False, remove_duplicate=False)
    ]
    try:
        for part, name, own in places:
            setattr(part, name, found[own])  # some modules, such as recurrent networks, take note of it
        yield found
    finally:
        for part, name, own in places:
            setattr(part, name, own)
