"""Original ids as tensors."""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lares_pl import LaresError
from lares_pl.data.dataset.ids import ItemIndex, packed_ids, unpacked_ids


@given(st.lists(st.text(), min_size=1))
def test_text_ids_are_restored(ids: list[str]) -> None:
    assert unpacked_ids(packed_ids(pa.array(ids))).to_pylist() == ids
    assert unpacked_ids(packed_ids(pa.array([*ids, "cut off"]).slice(0, len(ids)))).to_pylist() == ids


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1))
def test_numeric_ids_are_restored_as_numbers(ids: list[int]) -> None:
    assert unpacked_ids(packed_ids(pa.array(ids, pa.int64()))).to_pylist() == ids


def test_other_ids_are_restored_as_text() -> None:
    assert unpacked_ids(packed_ids(pa.array([2**64 - 1], pa.uint64()))).to_pylist() == [str(2**64 - 1)]
    assert unpacked_ids(packed_ids(pa.array(["a", "b", "a"]).dictionary_encode())).to_pylist() == ["a", "b", "a"]


MOMENTS = [datetime.datetime(2020, 1, 1), datetime.datetime(2020, 1, 2, 3, 4, 5, 678)]


@pytest.mark.parametrize(
    ("catalogue", "given"),
    [
        (pa.array([1.0, 2.5, 1e16]), [1.0, np.float64(2.5), 1e16]),
        (pa.array([1.0, 2.5, 1e16]), [1, "2.5", 10**16]),
        (pa.array([0.1, 7], pa.float32()), np.array([0.1, 7], dtype=np.float32)),
        (pa.array([True, False]), [True, np.bool_(False)]),
        (pa.array(MOMENTS, pa.timestamp("us")), MOMENTS),
        (pa.array(MOMENTS, pa.timestamp("ns")), pd.Series(MOMENTS)),
        (pa.array(MOMENTS, pa.timestamp("ns")), pd.Series(MOMENTS).to_numpy()),
        (pa.array(MOMENTS, pa.timestamp("ns", "UTC")), pd.Series(MOMENTS).dt.tz_localize("UTC")),
        (pa.array([moment.date() for moment in MOMENTS]), [moment.date() for moment in MOMENTS]),
        (pa.array([100, 101]), pd.Series([100.0, 101.0])),
        (pa.array([100, 101]), pa.array([100, 101])),
        (pa.array(["100", "101"]), [100.0, np.int64(101)]),
    ],
)
def test_ids_are_found_in_any_type(catalogue: pa.Array, given: Iterable[Any]) -> None:
    """In the catalogue of a dataset and in its copy in a checkpoint."""
    for ids in (catalogue, unpacked_ids(packed_ids(catalogue))):
        assert ItemIndex(ids).numbers(given).tolist() == list(range(1, len(catalogue) + 1))
        assert ItemIndex(ids).numbers(catalogue.to_pylist()).tolist() == list(range(1, len(catalogue) + 1))
        assert ItemIndex(ids).numbers([100.5, None, float("nan"), float("inf"), "x"]).tolist() == [0] * 5


@pytest.mark.parametrize(
    "packed",
    [
        {},
        {"numbers": torch.tensor([1.0])},
        {"numbers": torch.tensor([[1]])},
        {"text": torch.tensor([97], dtype=torch.uint8), "ends": torch.tensor([2])},
        {"text": torch.tensor([97, 98], dtype=torch.uint8), "ends": torch.tensor([3, 2])},
        {"text": torch.tensor([97, 98], dtype=torch.uint8), "ends": torch.tensor([-1, 2])},
        {"text": torch.tensor([255], dtype=torch.uint8), "ends": torch.tensor([1])},
        {"text": torch.tensor([97], dtype=torch.uint8), "ends": torch.tensor([], dtype=torch.int64)},
    ],
)
def test_damaged_ids_are_refused(packed: dict[str, torch.Tensor]) -> None:
    with pytest.raises(LaresError, match="item ids"):
        unpacked_ids(packed)
