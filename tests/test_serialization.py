"""Typed configuration is restored from plain values, and errors name the key."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from torch import nn

from lares_pl import BackboneConfig, ConcatInjection, CosineSimilarity, LaresError, TransformerBlock, UniformDepth, ZeroState
from lares_pl.parsing import from_plain, readable
from lares_pl.serialization import import_class, to_plain


class OwnBlock(nn.Module):
    """A custom block."""

    def __init__(self, hidden_size: int, wide: bool = False) -> None:
        super().__init__()
        self.wide = wide


def only_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and only_plain(item) for key, item in value.items())
    if isinstance(value, list):
        return all(map(only_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))


def test_values_are_restored_from_plain_values() -> None:
    config = BackboneConfig(
        hidden_size=32,
        pre_block=partial(TransformerBlock, heads=4),
        core_block=partial(OwnBlock, wide=True),
        injection=ConcatInjection(),
        initial_state=ZeroState(),
        depth=UniformDepth(3),
        similarity=CosineSimilarity(0.1),
    )
    plain = to_plain(config)
    assert only_plain(plain)
    again = from_plain(BackboneConfig, plain, "backbone")
    assert to_plain(again)["depth"] == plain["depth"]
    assert again.depth == UniformDepth(3)
    assert again.similarity == CosineSimilarity(0.1)
    assert again.core_block(32).wide is True
    assert again.pre_block(32).attention.heads == 4
    assert to_plain(from_plain(BackboneConfig, to_plain(again), "backbone")) == to_plain(again)


def test_an_unknown_key_is_named() -> None:
    with pytest.raises(LaresError, match="hiden_size"):
        from_plain(BackboneConfig, {"hiden_size": 3}, "backbone")


def test_a_wrong_type_is_named() -> None:
    with pytest.raises(LaresError, match="hidden_size"):
        from_plain(BackboneConfig, {"hidden_size": "large"}, "backbone")


def test_a_missing_class_is_named() -> None:
    with pytest.raises(LaresError, match=r"no_such_module"):
        from_plain(BackboneConfig, {"core_block": {"class_path": "no_such_module.Block"}}, "backbone")


def test_values_that_cannot_be_serialized_are_refused() -> None:
    with pytest.raises(LaresError, match="partial"):
        to_plain(BackboneConfig(core_block=lambda hidden_size: OwnBlock(hidden_size)))


def test_invalid_settings_are_refused() -> None:
    with pytest.raises(LaresError, match="dropout"):
        BackboneConfig(dropout=1.0)
    with pytest.raises(LaresError, match="hidden_size"):
        BackboneConfig(hidden_size=0)
    with pytest.raises(LaresError, match=r"depth must be a DepthSchedule of lares_pl, such as ConstantDepth\(4\), got 4"):
        BackboneConfig(depth=4)  # type: ignore[arg-type]


def test_a_class_whose_module_is_not_there_comes_with_advice() -> None:
    with pytest.raises(LaresError, match=r"No module named 'my_block'. Where is my_block.py\? Run in its folder, or add"):
        import_class("my_block.MyBlock")
    with pytest.raises(LaresError, match=r"has no attribute 'NoSuchBlock'$"):
        import_class("lares_pl.model.blocks.NoSuchBlock")


def test_readable_keeps_the_key_and_the_error() -> None:
    report = (
        'Parser key "model":\n  Does not validate against any of the Union subtypes\n  Subtypes: [a, b]\n  Errors:\n'
        "    - Problem with given class_path 'x.SPT':\n        Parser key \"alpha\":\n"
        "          Expected a <class 'float'>. Got value: abc\n    - Expected a <class 'NoneType'>\n  Given value: {'a': 1}"
    )
    assert readable(report) == "model.alpha: Expected a number. Got value: abc"
    assert readable("plain words") == "plain words"


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (
            "- Expected a <class 'int'>\n- Expected a <class 'float'>\n- Expected a <class 'NoneType'>",
            "a whole number or a number",
        ),
        (
            "- Expected a <class 'int'>\n- Expected a typing.Literal['input']\nGiven value: foo",
            "a whole number or 'input'. Got value: foo",
        ),
        ("Expected a <class 'bool'>. Got value: x", "true or false. Got value: x"),
        ("Not of type PositiveInt: 0 does not conform to restriction v>0", "a whole number, 1 or larger"),
        ("Not of type NonNegativeInt: invalid literal for int() with base 10: 'x'", "a whole number, 0 or larger"),
        ("Expected a typing.Literal['a', 'b']. Got value: x", "one of 'a', 'b'. Got value: x"),
    ],
)
def test_readable_names_types_in_words(raw: str, words: str) -> None:
    assert readable(f'Parser key "k":\n{raw}') == f"k: Expected {words}"
