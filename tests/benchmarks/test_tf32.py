"""Rounding to the operands of tensor cores, and that all products of an update are rounded."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import torch

import tf32
from tests.training import data, released_spt, trainer


def test_numbers_are_rounded_to_ten_bits() -> None:
    x = torch.tensor([1.0, 1 + 2**-10, 1 + 2**-11, 1 + 3 * 2**-11, 1 + 2**-11 + 2**-20, -3.14159265, 1e-30])
    found = tf32.rounded(x)
    assert found[:5].tolist() == [1.0, 1 + 2**-10, 1.0, 1 + 2**-9, 1 + 2**-10]  # ties to even
    assert ((found - x).abs() <= x.abs() * 2**-11).all()
    assert torch.equal(tf32.rounded(found), found)
    assert torch.equal(tf32.rounded(x.double()), x.double())


def test_products_read_rounded_operands() -> None:
    generator = torch.Generator().manual_seed(1)
    a, b = (torch.randn(3, 4, 4, generator=generator, requires_grad=True) for _ in range(2))
    with tf32.RoundedProducts():
        out = a @ b
        out.sum().backward()
    assert a.grad is not None
    torch.testing.assert_close(out, tf32.rounded(a) @ tf32.rounded(b), rtol=0, atol=0)
    torch.testing.assert_close(a.grad, torch.ones_like(out) @ tf32.rounded(b).transpose(1, 2), rtol=0, atol=0)


def test_a_run_learns_nearly_the_same(toy_dataset: Path, tmp_path: Path) -> None:
    weights = []
    for callbacks in ([], [tf32.Rounded()]):
        L.seed_everything(1)
        stage = released_spt()
        trainer(tmp_path, callbacks=callbacks, max_steps=5).fit(stage, data(toy_dataset))
        weights.append(torch.cat([p.detach().flatten() for p in stage.backbone.parameters()]))
    difference = float((weights[1] - weights[0]).norm() / weights[0].norm())
    assert 0 < difference < 0.05
