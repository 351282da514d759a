"""The LightningDataModule: sequences of a prepared dataset, split as it was prepared."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info

from lares_pl.data.dataset.instances import Instances
from lares_pl.data.dataset.prepared import SequenceDataset, check_dataset
from lares_pl.data.loading.batches import Batch
from lares_pl.data.loading.external_histories import read_histories
from lares_pl.data.loading.loaders import BatchesOf, BatchLoader, InstanceLoader, WindowLoader
from lares_pl.data.loading.partners import SameTargetPartners
from lares_pl.data.loading.sampler import Shard
from lares_pl.data.loading.windows import training_windows
from lares_pl.data.prepare.columns import Columns
from lares_pl.data.prepare.source import Format, Source
from lares_pl.errors import LaresError


class SequenceDataModule(L.LightningDataModule):
    """Serves sequences: training on every prefix of a user's training items, validation and test on the items held out.

    A batch has histories and targets, and what else the stage requests: aligned instances, partners, seen items.

    Args:
        dataset: directory of a prepared dataset (`lares prepare`); a later stage takes it from the checkpoint.
        max_length: maximum history length L, older items are cut off; None: 20, or the checkpoint's.
        batch_size: training instances, or sequences, per batch and process.
        instances: how training instances are read. `prefix`: each target with its own history, as in the paper.
            `sequence`, for causal blocks: a user's training items once, with a target at each position; users with more than
            `max_length + 1` training items in windows that overlap by half. `auto`: `sequence` for causal models.
        aligned_positions: with `sequence`, the number of targets of each sequence that SPT aligns; None: 1.
        eval_batch_size: users per batch and process in validation, test and prediction; None: 1,024, on a GPU 8,192.
        predict: the position that `predict` ranks items for: after a user's whole sequence (`next`), or that of the held-out
            item (`validation`, `test`).
        histories: file with other histories to predict for, in a format that `lares prepare` reads, with item ids of the
            dataset.
        columns: names of the columns of `histories`.
        format: format of `histories`; None: as its name tells.
        encoding: encoding of `histories` if it is text; None: UTF-8, or that of a byte order mark.
        separator: separator of the fields of `histories`, such as ; or tab; None: a comma in CSV, a tab in TSV.
        header: names of the columns of `histories`, a list or separated by commas, if it has no header line.
        seed: seed of the order of training instances and of partners; None: `seed_everything` on the command line, else 0.

    Raises:
        LaresError: if there is no such dataset; in `setup`, if it is incomplete.
    """

    def __init__(
        self,
        dataset: str | None = None,
        max_length: int | None = None,
        batch_size: int = 64,
        instances: Literal["auto", "prefix", "sequence"] = "auto",
        aligned_positions: int | None = None,
        eval_batch_size: int | None = None,
        predict: Literal["next", "validation", "test"] = "next",
        histories: str | None = None,
        columns: Columns = Columns(),
        format: Format | None = None,
        encoding: str | None = None,
        separator: str | None = None,
        header: list[str] | str | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        max_length = 20 if max_length is None else max_length
        if min(max_length, batch_size, 1 if eval_batch_size is None else eval_batch_size) < 1:
            raise LaresError("data: max_length, batch_size and eval_batch_size must be at least 1")
        if instances not in ("auto", "prefix", "sequence"):
            raise LaresError(f"data.instances must be auto, prefix or sequence, got {instances}")
        if aligned_positions is not None and (aligned_positions < 1 or instances == "prefix"):
            raise LaresError("data.aligned_positions must be at least 1, and applies only to data.instances: sequence")
        self.dataset_path = str(check_dataset(dataset).absolute())
        self.max_length = max_length
        self.batch_size = batch_size
        self.instances = instances
        self.aligned_positions = 1 if aligned_positions is None else aligned_positions
        self.asks_alignment = aligned_positions is not None
        self._eval_batch_size = eval_batch_size
        self.predict = predict
        self.histories = histories
        self.columns = columns
        self._written: dict[str, Any] = {"format": format, "encoding": encoding, "separator": separator, "header": header}
        self.seed = 0 if seed is None else seed
        # a later stage on the same data reads these from the checkpoint
        self.save_hyperparameters({"dataset": self.dataset_path, "max_length": max_length})
        self._kept: np.ndarray | None = None
        self._sequences = None if instances == "auto" else instances == "sequence"

    @cached_property
    def sequences(self) -> SequenceDataset:
        """The dataset, read on first use."""
        return SequenceDataset.load(self.dataset_path)

    def setup(self, stage: str) -> None:
        """Read the dataset."""
        if stage == "fit" and len(self.sequences.training_instances) == 0:
            raise LaresError(
                f"{self.dataset_path}: no training instance: no user has two training items. With leave-one-out a user's last "
                "two items are held out, so users train with four items or more, or with exactly two, of which none is held out"
            )
        if stage in ("fit", "validate", "test") and len(self.sequences.held_out("test")) == 0:
            raise LaresError(
                f"{self.dataset_path}: nothing to evaluate on: no item is held out (leave-one-out needs users with three)"
            )

    def decide_instances(self, causal: bool) -> None:
        """Settle how training instances are read, once there is a model.

        Args:
            causal: whether the model's states never depend on later items.
        """
        before, self._sequences = self._sequences, causal if self.instances == "auto" else self.instances == "sequence"
        if self.instances == "auto" and not causal and before is None:
            rank_zero_info(
                "data.instances: auto serves each target with a history of its own, because this model lets a position see "
                f"later ones; batches hold {self.batch_size} of them (--data.batch_size)"
            )

    @property
    def reads_sequences(self) -> bool:
        """Whether a user's training items are read in one pass.

        Raises:
            LaresError: if `instances` is `auto` and no model has decided.
        """
        if self._sequences is None:
            raise LaresError("data.instances: auto is decided by the model that is trained; set sequence or prefix without one")
        return self._sequences

    @property
    def training_batches(self) -> BatchesOf:
        """What the training batches depend on."""
        unit: Literal["prefix", "sequence"] = "sequence" if self.reads_sequences else "prefix"
        return BatchesOf(self.batch_size, self.seed, unit, self._shard.world_size)

    @property
    def most_aligned(self) -> int:
        """Instances that are aligned in a batch of a process, at most."""
        return self.batch_size * (self.aligned_positions if self.reads_sequences else 1)

    def keep(self, kept: np.ndarray | None) -> None:
        """Restrict training to some training instances (a mask), or lift the restriction (None); used by RPT's pruning."""
        self._kept = kept

    # ------------------------------------------------------------ loaders

    @property
    def eval_batch_size(self) -> int:
        """Users per batch and process where nothing is trained; a small batch costs a GPU as much time as a large one."""
        if self._eval_batch_size is not None:
            return self._eval_batch_size
        return 8192 if self._on_cuda else 1024

    @property
    def _shard(self) -> Shard:
        # the processes of a sharded catalogue read the same batches
        serving = self.trainer.distributed_sampler_kwargs if self.trainer is not None else None
        return Shard() if serving is None else Shard(serving["rank"], serving["num_replicas"])

    def _loader(self, instances: Instances, dataset: SequenceDataset | None = None, with_seen: bool = True) -> BatchLoader:
        """Batches in order."""
        return InstanceLoader(
            self.sequences if dataset is None else dataset,
            instances,
            self.eval_batch_size,
            self.max_length,
            with_seen=with_seen,
            with_read=self._asked("needs_read"),
            shard=self._shard,
            pin=self._on_cuda,
        )

    @property
    def _on_cuda(self) -> bool:
        return self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"

    def _asked(self, need: str) -> bool:
        """Whether the current stage requests something in its batches."""
        return self.trainer is not None and bool(getattr(self.trainer.lightning_module, need, False))

    def train_dataloader(self) -> BatchLoader:
        """Training instances, in a new random order each epoch."""
        data = self.sequences
        order: dict[str, Any] = {"shuffle": True, "seed": self.seed, "shard": self._shard, "pin": self._on_cuda}
        order |= {"with_read": self._asked("needs_read"), "fitted": self._asked("needs_fitted")}
        loader: BatchLoader
        partners = SameTargetPartners(data) if self._asked("needs_partners") else None
        if self.reads_sequences:
            windows = training_windows(data, self.max_length)
            aligned = self.aligned_positions if self._asked("needs_aligned") else 0
            loader = WindowLoader(data, windows, self.batch_size, self.max_length, self._kept, aligned, partners, **order)
        else:
            instances = data.training_instances if self._kept is None else data.training_instances.keeping(self._kept)
            loader = InstanceLoader(data, instances, self.batch_size, self.max_length, partners, **order)
        if loader.sampler.count < self._shard.world_size:
            raise LaresError(
                f"{loader.sampler.count} training {'sequences' if self.reads_sequences else 'instances'} for "
                f"{self._shard.world_size} processes: use fewer devices"
            )
        return loader

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Without waiting for the device: batches of a CUDA run lie in page-locked memory."""
        return batch.to(device, non_blocking=True)

    def instances_loader(self, causal: bool = False) -> BatchLoader:
        """All training instances once, in order, for pruning.

        Args:
            causal: whether the model is causal, so that a user's first L instances can be read in one pass.
        """
        if not causal:
            return self._loader(self.sequences.training_instances, with_seen=False)
        # small batches on a CPU, so that states stay in its cache
        size = self.eval_batch_size if self._on_cuda else min(self.eval_batch_size, 256)
        # with prefix instances, targets after the first L are read with exactly the history that docs/method.md defines
        overlap = None if self.reads_sequences else self.max_length
        windows = training_windows(self.sequences, self.max_length, overlap)
        options: dict[str, Any] = {"shard": self._shard, "pin": self._on_cuda, "with_read": self._asked("needs_read")}
        return WindowLoader(self.sequences, windows, size, self.max_length, **options)

    def val_dataloader(self) -> BatchLoader:
        """The validation targets, with leave-one-out one per user."""
        return self._loader(self.sequences.held_out("validation"))

    def test_dataloader(self) -> BatchLoader:
        """The test targets, with leave-one-out one per user."""
        return self._loader(self.sequences.held_out("test"))

    def predict_dataloader(self) -> BatchLoader:
        """One history per user, of the dataset or of `histories`."""
        split = self.predict if self.histories is None else "next"
        return self._loader(self.predicted.held_out(split), self.predicted)

    @cached_property
    def predicted(self) -> SequenceDataset:
        """The dataset whose histories `predict` reads."""
        if self.histories is None:
            return self.sequences
        source = Source(Path(self.histories), **self._written, options="data.")
        return read_histories(source, self.columns, self.sequences)
