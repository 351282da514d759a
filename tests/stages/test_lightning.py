"""Lightning's flags, callbacks and tuners with our stages: each works, or is refused with a sentence (docs/lightning.md)."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml
from lightning.pytorch import callbacks
from lightning.pytorch.callbacks import BaseFinetuning, Callback, EarlyStopping, ModelCheckpoint
from lightning.pytorch.cli import ReduceLROnPlateau
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.tuner.tuning import Tuner
from torch.optim import Optimizer

from lares_pl import RPT, SPT, LaresError, Pruning, SampledSoftmax, WarmupCosine, load_stage
from lares_pl.stages.base import BaseStage
from lares_pl.stages.checkpoint import read_checkpoint
from tests.conftest import ROOT
from tests.training import data, released_rpt, released_spt, trainer

NDCG = "val/ndcg@10"
PAGE = (ROOT / "docs" / "lightning.md").read_text()


@pytest.fixture(scope="module")
def source(toy_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SPT checkpoint."""
    folder = tmp_path_factory.mktemp("source")
    fit = trainer(folder, max_steps=2)
    fit.fit(released_spt(), data(toy_dataset))
    fit.save_checkpoint(folder / "spt.ckpt")
    return folder / "spt.ckpt"


def stage(kind: str, source: Path, **options: Any) -> BaseStage:
    if kind == "rpt":
        return released_rpt(source, **{"pruning": Pruning(passes=1, top=40), **options})
    return released_spt(**options)


# ---------------------------------------------------------------- flags

FLAGS: dict[str, Any] = {
    "accelerator": "cpu",
    "strategy": "auto",
    "devices": 1,
    "num_nodes": 1,
    "precision": "bf16-mixed",
    "logger": True,
    "callbacks": None,
    "fast_dev_run": True,
    "max_epochs": 1,
    "min_epochs": 1,
    "max_steps": 2,
    "min_steps": 1,
    "max_time": timedelta(minutes=5),
    "limit_train_batches": 2,
    "limit_val_batches": 1,
    "limit_test_batches": 1,
    "limit_predict_batches": 1,
    "overfit_batches": 2,
    "val_check_interval": 2,
    "check_val_every_n_epoch": 1,
    "num_sanity_val_steps": 1,
    "log_every_n_steps": 2,
    "enable_checkpointing": True,
    "enable_progress_bar": True,
    "enable_model_summary": True,
    "accumulate_grad_batches": 2,
    "gradient_clip_val": 1.0,
    "gradient_clip_algorithm": "value",
    "deterministic": True,
    "benchmark": False,
    "inference_mode": False,
    "use_distributed_sampler": False,
    "profiler": "simple",
    "detect_anomaly": True,
    "barebones": True,
    "plugins": None,
    "sync_batchnorm": True,
    "reload_dataloaders_every_n_epochs": 1,
    "default_root_dir": ".",
    "enable_autolog_hparams": False,
    "model_registry": None,
}


def test_the_table_has_every_flag_and_every_callback() -> None:
    flags = set(inspect.signature(L.Trainer.__init__).parameters) - {"self"}
    assert set(FLAGS) == flags
    listed = {line.split("|")[1].strip().strip("`") for line in PAGE.splitlines() if line.startswith("| `")}
    assert flags <= listed
    assert set(callbacks.__all__) <= listed


