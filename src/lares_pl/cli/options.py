"""The options that a parser takes, as help and completion show them.

Texts, types and defaults are those of docstrings and signatures, as the parser has read them; nothing is listed twice.
"""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_args, get_origin

from jsonargparse import ArgumentParser

from lares_pl.parsing import PlainParser
from lares_pl.serialization import import_class

_WORDS = {int: "INT", float: "FLOAT", str: "TEXT", bool: "true|false"}


@dataclass(frozen=True)
class Option:
    """An option as help shows it.

    Args:
        key: its key in the configuration, such as `model.alpha`.
        names: how it is written, such as `-c, --config`.
        value: placeholder of its value, such as `FLOAT`; empty for a flag.
        text: its docstring.
        full: the same with type, default and known classes.
        default: its default value.
        choices: allowed words.
        classes: paths of allowed classes.
    """

    key: str
    names: str
    value: str
    text: str
    full: str
    default: Any = None
    choices: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()

    @property
    def section(self) -> str:
        """The section it belongs to: `model` for `model.alpha`."""
        return self.key.rpartition(".")[0]


@dataclass
class Section:
    """Options that belong together.

    Args:
        name: the first part of their keys; empty for options outside any section.
        title: its heading.
        options: the options.
    """

    name: str
    title: str = ""
    options: list[Option] = field(default_factory=list)


def flat(values: Any) -> dict[str, Any]:
    """Return values by full key, such as `{"model.class_path": …}`; a chosen class is also included as a whole."""
    found: dict[str, Any] = {}

    def walk(prefix: str, value: Any) -> None:
        if hasattr(value, "as_dict"):
            value = value.as_dict()
        found[prefix] = value
        if isinstance(value, Mapping):
            chosen = value.get("init_args") or {} if "class_path" in value else value
            for name, inner in chosen.items():
                walk(f"{prefix}.{name}" if prefix else name, inner)

    walk("", values)
    return found


def sections(parser: ArgumentParser, values: Mapping[str, Any] | None = None, choices: bool = False) -> list[Section]:
    """Return all options of a parser, the trainer's last.

    Args:
        parser: the parser.
        values: the values already set, by full key.
        choices: whether to list the options of chosen classes too.
    """
    values = values or {}
    found: dict[str, Section] = {"": Section("")}
    _collect(parser, values, found, choices)
    if (chosen := values.get("model")) is None:
        for stage in getattr(parser, "stages", ()):
            found |= {
                f"{name} {stage.__name__}": section for name, section in _of_class(stage, "model", values, choices).items()
            }
    elif not choices:
        found |= _of_choice("model", chosen, values, choices)
    return sorted((section for section in found.values() if section.options), key=lambda section: section.name == "trainer")


def _collect(parser: ArgumentParser, values: Mapping[str, Any], found: dict[str, Section], choices: bool) -> None:
    helped = {action.dest for action in parser._actions if type(action).__name__ == "_ActionHelpClassPath"}
    formatter: Any = parser._get_formatter()
    known = flat(parser.get_defaults())
    for group in parser._action_groups:
        for action in group._group_actions:
            kind = type(action).__name__
            if kind == "_ActionConfigLoad" and "." not in action.dest:
                found.setdefault(action.dest, Section(action.dest)).title = group.title or ""
            elif kind == "_ActionConfigLoad":
                found.setdefault(action.dest, Section(action.dest, group.title or ""))
            elif kind not in ("_ActionHelpClassPath", "ActionSubCommands") and action.help != argparse.SUPPRESS:
                default = values.get(action.dest, known.get(action.dest))
                takes_class = f"{action.dest}.help" in helped
                full = formatter._expand_help(action)
                if default != known.get(action.dest) and action.option_strings:
                    full += f" Set to {value_text(default) or 'null'}."
                option = _option(action, default, takes_class, full)
                found.setdefault(option.section, Section(option.section)).options.append(option)
                if choices and isinstance(default, Mapping) and "class_path" in default:
                    found |= _of_choice(action.dest, default, values, choices)


