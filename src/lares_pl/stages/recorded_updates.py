"""Updates as CUDA graphs: loss and gradients of a batch are recorded once for each shape and replayed with one launch.

An update launches hundreds of small kernels, and on a fast card Python needs several times as long to launch them as the card
to run them. What a graph reads lies at fixed addresses: the batch is copied into the buffer it was recorded with. What it draws
on the device follows the generators' seeds, as without a graph. Numbers of the host are constants of a graph, so they are part
of what it is kept under.
"""

from __future__ import annotations

import pickle
import random
import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import is_in_torch_dispatch_mode
from torch.utils.flop_counter import FlopCounterMode

from lares_pl.data.loading.batches import Batch
from lares_pl.errors import LaresError
from lares_pl.model.device import on_device, without_autocast
from lares_pl.stages.cuda_graphs import no_waiting
from lares_pl.stages.stand_ins import stand_ins
from lares_pl.stages.validation import has_scaler

MOST = 256  # graphs; further ones are not recorded

#: records what a function does on the device, with generators, and returns what does it again
Recorder = Callable[[Callable[[], None], Sequence[torch.Generator]], Callable[[], None]]


class Loss(NamedTuple):
    """What an update computes on the device.

    Args:
        total: the loss, a scalar.
        logged: scalars to log.
    """

    total: Tensor
    logged: dict[str, Tensor]


class Numbers:
    """Numbers in one tensor of the device, from which recorded updates read those of each update."""

    def __init__(self) -> None:
        self._tensor: Tensor | None = None

    def put(self, numbers: Sequence[int] | Tensor, device: torch.device) -> Tensor:
        """The tensor with these numbers, always as many."""
        new = on_device(torch.as_tensor(numbers), device)
        if self._tensor is None or self._tensor.device != device:
            self._tensor = torch.zeros_like(new)
        return self._tensor.copy_(new)


class _Recording(NamedTuple):
    replay: Callable[[], None]
    batch: Batch
    names: list[str]  # of logged values
    values: Tensor  # the loss and logged values, one after the other
    flops: int  # of matrix products, forward and backward
    used: list[bool]  # which parameters have a gradient


def can_be_recorded(trainer: Trainer, stage: LightningModule, network: nn.Module) -> bool:
    """Whether updates of a stage can be recorded, for which its batches get the same shapes.

    Of strategies with several devices only with DDP; not where a scaler has to scale the loss before its gradients are
    computed; nor where a user's `training_step`, or the statistics of a batch norm, would count instances that do not count.

    Args:
        trainer: of the run.
        stage: that is trained.
        network: whose parameters updates change.
    """
    strategy = trainer.strategy
    is_known = type(strategy) in (SingleDeviceStrategy, DDPStrategy) and strategy.root_device.type == "cuda"
    is_ours = type(stage).training_step.__module__.startswith("lares_pl.")
    if not (is_known and is_ours) or has_scaler(trainer):
        return False
    return not any(isinstance(part, _BatchNorm) for part in network.modules())


