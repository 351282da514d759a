"""The inverse error function in ONNX, which has none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from onnxscript import FLOAT
from onnxscript import opset18 as op

# Giles 2012, "Approximating the erfinv function", single precision: in w - 2.5 for w < 5, in sqrt(w) - 3 above; from the
# highest power on
_CENTRE = [2.81022636e-08, 3.43273939e-07, -3.5233877e-06, -4.39150654e-06, 0.00021858087, -0.00125372503, -0.00417768164]
_CENTRE += [0.246640727, 1.50140941]
_TAIL = [-0.000200214257, 0.000100950558, 0.00134934322, -0.00367342844, 0.00573950773, -0.0076224613, 0.00943887047]
_TAIL += [1.00167406, 2.83297682]


def erfinv(self: FLOAT) -> FLOAT:
    """`erfinv(x)`, relative error below 1e-6."""
    one = _number(1.0)
    w = op.Neg(op.Log(op.Mul(op.Sub(one, self), op.Add(one, self))))
    centre = _polynomial(_CENTRE, op.Sub(w, _number(2.5)))
    tail = _polynomial(_TAIL, op.Sub(op.Sqrt(w), _number(3.0)))
    inverse: FLOAT = op.Mul(op.Where(op.Less(w, _number(5.0)), centre, tail), self)
    return inverse


def _polynomial(coefficients: Sequence[float], x: Any) -> Any:
    """Horner's scheme, from the highest power on."""
    value: Any = _number(coefficients[0])
    for coefficient in coefficients[1:]:
        value = op.Add(op.Mul(value, x), _number(coefficient))
    return value


def _number(value: float) -> Any:
    return op.Constant(value_float=value)
