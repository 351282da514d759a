"""Original ids as tensors."""

from __future__ import annotations

import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lares_pl import LaresError
from lares_pl.data.ids import packed_ids, unpacked_ids


@given(st.lists(st.text(), min_size=1))
def test_text_comes_back(ids: list[str]) -> None:
    assert unpacked_ids(packed_ids(pa.array(ids))).to_pylist() == ids
    assert unpacked_ids(packed_ids(pa.array([*ids, "cut off"]).slice(0, len(ids)))).to_pylist() == ids


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1))
def test_numbers_come_back_as_numbers(ids: list[int]) -> None:
    assert unpacked_ids(packed_ids(pa.array(ids, pa.int64()))).to_pylist() == ids


def test_what_is_neither_becomes_text() -> None:
    assert unpacked_ids(packed_ids(pa.array([2**64 - 1], pa.uint64()))).to_pylist() == [str(2**64 - 1)]
    assert unpacked_ids(packed_ids(pa.array(["a", "b", "a"]).dictionary_encode())).to_pylist() == ["a", "b", "a"]


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
def test_what_is_no_list_of_ids_is_refused(packed: dict[str, torch.Tensor]) -> None:
    with pytest.raises(LaresError, match="item ids"):
        unpacked_ids(packed)
