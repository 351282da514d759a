"""`--help` for people: grouped, a line an option with its default; any option in full on request.

Texts, types and defaults are those of docstrings and signatures, as the parser has read them; nothing is listed twice. With a
`--config` in front, the defaults shown are that config's.
"""

from __future__ import annotations

import argparse
import inspect
import re
import shutil
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, get_args, get_origin

from lares_pl.errors import LaresError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

    _Parser = ArgumentParser
else:  # a mixin: `lares --help` does without jsonargparse
    _Parser = object

_LEFT = 38  # columns of names
_WORDS = {int: "INT", float: "FLOAT", str: "TEXT", bool: "true|false"}


@dataclass(frozen=True)
class Option:
    """An option as help shows it.

    Args:
        key: where it stands in the configuration, such as `model.alpha`.
        names: how it is written, such as `-c, --config`.
        value: what is to be given, such as `FLOAT`; empty where nothing is.
        text: what its docstring says.
        full: the same with type, default and known classes.
        default: its value where it is not given.
        choices: words that may be given.
        classes: paths of classes that may be given.
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
        """What it belongs to: `model` for `model.alpha`."""
        return self.key.rpartition(".")[0]


@dataclass
class Section:
    """Options that belong together.

    Args:
        name: the first part of their keys; empty for those outside any.
        title: what they are about.
        options: the options.
    """

    name: str
    title: str = ""
    options: list[Option] = field(default_factory=list)


class Help(argparse.Action):
    """`--help`, `--help all`, `--help SECTION or OPTION`."""

    def __init__(self, option_strings: list[str], dest: str, **_: Any) -> None:
        text = "Show this help; in full for `all`, a section or an option, such as --help trainer."
        super().__init__(option_strings, dest, nargs="?", default=argparse.SUPPRESS, metavar="[WHAT]", help=text)

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        """Print and exit."""
        print(render(parser, values, flat(namespace)))
        parser.exit()


class Helpful(_Parser):
    """Mixed into a parser: `--help` as of this module.

    Attributes:
        common: of crowded sections, the names that the short help shows; "" is the section of options outside any.
        stages: classes whose options the parser takes under `model`, where none is chosen yet.
    """

    common: Mapping[str, Sequence[str]] = {}
    stages: tuple[type, ...] = ()

    def __init__(self, *arguments: Any, **options: Any) -> None:
        asked = options.pop("add_help", True)
        super().__init__(*arguments, add_help=False, **options)
        if asked:
            self.add_argument("-h", "--help", action=Help)

    def meant(self, message: str) -> str:
        """The message of an error; where it is about options that do not exist, with the ones of similar names."""
        options = [*self._option_string_actions]
        for part in getattr(self._subcommands_action, "_name_parser_map", {}).values():
            options += part._option_string_actions
        unknown = message.partition("unrecognized arguments:")[2].split()
        near = [get_close_matches(word.split("=")[0], options, 1) for word in unknown if word.startswith("--")]
        found = [word for words in near for word in words]
        return f"{message}; did you mean {', '.join(found)}?" if found else message

    def explain(
        self, text: str, examples: Iterable[str], common: Mapping[str, Sequence[str]], texts: Mapping[str, str]
    ) -> None:
        """Say what the command does.

        Args:
            text: in one line.
            examples: commands to copy.
            common: as the attribute.
            texts: of options, by key, instead of what their docstrings say.
        """
        self.description, self.epilog, self.common = text, "\n".join(examples), common
        for action in self._actions:
            action.help = texts.get(action.dest, action.help)


def help_last(arguments: list[str]) -> list[str]:
    """The arguments with `--help` behind all others, so that it knows of a `--config`."""
    for place, argument in enumerate(arguments):
        if argument in ("-h", "--help"):
            what = [word for word in arguments[place + 1 : place + 2] if not word.startswith("-")]
            return [*arguments[:place], *arguments[place + 1 + len(what) :], "--help", *what]
    return arguments


def flat(values: Any) -> dict[str, Any]:
    """Values by whole key, such as `{"model.class_path": …}`; choices of a class are there as a whole too."""
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


# ---------------------------------------------------------------- what there is


def sections(parser: ArgumentParser, values: Mapping[str, Any] | None = None, choices: bool = False) -> list[Section]:
    """All options of a parser, the trainer's last.

    Args:
        parser: the parser.
        values: what is set already, by whole key.
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
                    full += f" Set to {_as_text(default) or 'null'}."
                option = _option(action, default, takes_class, full)
                found.setdefault(option.section, Section(option.section)).options.append(option)
                if choices and isinstance(default, Mapping) and "class_path" in default:
                    found |= _of_choice(action.dest, default, values, choices)


def _of_choice(key: str, chosen: Mapping[str, Any], values: Mapping[str, Any], choices: bool) -> dict[str, Section]:
    """The options of the class chosen at a place."""
    from lares_pl.serialization import import_class

    given = {f"{key}.{name}": value for name, value in (chosen.get("init_args") or {}).items()}
    return _of_class(import_class(chosen["class_path"]), key, {**given, **values}, choices)


