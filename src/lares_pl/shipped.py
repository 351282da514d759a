"""Configs and scripts that come with the package, found by name from anywhere."""

from __future__ import annotations

from pathlib import Path

from lares_pl.errors import LaresError


def shipped_configs() -> Path:
    """Their folder: inside a wheel, or at the top of a checkout."""
    inside = Path(__file__).parent / "configs"
    return inside if inside.is_dir() else Path(__file__).resolve().parents[2] / "configs"


def config(name: str) -> None:
    """Print a file that comes with the package, to read it or to make it one's own: `lares config spt.yaml > mine.yaml`.

    Args:
        name: its name, such as spt.yaml, cluster.yaml or slurm.sh.

    Raises:
        LaresError: if none of that name is shipped.
    """
    path = shipped_configs() / name
    if not path.is_file():
        known = ", ".join(sorted(path.name for path in shipped_configs().iterdir()))
        raise LaresError(f"nothing of the name {name} is shipped; there are {known}")
    print(path.read_text(encoding="utf-8"), end="")


def with_shipped_configs(arguments: list[str]) -> list[str]:
    """The arguments with each `--config NAME` that is no local file replaced by the shipped one of that name.

    Raises:
        LaresError: if there is neither.
    """
    resolved: list[str] = []
    expected = False
    for argument in arguments:
        if expected:
            argument = _find(argument)
        elif argument.startswith(("--config=", "-c=")):
            option, _, name = argument.partition("=")
            argument = f"{option}={_find(name)}"
        expected = argument in ("--config", "-c")
        resolved.append(argument)
    return resolved


def _find(name: str) -> str:
    if Path(name).is_file():
        return name
    shipped = shipped_configs() / name
    if shipped.is_file():
        return str(shipped)
    known = ", ".join(sorted(path.name for path in shipped_configs().glob("*.yaml")))
    raise LaresError(f"--config {name}: no such file here, and none of that name is shipped (there are {known})")
