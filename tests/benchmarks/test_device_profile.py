"""What a card is busy for: the length of a union of intervals."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

import device_profile


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 20)), max_size=12))
def test_the_union_of_intervals_is_what_they_cover(spans: list[tuple[int, int]]) -> None:
    covered = {second for start, length in spans for second in range(start, start + length)}
    assert device_profile.union([(start, start + length) for start, length in spans]) == pytest.approx(len(covered))