@pytest.mark.parametrize("flag", [flag for flag in FLAGS if FLAGS[flag] is not None and flag != "overfit_batches"])
def test_a_flag_works(flag: str, toy_dataset: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options: dict[str, Any] = {"max_epochs": 2, "limit_train_batches": 3, flag: FLAGS[flag]}
    if flag == "barebones":
        run = L.Trainer(barebones=True, max_epochs=1, limit_train_batches=2, accelerator="cpu", devices=1)
    else:
        run = trainer(tmp_path, **options)
    model = stage("spt", source)
    run.fit(model, data(toy_dataset))
    assert run.global_step > 0
    run.test(model, data(toy_dataset), verbose=False)


def test_overfitting_some_batches_is_refused(toy_dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(LaresError, match=r"overfit_batches: .* prepare a dataset of a few users"):
        trainer(tmp_path, overfit_batches=2).fit(released_spt(), data(toy_dataset))


# ---------------------------------------------------------------- callbacks


class Printed(callbacks.ProgressBar):
    def disable(self) -> None: ...

    def enable(self) -> None: ...


class Kept(callbacks.BasePredictionWriter):
    def write_on_batch_end(self, *_: Any) -> None: ...


class Frozen(BaseFinetuning):
    """Trains the item vectors from the second epoch on."""

    def freeze_before_training(self, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, BaseStage)
        self.freeze(pl_module.learner.embedding)

    def finetune_function(self, pl_module: L.LightningModule, epoch: int, optimizer: Optimizer) -> None:
        assert isinstance(pl_module, BaseStage)
        if epoch == 1:
            self.unfreeze_and_add_param_group(pl_module.learner.embedding, optimizer)


WORKING: dict[str, Callable[[Path], Callback]] = {
    "BasePredictionWriter": lambda _: Kept("batch"),
    "BatchSizeFinder": lambda _: callbacks.BatchSizeFinder(max_trials=2),
    "Callback": lambda _: Callback(),
    "Checkpoint": lambda _: callbacks.Checkpoint(),
    "DeviceStatsMonitor": lambda _: callbacks.DeviceStatsMonitor(),
    "EarlyStopping": lambda _: EarlyStopping(NDCG, mode="max"),
    "GradientAccumulationScheduler": lambda _: callbacks.GradientAccumulationScheduler({0: 1, 1: 2}),
    "LambdaCallback": lambda _: callbacks.LambdaCallback(),
    "LearningRateFinder": lambda _: callbacks.LearningRateFinder(num_training_steps=8, early_stop_threshold=None),
    "LearningRateMonitor": lambda _: callbacks.LearningRateMonitor(),
    "ModelCheckpoint": lambda folder: ModelCheckpoint(folder, monitor=NDCG, mode="max"),
    "ModelSummary": lambda _: callbacks.ModelSummary(),
    "OnExceptionCheckpoint": lambda folder: callbacks.OnExceptionCheckpoint(folder),
    "ProgressBar": lambda _: Printed(),
    "SpikeDetection": lambda _: callbacks.SpikeDetection(),
    "TQDMProgressBar": lambda _: callbacks.TQDMProgressBar(),
    "ThroughputMonitor": lambda _: callbacks.ThroughputMonitor(len),
    "Timer": lambda _: callbacks.Timer(timedelta(minutes=5)),
}
ONLY_SPT = {"BatchSizeFinder", "LearningRateFinder"}  # RPT with pruning refuses them


@pytest.mark.parametrize("name", WORKING)
def test_a_stock_callback_works(name: str, toy_dataset: Path, source: Path, tmp_path: Path) -> None:
    logs = {"logger": True} if name in ("LearningRateMonitor", "DeviceStatsMonitor", "ThroughputMonitor") else {}
    for kind in ("spt",) if name in ONLY_SPT else ("spt", "rpt"):
        L.seed_everything(1)  # first weights by chance can make a spike of the second loss
        own = WORKING[name](tmp_path)
        bar = {"enable_progress_bar": True} if isinstance(own, callbacks.ProgressBar) else {}
        run = trainer(
            tmp_path, callbacks=[own], max_epochs=1, limit_train_batches=2, enable_model_summary=name == "ModelSummary",
            enable_checkpointing=isinstance(own, callbacks.Checkpoint), **logs, **bar,
        )  # fmt: skip
        run.fit(stage(kind, source), data(toy_dataset))
        assert run.global_step == 2


@pytest.mark.parametrize("name", ["RichModelSummary", "RichProgressBar"])
def test_a_callback_that_needs_rich_works_where_it_is_installed(
    name: str, toy_dataset: Path, source: Path, tmp_path: Path
) -> None:
    pytest.importorskip("rich")
    run = trainer(
        tmp_path, callbacks=[getattr(callbacks, name)()], max_epochs=1, limit_train_batches=2,
        enable_model_summary=True, enable_progress_bar=True,
    )  # fmt: skip
    run.fit(stage("spt", source), data(toy_dataset))
    assert run.global_step == 2


REFUSED: dict[str, tuple[Callable[[], Callback], str]] = {
    "EMAWeightAveraging": (callbacks.EMAWeightAveraging, "set model.ema"),
    "WeightAveraging": (callbacks.WeightAveraging, "set model.ema"),
    "StochasticWeightAveraging": (partial(callbacks.StochasticWeightAveraging, 1e-3), "set model.ema"),
    "BackboneFinetuning": (callbacks.BackboneFinetuning, "BaseFinetuning"),
    "ModelPruning": (partial(callbacks.ModelPruning, "l1_unstructured", amount=0.5), "Leave it out"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_callback_that_would_change_what_is_saved_is_refused(
    name: str, toy_dataset: Path, source: Path, tmp_path: Path
) -> None:
    make, said = REFUSED[name]
    run = trainer(tmp_path, callbacks=[make()], enable_checkpointing=True)
    with pytest.raises(LaresError, match=f"^{name} .*{said}"):
        run.fit(stage("spt", source), data(toy_dataset))
    assert not list(tmp_path.rglob("*.ckpt"))


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_parts_are_frozen_and_trained_later_and_again_when_resumed(
    ema: float, toy_dataset: Path, source: Path, tmp_path: Path
) -> None:
    def run(folder: Path, resumed: Path | None = None) -> BaseStage:
        L.seed_everything(3)
        model = stage("spt", source, ema=ema)
        each = ModelCheckpoint(folder, "{epoch}", save_top_k=-1, enable_version_counter=False)
        fit = trainer(folder, callbacks=[Frozen(), each], enable_checkpointing=True, max_epochs=2)
        fit.fit(model, data(toy_dataset), ckpt_path=resumed)
        return model

    whole = run(tmp_path / "whole")
    first = read_checkpoint(tmp_path / "whole" / "epoch=0.ckpt").weights
    name = "trained.embedding" if ema else "backbone.embedding"
    (table,) = [key for key in first if key.startswith(name) and first[key].shape == whole.learner.item_vectors.shape]
    untrained = stage("spt", source, ema=ema)
    L.seed_everything(3)
    untrained = stage("spt", source, ema=ema)
    trainer(tmp_path).validate(untrained, data(toy_dataset), verbose=False)
    assert torch.equal(first[table], untrained.backbone.state_dict()[table.partition(".")[2]])
    assert not torch.equal(first[table], whole.state_dict()[table])
    again = run(tmp_path / "again", tmp_path / "whole" / "epoch=0.ckpt")
    for key, value in whole.state_dict().items():
        assert key.startswith("metrics.") or torch.equal(value, again.state_dict()[key]), key


def test_a_checkpoint_without_weights_is_never_written(toy_dataset: Path, tmp_path: Path) -> None:
    class Emptied(Callback):
        def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
            checkpoint["state_dict"] = {}

    run = trainer(tmp_path, callbacks=[Emptied()], max_steps=1)
    run.fit(released_spt(), data(toy_dataset))
    with pytest.raises(LaresError, match="the weights to save are not those of its architecture"):
        run.save_checkpoint(tmp_path / "x.ckpt")
    assert not (tmp_path / "x.ckpt").exists()


@pytest.mark.parametrize(
    ("callback", "said"),
    [
        (EarlyStopping("val/ndgc@10"), "EarlyStopping: its monitor 'val/ndgc@10' is never logged. Validation logs val/ndcg@10"),
        (ModelCheckpoint(monitor="val_loss"), "ModelCheckpoint: its monitor 'val_loss' is never logged"),
    ],
)
def test_a_monitor_that_is_never_logged_is_refused_at_the_start(
    callback: Callback, said: str, toy_dataset: Path, tmp_path: Path
) -> None:
    with pytest.raises(LaresError, match=said):
        trainer(tmp_path, callbacks=[callback], enable_checkpointing=True).fit(released_spt(), data(toy_dataset))


@pytest.mark.parametrize(
    ("callback", "flags", "said"),
    [
        (EarlyStopping(NDCG), {}, "better when it is higher; set mode='max'"),
        (ModelCheckpoint(monitor="val/unseen/mrr"), {}, "better when it is higher; set mode='max'"),
        (EarlyStopping(NDCG, mode="max"), {"limit_val_batches": 0}, "set check_on_train_epoch_end=False"),
        (
            EarlyStopping(NDCG, mode="max", check_on_train_epoch_end=True),
            {"check_val_every_n_epoch": 2},
            "check_val_every_n_epoch 2.*check_on_train_epoch_end=False",
        ),
    ],
)
def test_a_callback_that_keeps_the_worst_or_waits_in_vain_is_refused(
    callback: Callback, flags: dict[str, Any], said: str, toy_dataset: Path, tmp_path: Path
) -> None:
    with pytest.raises(LaresError, match=said):
        trainer(tmp_path, callbacks=[callback], enable_checkpointing=True, **flags).fit(released_spt(), data(toy_dataset))


def test_what_a_callback_of_ones_own_logs_can_be_monitored(toy_dataset: Path, tmp_path: Path) -> None:
    class Logged(Callback):
        def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            pl_module.log("val/mine", 1.0)

    run = trainer(tmp_path, callbacks=[Logged(), EarlyStopping("val/mine")], max_epochs=1)
    run.fit(released_spt(), data(toy_dataset))
    assert run.current_epoch == 1


# ---------------------------------------------------------------- several calls of one trainer


@pytest.mark.parametrize("kind", ["spt", "rpt"])
@pytest.mark.parametrize("calls", ["validate fit", "fit validate fit", "fit test fit", "validate predict fit test"])
def test_one_trainer_does_one_thing_after_another(
    kind: str, calls: str, toy_dataset: Path, source: Path, tmp_path: Path
) -> None:
    model, module = stage(kind, source), data(toy_dataset)
    run = trainer(tmp_path, max_epochs=1, limit_train_batches=2)
    for call in calls.split():
        run.fit_loop.max_epochs = run.current_epoch + 1
        getattr(run, call)(model, datamodule=module)
    assert run.global_step == 2 * calls.split().count("fit")


@pytest.mark.parametrize("call", ["fit", "validate", "test", "predict"])
def test_a_missing_data_module_is_named_with_the_call_that_lacks_it(call: str, tmp_path: Path) -> None:
    with pytest.raises(LaresError, match=rf"the data module is missing: trainer.{call}\(stage, datamodule=Sequence"):
        getattr(trainer(tmp_path), call)(released_spt())


def test_a_compiled_backbone_is_refused(source: Path, toy_dataset: Path, tmp_path: Path) -> None:
    model = load_stage(source)
    model.backbone = torch.compile(model.backbone)  # type: ignore[assignment]
    with pytest.raises(LaresError, match="cuda_graphs"):
        trainer(tmp_path).fit(model, data(toy_dataset))


def test_a_frozen_stage_is_refused(source: Path, toy_dataset: Path, tmp_path: Path) -> None:
    model = load_stage(source)
    model.freeze()
    with pytest.raises(LaresError, match=r"stage\.unfreeze\(\)"):
        trainer(tmp_path).fit(model, data(toy_dataset))


def test_a_checkpoint_of_another_stage_is_named(source: Path) -> None:
    class Own(SPT):
        pass

    with pytest.raises(LaresError, match=r"spt\.ckpt is of SPT, not of RPT: load it with lares_pl\.load_stage"):
        RPT.load_from_checkpoint(source)
    assert type(Own.load_from_checkpoint(source)) is Own


def test_a_copy_of_a_trained_stage_is_one(source: Path, toy_dataset: Path, tmp_path: Path) -> None:
    model = released_spt(ema=0.9)
    trainer(tmp_path, max_steps=1).fit(model, data(toy_dataset))
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        tested = [trainer(tmp_path).test(each, data(toy_dataset), verbose=False)[0] for each in (model, copied)]
        assert tested[0] == tested[1]
        trainer(tmp_path, max_steps=1).fit(copied, data(toy_dataset))


def test_an_optimizer_in_place_of_its_class_is_refused() -> None:
    made = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))])
    with pytest.raises(LaresError, match=r"^Adam \(.*give the class, or functools\.partial\(Class, key=value\)$"):
        released_spt(optimizer=made)


