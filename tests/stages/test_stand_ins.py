"""Tensors that stand in for parameters, in modules that read them in different ways."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lares_pl.stages.stand_ins import stand_ins


class Tied(nn.Module):
    """A recurrent network, which keeps a list of its weights, and two layers that share theirs."""

    def __init__(self) -> None:
        super().__init__()
        self.read = nn.GRU(4, 4, batch_first=True)
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.frozen = nn.Parameter(torch.ones(4), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.second(self.first(self.read(x)[0])) * self.frozen
        return out


def test_gradients_are_those_of_the_parameters_which_are_left_alone() -> None:
    torch.manual_seed(0)
    network, x = Tied(), torch.randn(2, 3, 4)
    own = list(network.parameters())
    trained = [parameter for parameter in own if parameter.requires_grad]
    expected = torch.autograd.grad(network(x).square().sum(), trained)
    with stand_ins(network) as found:
        loss = network(x).square().sum()
        assert not set(network.parameters()) & set(own)
    gradients = torch.autograd.grad(loss, [*(found[parameter] for parameter in trained), *trained], allow_unused=True)
    torch.testing.assert_close(gradients[: len(trained)], expected)
    assert gradients[len(trained) :] == (None,) * len(trained)
    assert all(found[p].data_ptr() == p.data_ptr() and found[p].requires_grad == p.requires_grad for p in own)
    assert list(map(id, network.parameters())) == list(map(id, own))
    assert network.second.weight is network.first.weight
    torch.testing.assert_close(torch.autograd.grad(network(x).square().sum(), trained), expected)


def test_parameters_are_back_after_an_error() -> None:
    network = Tied()
    own = list(network.parameters())
    with pytest.raises(KeyError), stand_ins(network):
        raise KeyError
    assert list(map(id, network.parameters())) == list(map(id, own))