def _of_choice(key: str, chosen: Mapping[str, Any], values: Mapping[str, Any], choices: bool) -> dict[str, Section]:
    """The options of the class chosen for a key."""
    given = {f"{key}.{name}": value for name, value in (chosen.get("init_args") or {}).items()}
    return _of_class(import_class(chosen["class_path"]), key, {**given, **values}, choices)


def _of_class(kind: type, key: str, values: Mapping[str, Any], choices: bool) -> dict[str, Section]:
    """The options of a class under a key, without those that are filled in later (`params` of an optimiser)."""
    found: dict[str, Section] = {}
    parser = _parser_of(kind, key)
    _collect(parser, values, found, choices)
    needed = {action.dest for action in parser._actions if action.required} - set(values)
    if key in found:  # it has options
        found[key].options = [option for option in found[key].options if option.key not in needed]
        found[key].title = f"{kind.__name__}. {found[key].title}"
    return found


def _parser_of(kind: type, key: str) -> ArgumentParser:
    parser = PlainParser(add_help=False)
    parser.add_class_arguments(kind, key, fail_untyped=False)
    return parser


def _option(action: Any, default: Any, takes_class: bool, full: str) -> Option:
    names = ", ".join(name for name in action.option_strings if not name.endswith("+")) or action.dest
    text = " ".join((action.help or "").split())
    default = None if default == argparse.SUPPRESS else default
    value = _value(action, takes_class) if action.option_strings else ""
    full, classes = _known_classes(" ".join(full.split()))
    return Option(action.dest, names, value, text, full, default, _choices(action), classes)


def _known_classes(full: str) -> tuple[str, tuple[str, ...]]:
    """The text with only this package's classes, if some are among hundreds of others; and these classes."""
    listed = re.search(r", known subclasses: ([^)]*)", full)
    classes = listed.group(1).split(", ") if listed else []
    own = [path for path in classes if path.startswith("lares_pl.")] or [
        path for path in classes if "torch.Tensor" not in classes
    ]
    return (full.replace(listed.group(1), ", ".join(own) or "tensors") if listed else full), tuple(own)


def _choices(action: Any) -> tuple[str, ...]:
    if action.choices:
        return tuple(map(str, action.choices))
    metavar = action.metavar if isinstance(action.metavar, str) else ""
    return tuple(metavar[1:-1].split(",")) if metavar.startswith("{") else ()


def _value(action: Any, takes_class: bool) -> str:
    if action.nargs == 0:
        return ""
    if choices := _choices(action):
        return "|".join(choice for choice in choices if choice != "null")
    if action.metavar:
        return str(action.metavar)
    hint = getattr(action, "_typehint", None) or str
    kinds = [hint] if get_origin(hint) is None or inspect.isclass(hint) else [k for k in get_args(hint) if k is not type(None)]
    simple = [word for base, word in _WORDS.items() if any(inspect.isclass(k) and issubclass(k, base) for k in kinds)]
    if takes_class and not simple:
        return "CLASS"
    if "INT" in simple and "true|false" in simple:  # bool is an int too
        simple = ["INT"] if bool not in kinds else simple
    return simple[0] if len(simple) == 1 else "VALUE"


def value_text(value: Any) -> str:
    """Format a default briefly: classes by name with their first options."""
    if value is None or value == {}:
        return ""
    if isinstance(value, Mapping):
        if "class_path" not in value:
            return "…"
        name = str(value["class_path"]).rpartition(".")[2]
        init_args = value.get("init_args") or {}
        simple = [f"{key}={value_text(item)}" for key, item in init_args.items() if isinstance(item, (int, float, str))]
        return f"{name}({', '.join(simple[:2])}{', …' * (len(simple) > 2)})" if simple else name
    if isinstance(value, list):
        return ", ".join(map(value_text, value))
    return str(value).lower() if isinstance(value, bool) else str(value)