def _of_class(kind: type, key: str, values: Mapping[str, Any], choices: bool) -> dict[str, Section]:
    """The options of a class at a place, without those that its user fills in (`params` of an optimiser)."""
    found: dict[str, Section] = {}
    parser = _parser_of(kind, key)
    _collect(parser, values, found, choices)
    needed = {action.dest for action in parser._actions if action.required} - set(values)
    if key in found:  # it has options
        found[key].options = [option for option in found[key].options if option.key not in needed]
        found[key].title = f"{kind.__name__}. {found[key].title}"
    return found


def _parser_of(kind: type, key: str) -> ArgumentParser:
    from lares_pl.cli.parser import Parser

    parser = Parser(add_help=False)
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
    """The text with our own classes alone, where there are some among hundreds of others; and these classes."""
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


# ---------------------------------------------------------------- how it looks


def render(parser: ArgumentParser, what: str | None = None, values: Mapping[str, Any] | None = None) -> str:
    """The help of a command.

    Args:
        parser: its parser.
        what: None for the short help; `all`, a section or an option for everything about it.
        values: what is set already, by whole key.

    Raises:
        LaresError: if no option begins so.
    """
    width = min(max(shutil.get_terminal_size((110, 0)).columns, 60), 130) - 1
    if what is not None:
        return "\n".join(_in_full(sections(parser, values, choices=True), what.lstrip("-"), width))
    found, common = sections(parser, values), getattr(parser, "common", {})
    positional = " ".join(action.dest.upper() for action in parser._actions if not action.option_strings)
    name = re.sub(r" \[options\]", "", parser.prog)
    lines = [f"usage: {name} {positional}{' ' * bool(positional)}[OPTION ...]", "", _sentence(parser.description or "")]
    for section in found:
        names = common.get(section.name)
        shown = [option for option in section.options if names is None or option.key.rpartition(".")[2] in names]
        if not shown:
            continue
        lines += ["", *_heading(section, len(shown), width)]
        lines += [line for option in shown for line in _short(option, width)]
    if any(option.value == "CLASS" for section in found for option in section.options):
        lines += ["", "A CLASS takes options of its own behind its key; --help KEY lists them."]
    return "\n".join([*lines, *_examples(parser.epilog)])


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:].rstrip('.')}." if text else ""


def _heading(section: Section, shown: int, width: int) -> list[str]:
    title = section.title.rstrip(".")
    if section.name == "trainer":
        title = "how it is run (Lightning's Trainer)"
    if shown < len(section.options):
        title += f"{'; ' * bool(title)}--help {section.name or 'all'} shows all {len(section.options)}"
    return textwrap.wrap(f"{section.name or 'options'}: {title}".rstrip(": ") + ":" * (not title), width)


def _short(option: Option, width: int) -> Iterator[str]:
    """A line: name, first sentence, default."""
    sentence = re.split(r"(?<=[^.])\.(?:\s|$)", option.text)[0]
    default = _as_text(option.default)
    yield from _columns(f"{option.names} {option.value}".rstrip(), sentence + (f" [{default}]" if default else ""), width)


def _columns(left: str, right: str, width: int) -> Iterator[str]:
    lines = textwrap.wrap(right, max(width - _LEFT - 4, 20), break_on_hyphens=False) or [""]
    if len(left) > _LEFT:
        yield f"  {left}"
    else:
        yield f"  {left:<{_LEFT}}  {lines.pop(0)}".rstrip()
    for line in lines:
        yield f"  {'':<{_LEFT}}  {line}"


def _as_text(value: Any) -> str:
    """A default in few words: classes by name with their first options."""
    if value is None or value == {}:
        return ""
    if isinstance(value, Mapping):
        if "class_path" not in value:
            return "…"
        name = str(value["class_path"]).rpartition(".")[2]
        init_args = value.get("init_args") or {}
        simple = [f"{key}={_as_text(item)}" for key, item in init_args.items() if isinstance(item, (int, float, str))]
        return f"{name}({', '.join(simple[:2])}{', …' * (len(simple) > 2)})" if simple else name
    if isinstance(value, list):
        return ", ".join(map(_as_text, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _in_full(found: list[Section], what: str, width: int) -> Iterator[str]:
    """Every option that begins so, with all that is known of it."""
    chosen = [
        (section, [option for option in section.options if what == "all" or f"{option.key}.".startswith(f"{what}.")])
        for section in found
    ]
    if not any(options for _, options in chosen):
        known = ", ".join(dict.fromkeys(section.name for section in found if section.name))
        raise LaresError(f"--help {what}: no option begins so. Sections: {known or 'none'}; --help all shows every option")
    for section, options in chosen:
        if options:
            yield from _heading(section, len(section.options), width)
        for option in options:
            yield f"  {option.names} {option.value}".rstrip()
            yield from textwrap.wrap(option.full, width, initial_indent=" " * 6, subsequent_indent=" " * 6)
        if options:
            yield ""


def _examples(epilog: str | None) -> list[str]:
    return ["", "examples:", *(f"  {line.strip()}" for line in epilog.strip().splitlines())] if epilog else []


def examples_of(function: Any) -> str:
    """The commands under `Example:` in a function's docstring."""
    _, _, example = (inspect.getdoc(function) or "").partition("\nExample:\n")
    lines = inspect.cleandoc(re.split(r"\n(?=\S)", example)[0]).splitlines()
    return "\n".join(line for line in lines if line.strip())