# ---------------------------------------------------------------- tuners


@pytest.mark.parametrize("kind", ["spt", "sampled", "rpt"])
def test_the_tuner_finds_a_batch_size_and_changes_nothing_else(
    kind: str, toy_dataset: Path, source: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"pruning": None} if kind == "rpt" else {"loss": SampledSoftmax(4)} if kind == "sampled" else {}

    def run(tried: bool) -> BaseStage:
        L.seed_everything(5)
        model, module = stage(kind, source, **options), data(toy_dataset)
        fit = trainer(tmp_path, max_epochs=1, limit_train_batches=2)
        if tried:
            assert Tuner(fit).scale_batch_size(model, datamodule=module, max_trials=2, init_val=8) == 8 * 2
            assert module.batch_size == 16
            L.seed_everything(5)
        module.batch_size = 64
        trainer(tmp_path, max_epochs=1, limit_train_batches=2).fit(model, module)
        return model

    first, second = (run(tried).state_dict() for tried in (False, True))
    assert all(torch.equal(first[name], second[name]) for name in first if not name.startswith("metrics."))


@pytest.mark.parametrize("schedule", [None, partial(WarmupCosine, warmup=2)])
def test_the_tuner_finds_a_learning_rate_that_the_stage_then_uses_and_records(
    schedule: Any, toy_dataset: Path, source: Path, tmp_path: Path
) -> None:
    model, module = stage("spt", source, scheduler=schedule, optimizer=torch.optim.Adam), data(toy_dataset, batch_size=16)
    assert model.lr == 1e-3
    found = Tuner(trainer(tmp_path, max_epochs=5)).lr_find(
        model, datamodule=module, num_training=20, min_lr=1e-4, max_lr=1e-1, early_stop_threshold=None
    )
    assert found is not None
    rate = found.suggestion()
    assert model.lr == rate != 1e-3
    assert model.hparams["optimizer"]["init_args"] == {"lr": rate}
    run = trainer(tmp_path, max_steps=2)
    run.fit(model, module)
    assert run.optimizers[0].param_groups[0]["initial_lr" if schedule else "lr"] == rate