class RecordedUpdates:
    """Losses of batches whose gradients are known once they are computed.

    Args:
        network: that is trained.
        draws: generator of the host; what reads it differs in each update, so that it can't be recorded.
        generators: of the device that updates draw from, beside the default one.
        record: records and replays.
        apart: whether to record with other tensors that share the parameters' memory. DDP ties its parameters to the stream
            that it was made on, for which a graph must not wait; it learns of gradients when the loss is differentiated.
    """

    def __init__(
        self,
        network: nn.Module,
        draws: torch.Generator,
        generators: Sequence[torch.Generator],
        record: Recorder,
        apart: bool = False,
    ) -> None:
        self._network, self._apart = network, apart
        self._all = [(parameter, parameter.requires_grad, parameter.data_ptr()) for parameter in network.parameters()]
        self.parameters = [parameter for parameter, is_trained, _ in self._all if is_trained]
        self._gradients = [torch.zeros_like(parameter) for parameter in self.parameters]  # of the last replay
        self._draws, self._generators, self._record = draws, generators, record
        self._recordings: dict[Hashable, _Recording] = {}
        self._failed = False
        self.flops: int | None = None  # of the last batch; None: it was not replayed
        self._stream: torch.cuda.Stream | None = None  # of the first run of what is recorded

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        """A copy of a stage that is being trained records anew."""
        return type(None), ()

    def is_valid(self) -> bool:
        """Whether the same parameters are trained as in the beginning, and lie where they did."""
        return all(p.requires_grad == is_trained and p.data_ptr() == place for p, is_trained, place in self._all)

    def __call__(self, batch: Batch, numbers: Hashable, compute: Callable[[Batch], Loss]) -> Loss:
        """The loss of a batch.

        Args:
            batch: as its loader serves it.
            numbers: all numbers of the host that `compute` depends on.
            compute: gives the loss of a batch of such shapes.
        """
        self.flops = None
        # a dispatch mode, such as a counter of operations, sees none within a graph; hooks would be called twice
        if batch.real is None or self._failed or is_in_torch_dispatch_mode() or torch.is_anomaly_enabled() or self._hooked:
            return compute(batch)
        if not batch.is_in_buffer:
            batch = batch.in_one_buffer()
        key = (batch.shapes, numbers)
        if key not in self._recordings:
            if len(self._recordings) >= MOST:
                return compute(batch)
            try:
                self._recordings[key] = self._recorded(batch, compute)
            except (LaresError, torch.OutOfMemoryError):
                raise
            except Exception as error:  # a block or loss of a user can wait for the device, or draw on the host
                self._failed = True
                loss = compute(batch)  # raises if it is not the recording that fails
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                warnings.warn(
                    f"cuda_graphs: this update can't be recorded and runs operation by operation ({reason})", stacklevel=2
                )
                return loss
        return self._replayed(self._recordings[key], batch)

    @property
    def _hooked(self) -> bool:
        return any(parameter._backward_hooks for parameter in self.parameters)

    @contextmanager
    def _leaves(self) -> Iterator[list[Tensor]]:
        """What a loss that is computed meanwhile is differentiated by: the trained parameters, or their stand-ins."""
        if not self._apart:
            yield [*self.parameters]
            return
        with stand_ins(self._network) as found:
            yield [found[parameter] for parameter in self.parameters]

    @contextmanager
    def _beside(self, device: torch.device) -> Iterator[None]:
        """On a stream of its own, as what is recorded later; what the current stream does comes before and after."""
        if device.type != "cuda":
            yield
            return
        current = torch.cuda.current_stream(device)
        self._stream = self._stream or torch.cuda.Stream(device)
        self._stream.wait_stream(current)
        try:
            with torch.cuda.stream(self._stream):
                yield
        finally:
            current.wait_stream(self._stream)

    def _replayed(self, recording: _Recording, batch: Batch) -> Loss:
        assert recording.batch.buffer is not None
        assert batch.buffer is not None
        recording.batch.buffer.copy_(batch.buffer)
        recording.replay()
        self.flops = recording.flops
        loss, *logged = recording.values.clone()
        total: Tensor = _WithGradients.apply(loss, self._gradients, recording.used, *self.parameters)  # type: ignore[no-untyped-call]
        return Loss(total, dict(zip(recording.names, logged, strict=True)))

    def _recorded(self, batch: Batch, compute: Callable[[Batch], Loss]) -> _Recording:
        """Run once, then record; what was drawn meanwhile is drawn again."""
        assert batch.buffer is not None
        buffer = batch.buffer.clone()
        batch = batch.within(buffer)
        values = buffer.new_empty(0, dtype=torch.float32)
        names: list[str] = []
        used: list[bool] = []
        replaced = self.parameters if self._apart else []  # nothing may depend on them

        def update() -> None:
            nonlocal values
            with self._leaves() as leaves:
                loss = compute(batch)
            with without_autocast(loss.total.device):  # as the trainer does it
                found = torch.autograd.grad(loss.total, [*leaves, *replaced], allow_unused=True)
            found, of_replaced = found[: len(leaves)], found[len(leaves) :]
            if any(gradient is not None for gradient in of_replaced):
                raise RuntimeError("a module reads its parameters from elsewhere than its attributes")
            names[:], used[:] = loss.logged, [gradient is not None for gradient in found]
            own = [kept for kept, is_used in zip(self._gradients, used, strict=True) if is_used]
            torch._foreach_copy_(own, [gradient for gradient in found if gradient is not None])
            numbers = torch.stack([value.detach().float() for value in (loss.total, *loss.logged.values())])
            if not len(values):
                values = torch.empty_like(numbers)
            values.copy_(numbers)

        on_host = [self._draws] if buffer.device.type == "cpu" else [self._draws, torch.default_generator]
        with _drawn_again(on_host), _drawn_again([_default_generator(buffer.device), *self._generators]):
            before = _host_state(on_host)
            torch.clear_autocast_cache()  # weights that were cast outside of a graph would be read by it for ever
            counter = FlopCounterMode(display=False)
            with self._beside(buffer.device), no_waiting(buffer.device), counter:
                update()
            if _host_state(on_host) != before:
                raise RuntimeError("it draws random numbers on the host")
            torch.clear_autocast_cache()
            try:
                replay = self._record(update, self._generators)
            except Exception as error:  # PyTorch's memory and generators stay in the state of recording
                raise LaresError(
                    f"this update can't be recorded as a CUDA graph ({error}); set model.cuda_graphs to false"
                ) from error
            torch.clear_autocast_cache()
        return _Recording(replay, batch, names, values, int(counter.get_total_flops()), used)


def _host_state(generators: Sequence[torch.Generator]) -> tuple[Any, ...]:
    """What random draws of the host depend on."""
    return [g.get_state().tolist() for g in generators], random.getstate(), pickle.dumps(np.random.get_state())


def _default_generator(device: torch.device) -> torch.Generator:
    return torch.default_generator if device.type == "cpu" else torch.cuda.default_generators[device.index]


@contextmanager
def _drawn_again(generators: Sequence[torch.Generator]) -> Iterator[None]:
    """Generators are as before in the end."""
    states = [generator.get_state() for generator in generators]
    try:
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


class _WithGradients(torch.autograd.Function):
    """A loss whose gradients are there already."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, gradients: list[Tensor], used: list[bool], *parameters: Tensor) -> Tensor:
        ctx.gradients, ctx.used = gradients, used
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        some = [own for own, used in zip(ctx.gradients, ctx.used, strict=True) if used]
        scaled = iter(torch._foreach_mul(some, gradients[0]))
        return (None, None, None, *(next(scaled) if used else None for used in ctx.used))
