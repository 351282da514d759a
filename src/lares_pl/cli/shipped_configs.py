"""Configs and scripts that come with the package, by name, from any folder."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from lares_pl.errors import LaresError

_MOST_VALUES = 100_000  # of a config: a few lines of YAML aliases can expand to billions


TRAINER = "trainer.yaml"  # the default config of `fit`


def _folder(name: str) -> Path:
    """The path of a folder of shipped files: inside a wheel, or at the top of a checkout."""
    inside = Path(__file__).parents[1] / name
    return inside if inside.is_dir() else Path(__file__).resolve().parents[3] / name


def shipped_configs() -> dict[str, Path]:
    """Return the shipped configs, by the name that `--config` takes."""
    return {path.name: path for path in sorted(_folder("configs").rglob("*.yaml"), key=lambda path: path.name)}


def shipped_files() -> dict[str, Path]:
    """Return all shipped files: configs, and examples of scripts."""
    examples = {path.name: path for path in _folder("examples").iterdir()}
    return dict(sorted({**shipped_configs(), **examples}.items()))


def config(name: str) -> None:
    """Print a file that comes with the package, to read it or to start your own: `lares config spt.yaml > mine.yaml`.

    Args:
        name: its name, such as spt.yaml, cluster.yaml or slurm.sh.

    Raises:
        LaresError: if there is no such file.

    Example:
        lares config spt.yaml > mine.yaml
    """
    files = shipped_files()
    if name not in files:
        raise LaresError(f"no shipped file is named {name}; there are {', '.join(files)}")
    print(files[name].read_text(encoding="utf-8"), end="")


def with_shipped_configs(arguments: list[str]) -> list[str]:
    """Replace each `--config NAME` that is not a local file by the path of the shipped config.

    Raises:
        LaresError: if there is neither, or it is not valid YAML.
    """
    resolved: list[str] = []
    expected = False
    for argument in arguments:
        if expected:
            argument = _checked(_find(argument))
        elif argument.startswith(("--config=", "-c=")):
            option, _, name = argument.partition("=")
            argument = f"{option}={_checked(_find(name))}"
        expected = argument in ("--config", "-c")
        resolved.append(argument)
    return resolved


def config_that_sets(key: str, arguments: list[str]) -> str | None:
    """Return the last config of a command line that sets a key, such as `model.alpha`; None if none does.

    Args:
        key: the key; `init_args` between its parts may be left out.
        arguments: the command line, with paths of its configs.
    """
    import yaml

    after = [value for option, value in pairwise(arguments) if option in ("--config", "-c")]
    joined = [word.partition("=")[2] for word in arguments if word.startswith(("--config=", "-c="))]
    for path in reversed([*after, *joined]):
        if _sets(yaml.safe_load(Path(path).read_text(encoding="utf-8")), key.split(".")):
            return path
    return None


def _sets(content: object, parts: list[str]) -> bool:
    if not parts:
        return True
    if not isinstance(content, dict):
        return False
    return (parts[0] in content and _sets(content[parts[0]], parts[1:])) or _sets(content.get("init_args"), parts)


def _checked(path: str) -> str:
    """Check that a config is a mapping of plain values of a reasonable size, and return its path."""
    import yaml

    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise LaresError(f"--config {path}: is not valid YAML: {' '.join(str(error).split())}") from error
    if not (isinstance(content, dict) and all(isinstance(key, str) for key in content)):
        raise LaresError(f"--config {path}: contains no options; expected lines `key: value`")
    left, values = [content], 0
    while left:
        value = left.pop()
        values += 1
        left += value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
        if values > _MOST_VALUES:
            raise LaresError(f"--config {path}: its *aliases expand to more than {_MOST_VALUES:,} values; write the values out")
    return path


def _find(name: str) -> str:
    if Path(name).is_file():
        return name
    shipped = shipped_configs()
    if name in shipped:
        return str(shipped[name])
    raise LaresError(f"--config {name}: no such file, and no shipped config has that name (there are {', '.join(shipped)})")