def test_a_finder_that_could_not_do_its_work_is_refused(toy_dataset: Path, source: Path, tmp_path: Path) -> None:
    for finder in (callbacks.BatchSizeFinder(), callbacks.LearningRateFinder()):
        with pytest.raises(LaresError, match="before this stage has pruned its instances"):
            trainer(tmp_path, callbacks=[finder]).fit(stage("rpt", source), data(toy_dataset))
    scheduled = stage("spt", source, scheduler=WarmupCosine)
    with pytest.raises(LaresError, match=r"Tuner\(trainer\)\.lr_find"):
        trainer(tmp_path, callbacks=[callbacks.LearningRateFinder()]).fit(scheduled, data(toy_dataset))


def test_a_schedule_ends_with_training_where_batches_are_accumulated_later(toy_dataset: Path, tmp_path: Path) -> None:
    accumulation = callbacks.GradientAccumulationScheduler({0: 1, 2: 2})
    logger = CSVLogger(tmp_path)
    run = trainer(tmp_path, callbacks=[accumulation], max_epochs=4, limit_train_batches=4, logger=logger, limit_val_batches=0)
    run.fit(released_spt(scheduler=partial(WarmupCosine, warmup=2, floor=0.5)), data(toy_dataset))
    schedule = run.lr_scheduler_configs[0].scheduler
    assert isinstance(schedule, WarmupCosine)
    assert (run.global_step, schedule.total) == (4 + 4 + 2 + 2, 12)
    recorded = yaml.safe_load((Path(logger.log_dir) / "hparams.yaml").read_text())  # the settings, for loggers of any kind
    assert recorded["scheduler"]["init_args"] == {"warmup": 2, "floor": 0.5}
    assert recorded["dataset"] == str(toy_dataset)


