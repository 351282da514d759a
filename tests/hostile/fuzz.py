"""Damaged and malicious files: each reader accepts them or raises a `LaresError`.

Never another exception, never code out of a file, never a damaged neighbour. `LARES_FUZZ` is the number of damages tried for
each reader.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lares_pl import LaresError

EXAMPLES = int(os.environ.get("LARES_FUZZ", "12"))
fuzzed = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), database=None)
Damage = Callable[[bytes], bytes]


def cut(share: float) -> Damage:
    return lambda content: content[: int(share * len(content))]


def flip(places: list[tuple[float, int]]) -> Damage:
    def damage(content: bytes) -> bytes:
        changed = bytearray(content)
        for share, bit in places:
            changed[int(share * (len(content) - 1))] ^= 1 << bit
        return bytes(changed)

    return damage


def overwrite(share: float, by: bytes) -> Damage:
    return lambda content: content[: int(share * len(content))] + by + content[int(share * len(content)) + len(by) :]


def replace(by: bytes) -> Damage:
    return lambda _: by


shares = st.floats(0, 1)
damages = st.one_of(
    st.builds(cut, shares),
    st.builds(flip, st.lists(st.tuples(shares, st.integers(0, 7)), min_size=1, max_size=4)),
    st.builds(overwrite, shares, st.binary(min_size=1, max_size=40)),
    st.builds(replace, st.binary(max_size=80)),
)


def fuzz(whole: bytes, tried: Callable[[bytes], None], times: int = EXAMPLES) -> None:
    """Try damaged forms of a file."""
    settings(fuzzed, max_examples=times)(given(damages)(lambda damage: tried(damage(whole))))()


def outcome(action: Callable[[], Any]) -> Any:
    """The result; None if it is refused with a `LaresError`."""
    with contextlib.suppress(LaresError):
        return action()


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Harm:
    """Runs a command when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.mark}",)
