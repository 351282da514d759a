"""Configs and scripts that come with the package, by name, from any folder."""

from __future__ import annotations

from pathlib import Path

from lares_pl.errors import LaresError

_MOST_VALUES = 100_000  # of a config: some lines of YAML can stand for billions


TRAINER = "trainer.yaml"  # what every fit starts from


def _folder(name: str) -> Path:
    """A folder of shipped files: inside a wheel, or at the top of a checkout."""
    inside = Path(__file__).parents[1] / name
    return inside if inside.is_dir() else Path(__file__).resolve().parents[3] / name


def shipped_configs() -> dict[str, Path]:
    """The shipped configs, by the name that `--config` takes."""
    return {path.name: path for path in sorted(_folder("configs").rglob("*.yaml"), key=lambda path: path.name)}


def shipped_files() -> dict[str, Path]:
    """All that is shipped: configs, and examples of scripts around them."""
    examples = {path.name: path for path in _folder("examples").iterdir()}
    return dict(sorted({**shipped_configs(), **examples}.items()))


def config(name: str) -> None:
    """Print a file that comes with the package, to read it or to start your own: `lares config spt.yaml > mine.yaml`.

    Args:
        name: its name, such as spt.yaml, cluster.yaml or slurm.sh.

    Raises:
        LaresError: if none of that name is shipped.

    Example:
        lares config spt.yaml > mine.yaml
    """
    files = shipped_files()
    if name not in files:
        raise LaresError(f"nothing of the name {name} is shipped; there are {', '.join(files)}")
    print(files[name].read_text(encoding="utf-8"), end="")


def with_shipped_configs(arguments: list[str]) -> list[str]:
    """The arguments with each `--config NAME` that is no local file replaced by the shipped one of that name.

    Raises:
        LaresError: if there is neither, or it is no YAML.
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


def _checked(path: str) -> str:
    """The path of a config, once it is known to hold `key: value` and nothing that YAML would build or multiply."""
    import yaml

    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise LaresError(f"--config {path}: can't be read as YAML: {' '.join(str(error).split())}") from error
    if content is not None and not (isinstance(content, dict) and all(isinstance(key, str) for key in content)):
        raise LaresError(f"--config {path}: holds no options; expected lines `key: value`")
    left, values = [content], 0
    while left:
        value = left.pop()
        values += 1
        left += value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
        if values > _MOST_VALUES:
            raise LaresError(
                f"--config {path}: its *aliases stand for more than {_MOST_VALUES:,} values; write out what is meant"
            )
    return path


def _find(name: str) -> str:
    if Path(name).is_file():
        return name
    shipped = shipped_configs()
    if name in shipped:
        return str(shipped[name])
    raise LaresError(f"--config {name}: no such file here, and none of that name is shipped (there are {', '.join(shipped)})")