# ---------------------------------------------------------------- schedules that wait


@pytest.mark.parametrize(
    ("schedule", "monitor"),
    [
        (partial(torch.optim.lr_scheduler.ReduceLROnPlateau, mode="max", patience=0, factor=0.5, threshold=10.0), NDCG),
        (partial(ReduceLROnPlateau, monitor="val/mrr", mode="max", patience=0, factor=0.5, threshold=10.0), "val/mrr"),
        (partial(ReduceLROnPlateau, monitor="train/loss", patience=0, factor=0.5, threshold=0.99), "train/loss"),
    ],
)
def test_a_schedule_waits_for_its_metric_and_is_resumed_exactly(
    schedule: Any, monitor: str, toy_dataset: Path, tmp_path: Path
) -> None:
    def run(folder: Path, resumed: Path | None = None) -> tuple[BaseStage, L.Trainer]:
        L.seed_everything(3)
        model = released_spt(scheduler=schedule)
        each = ModelCheckpoint(folder, "{epoch}", save_top_k=-1, enable_version_counter=False)
        fit = trainer(folder, callbacks=[each], enable_checkpointing=True, max_epochs=3, limit_train_batches=2)
        fit.fit(model, data(toy_dataset), ckpt_path=resumed)
        return model, fit

    model, whole = run(tmp_path)
    assert whole.lr_scheduler_configs[0].monitor == monitor
    assert whole.optimizers[0].param_groups[0]["lr"] == 5e-3 / 4  # the first validation is the best so far
    again, resumed = run(tmp_path / "again", tmp_path / "epoch=0.ckpt")
    assert resumed.optimizers[0].param_groups[0]["lr"] == 5e-3 / 4
    assert torch.equal(model.backbone.item_vectors, again.backbone.item_vectors)


def test_a_schedule_that_would_wait_for_worse_rankings_or_for_nothing_is_refused(toy_dataset: Path, tmp_path: Path) -> None:
    for monitor, said in ((NDCG, "set mode: max"), ("loss", "model.scheduler: its monitor 'loss' is never logged")):
        model = released_spt(scheduler=partial(ReduceLROnPlateau, monitor=monitor))
        with pytest.raises(LaresError, match=said):
            trainer(tmp_path).fit(model, data(toy_dataset))
