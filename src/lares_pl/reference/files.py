"""Reading files of the authors' release without running any code in them.

RecBole pickles its whole `Config` object, classes of its own included. Here only tensors and plain containers are
rebuilt; any other class becomes an `Inert` object that keeps its state and does nothing.
"""

from __future__ import annotations

import json
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, ClassVar

import torch
import yaml
from torch import Tensor

from lares_pl.errors import LaresError

# the only callables allowed while reading; each only assembles tensors or plain values
_ALLOWED = {
    ("collections", "OrderedDict"),
    ("torch", "Size"),
    ("torch", "device"),
    ("torch._utils", "_rebuild_parameter"),
    ("torch._utils", "_rebuild_tensor_v2"),
    *(
        ("torch", f"{kind}Storage")
        for kind in ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
    ),
}


class Inert:
    """Placeholder for an object of a class that is not loaded: keeps its state and does nothing."""

    state: Any = None

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        self.arguments = arguments

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def append(self, item: Any) -> None:
        """Pickled lists of other classes are not kept."""

    def extend(self, items: Any) -> None:
        """Pickled lists of other classes are not kept."""

    def __setitem__(self, key: Any, value: Any) -> None:
        """Pickled dicts of other classes are not kept."""


class _Unpickler(pickle._Unpickler):
    """Python's own one: that in C fills a table which is as large as an index in the file says."""

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(pickle._Unpickler.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED:
            return super().find_class(module, name)
        return type(name, (Inert,), {})

    def _refuse_bytearray(self) -> None:
        """The release holds none, and Python would fill one that is as long as the file says."""
        raise pickle.UnpicklingError("it holds a bytearray")

    dispatch[pickle.BYTEARRAY8[0]] = _refuse_bytearray


def _load(file: IO[bytes], **keywords: Any) -> Any:
    return _Unpickler(file, **keywords).load()


def read_reference(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read state dict and settings from a file of the release.

    Args:
        path: RecBole's checkpoint (with `state_dict` and `config`), or only a state dict.

    Returns:
        The state dict, and the settings (empty if the file has none).

    Raises:
        LaresError: if there is no such file or it contains no state dict.
    """
    if not path.is_file():
        raise LaresError(f"no such file: {path}")
    reader = SimpleNamespace(Unpickler=_Unpickler, load=_load, __name__="inert")
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as file:
                if damaged := file.testzip():
                    raise ValueError(f"its part {damaged} has changed since it was written")
                if any(Path(name).name == "constants.pkl" for name in file.namelist()):  # torch would run it
                    raise ValueError("it is a TorchScript program, not a checkpoint")
        content = torch.load(path, map_location="cpu", pickle_module=reader, weights_only=False)
    except Exception as error:  # damaged bytes can cause any error in torch and pickle
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise LaresError(f"{path}: can't be read as a checkpoint: {reason}") from error
    if not isinstance(content, Mapping):
        raise LaresError(f"{path}: holds a {type(content).__name__}; expected RecBole's checkpoint or a state dict")
    state = content.get("state_dict", content)
    tensors = {str(name): value.detach() for name, value in state.items() if isinstance(value, Tensor)}
    if tensors and all(name.startswith("module.") for name in tensors):  # of a model wrapped for several devices
        tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
    if not tensors or not isinstance(state, (dict, OrderedDict)):
        raise LaresError(f"{path}: no state dict in it; it has {', '.join(map(str, list(content)[:5]))}")
    return tensors, _settings(content.get("config"))


def _settings(config: Any) -> dict[str, Any]:
    """Return settings from RecBole's `Config`, which keeps them in an attribute, or from a plain dict."""
    if isinstance(config, Inert) and isinstance(config.state, Mapping):
        config = config.state.get("final_config_dict", config.state)
    if not isinstance(config, Mapping):
        return {}
    plain = (str, int, float, bool, list)
    return {str(key): value for key, value in config.items() if isinstance(value, plain)}


def read_settings(path: Path) -> dict[str, Any]:
    """Read settings of the release from a YAML or JSON file.

    Raises:
        LaresError: if there is no such file or it contains no mapping.
    """
    try:
        settings = yaml.safe_load(path.read_text()) if path.suffix != ".json" else json.loads(path.read_text())
    except (OSError, yaml.YAMLError, ValueError) as error:
        raise LaresError(f"{path}: can't be read as settings: {error}") from error
    if not isinstance(settings, dict):
        raise LaresError(f"{path}: holds no settings (expected `name: value` lines)")
    return settings
