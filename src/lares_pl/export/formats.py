"""The formats of programs: ONNX, or PyTorch's own exported program."""

from __future__ import annotations

import importlib.metadata
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from lares_pl.errors import LaresError
from lares_pl.export.programs import Program
from lares_pl.export.silence import silence

if TYPE_CHECKING:
    from torch.export import ExportedProgram

Run = Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]


class ProgramFormat(ABC):
    """Writes programs, and runs them."""

    #: extension of its files
    suffix: str
    #: packages whose versions are worth knowing
    packages: tuple[str, ...]

    def check(self) -> None:
        """Check that the format's packages are installed.

        Raises:
            LaresError: with the command that installs them.
        """
        for name in self.packages:
            try:
                importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError as error:
                raise LaresError(f"this format needs {name}: pip install 'lares-pl[onnx]'") from error

    @abstractmethod
    def write(self, states: Program, rankings: Program, folder: Path) -> None:
        """Write `user_state` and `model`."""

    @abstractmethod
    def load(self, path: Path) -> Run:
        """Load a program as a function of named arrays."""

    def versions(self) -> dict[str, str]:
        """Return the versions of the packages that wrote it."""
        return {name: importlib.metadata.version(name) for name in self.packages}


class Torch(ProgramFormat):
    """`torch.export`: runs wherever PyTorch does, also compiled ahead of time."""

    suffix = ".pt2"
    packages = ("torch",)

    def write(self, states: Program, rankings: Program, folder: Path) -> None:
        for name, program in (("user_state", states), ("model", rankings)):
            torch.export.save(traced(program), folder / f"{name}{self.suffix}")

    def load(self, path: Path) -> Run:
        with silence():
            module = torch.export.load(path).module()

        def run(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            found = module(*(torch.from_numpy(value) for value in inputs.values()))
            found = (found,) if isinstance(found, torch.Tensor) else found
            names = ("state",) if len(found) == 1 else ("ranked_items", "scores", "state")
            return {name: value.numpy() for name, value in zip(names, found, strict=True)}

        return run


class Onnx(ProgramFormat):
    """ONNX: runs in onnxruntime and similar runtimes, without PyTorch."""

    suffix = ".onnx"
    packages = ("torch", "onnx", "onnxscript", "onnxruntime")

    def write(self, states: Program, rankings: Program, folder: Path) -> None:
        import onnx_ir as ir
        from onnx_ir.passes.common import ClearMetadataAndDocStringPass, DeduplicateInitializersPass, RemoveUnusedNodesPass

        from lares_pl.export.onnx_erfinv import erfinv

        graph = traced(rankings)
        _check_loops(graph)
        whole = torch.onnx.export(
            graph,
            dynamo=True,
            verbose=False,
            dynamic_shapes=rankings.shapes,  # their names
            input_names=list(rankings.inputs),
            output_names=list(rankings.outputs),
            custom_translation_table={torch.ops.aten.erfinv.default: erfinv},
        )
        assert whole is not None
        # no stack traces with paths of this machine; a table that is looked up and scored against is written once
        tidy = (ClearMetadataAndDocStringPass(), DeduplicateInitializersPass(size_limit=sys.maxsize), RemoveUnusedNodesPass())
        for each in tidy:
            each(whole.model)
        whole.save(folder / f"model{self.suffix}")
        # translating costs more than cutting the first program out of the second, which begins with it
        part = ir.convenience.extract(whole.model.graph, list(states.inputs), list(states.outputs))
        model = ir.Model(part, ir_version=whole.model.ir_version, functions=list(whole.model.functions.values()))
        torch.onnx.ONNXProgram(model, None).save(folder / f"user_state{self.suffix}")

    def load(self, path: Path) -> Run:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]

        def run(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            return dict(zip(names, session.run(names, inputs), strict=True))

        return run


FORMATS: dict[str, type[ProgramFormat]] = {"onnx": Onnx, "torch": Torch}


def _check_loops(program: ExportedProgram) -> None:
    """Check that a reasoning step inside a loop does not use frequencies: ONNX's DFT is not valid there."""
    loops = [
        module for name, module in program.graph_module.named_modules() if name and isinstance(module, torch.fx.GraphModule)
    ]
    if any("fft" in str(node.target) for module in loops for node in module.graph.nodes):
        raise LaresError(
            "--depth input can't be written as ONNX for a core-block that works on frequencies (FMLP-Rec, BSARec): its DFT is "
            "not valid inside a loop. Export a fixed depth (--depth 4), or a PyTorch program (--format torch)"
        )


def traced(program: Program) -> ExportedProgram:
    """A program as PyTorch's graph."""
    with torch.no_grad():
        return torch.export.export(program.module, program.example, dynamic_shapes=program.shapes)
