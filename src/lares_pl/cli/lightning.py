"""`lares fit | validate | test | predict`: LightningCLI with chained stages.

It adds: configs shipped with the package are found by name; `--run` is the name of a run and its folder; RPT takes dataset,
architecture and weights from the SPT run; evaluation needs only a checkpoint; the same `fit` command starts and resumes a run
(`--ckpt_path auto`); errors are one paragraph.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from jsonargparse import Namespace, dict_to_namespace
from jsonargparse.typing import PositiveInt
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import SIGTERMException

import lares_pl
from lares_pl.atomic_io import write_json
from lares_pl.callbacks.config_saver import ConfigSaver
from lares_pl.callbacks.graceful_shutdown import GracefulShutdown, end_with_parent, terminated_is_not_success
from lares_pl.callbacks.lineage import Lineage
from lares_pl.callbacks.prediction_writer import PredictionWriter
from lares_pl.cli.callbacks import (
    add_callback_options,
    chosen_callbacks,
    place_callbacks,
    progress_bar,
    repeated_callback,
    spec_of,
)
from lares_pl.cli.chaining import join_stages, resolve_checkpoint
from lares_pl.cli.commands import STAGES
from lares_pl.cli.known_warnings import silence_known_warnings
from lares_pl.cli.loggers import place_loggers
from lares_pl.cli.outcome import Outcome, metrics_text
from lares_pl.cli.parser import Parser
from lares_pl.cli.reasoning_options import add_reasoning_options, reasoning_of, set_reasoning
from lares_pl.cli.shipped_configs import TRAINER, shipped_configs, with_shipped_configs
from lares_pl.data.dataset.prepared import check_dataset
from lares_pl.data.module import SequenceDataModule
from lares_pl.errors import LaresError
from lares_pl.parsing import own_defaults, readable
from lares_pl.runs import BEST, StageFolder, stage_folder, trained
from lares_pl.stages.base import BaseStage
from lares_pl.stages.checkpoint import StageCheckpoint, read_checkpoint
from lares_pl.stages.checkpoint_io import AtomicCheckpointIO
from lares_pl.stages.compatibility import check_trainer
from lares_pl.stages.resuming import check_resumed
from lares_pl.stages.rpt import RPT
from lares_pl.stages.spt import SPT

for _name in lares_pl.__all__:
    if _name.endswith("Block"):
        getattr(lares_pl, _name)  # imports it: jsonargparse resolves `class_path: FMLPBlock` among imported classes only


def run(kind: type[LaresCLI] | None = None) -> None:
    """Parse the command line and run the subcommand, with `LaresCLI` or a subclass of it."""
    silence_known_warnings()
    end_with_parent()
    sys.argv[1:] = with_shipped_configs(sys.argv[1:])
    with own_defaults(), terminated_is_not_success():
        (kind or LaresCLI)(
            BaseStage,
            SequenceDataModule,
            subclass_mode_model=True,
            save_config_callback=ConfigSaver,
            parser_class=LaresParser,
            parser_kwargs={"allow_abbrev": False},
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            seed_everything_default=0,
        )


# ---------------------------------------------------------------- the command


class LaresParser(Parser, LightningArgumentParser):
    """The parser of these commands."""

    def report(self, message: str) -> str:
        """Return the message of an error, with the command that lists the options."""
        return f"{super().report(message)} (`lares {sys.argv[1]} --help` lists the options)"


class LaresCLI(LightningCLI):
    """The four commands that use a trainer."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        with ExitStack() as self.held:  # the lock of a run's folder, until the command ends
            super().__init__(*arguments, **options)

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The command that was typed; building the parsers of the others as well would take longer than all other parsing."""
        return {name: skipped for name, skipped in LightningCLI.subcommands().items() if name == sys.argv[1]}

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add trainer, model and data; the model is optional because a checkpoint may define it."""
        parser.add_lightning_class_args(self.trainer_class, "trainer")
        parser.add_lightning_class_args(self._model_class, "model", subclass_mode=True, required=False)
        parser.add_lightning_class_args(self._datamodule_class, "data")

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options outside trainer, model and data."""
        parser.add_argument("--run", default="default", help="Name of the run: a stage is written to runs/RUN/STAGE.")
        add_reasoning_options(parser)

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        files = {"default_config_files": [str(shipped_configs()[TRAINER])]} if subcommand == "fit" else {}
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs, **files)
        assert isinstance(parser, LaresParser)
        parser.explain(**vars(STAGES[subcommand]))
        add_callback_options(parser)
        if subcommand == "fit":
            parser.stages = (SPT, RPT)
            parser.add_argument(
                "--stage",
                type=str | None,
                help="Folder of this stage in the run; default: the model's class in lower case.",
            )
            parser.add_argument("--test_after_fit", type=bool, default=True, help="Test the best checkpoint at the end.")
        if subcommand in ("validate", "test"):
            parser.add_argument("--output", type=str | None, help="JSON file to write the metrics to.")
            parser.set_defaults({"verbose": False})  # Lightning's table; ours includes the depth
        if subcommand == "predict":
            parser.add_argument("--k", type=PositiveInt, default=10, help="Length of each ranked list.")
            parser.add_argument("--output", default="predictions.parquet", help="File to write.")
            parser.add_argument("--overwrite", type=bool, default=False, help="Replace the file if it exists.")
        return parser

    # ------------------------------------------------------------ configuration

    @property
    def chosen(self) -> Namespace:
        """Configuration of the current subcommand."""
        chosen: Namespace = self.config[self.config.subcommand]
        return chosen

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """For evaluation, take model and data from the checkpoint; configs and command line override them."""
        command, arguments = sys.argv[1], sys.argv[2:]
        if command == "fit" or {"-h", "--help"} & set(arguments):
            super().parse_arguments(parser, args)
            return
        first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        first.add_argument("--ckpt_path")
        path = first.parse_known_args(arguments)[0].ckpt_path
        if path is None:
            known = f" (there are {', '.join(map(str, found))})" if (found := trained()[:5]) else ""
            raise LaresError(f"lares {command} needs a checkpoint: --ckpt_path runs/RUN/STAGE/{BEST}{known}")
        checkpoint = read_checkpoint(path)
        self._parser(command).set_defaults(
            {
                "model": {"class_path": checkpoint.class_path, "init_args": checkpoint.settings},
                **{f"data.{key}": value for key, value in checkpoint.data.items()},
            }
        )
        super().parse_arguments(parser, args)
        if self.chosen.model.init_args.get("backbone") is None:  # a config of RPT names none
            self.chosen.model.init_args["backbone"] = dict_to_namespace(checkpoint.settings["backbone"])

    def _parse_ckpt_path(self) -> None:
        """Do nothing: Lightning's method lets the checkpoint's settings override the command line."""

    def before_instantiate_classes(self) -> None:
        """Fill in what follows from the run, the stage and earlier checkpoints."""
        config = self.chosen
        if config.get("model") is None:
            raise LaresError("no model: give a config, such as `lares fit --config spt.yaml`")
        self.folder: StageFolder | None = None
        self.resumed: StageCheckpoint | None = None
        self.finished: dict[str, Any] | None = None
        asked = config.get("ckpt_path")
        if self.subcommand == "fit":
            name = config.stage or config.model.class_path.rsplit(".", 1)[-1].lower()
            self.folder = stage_folder(config.run, name)
            self.finished = resolve_checkpoint(config, self.folder)
            self.resumed = join_stages(config, self.folder)
            if config.data.seed is None:
                config.data.seed = config.seed_everything
        else:
            config.trainer.logger = config.trainer.logger or False
            if not chosen_callbacks(config):  # keeps Lightning from adding a checkpoint callback
                config.trainer.enable_checkpointing = False
        if config.trainer.barebones:
            raise LaresError(
                "trainer.barebones: this command always logs and saves; use the flag in Python, with your own Trainer"
            )
        check_dataset(config.data.dataset)
        # recorded before this run's own paths are added, so that the recorded config can be used for another run
        self.save_config_kwargs = {"folder": None if self.folder is None else self.folder.path, "resolved": config.clone()}
        if self.folder is not None:
            record = self.save_config_kwargs["resolved"]
            record.ckpt_path = "auto" if asked == "auto" else None
            if self.resumed is not None:
                record.model.init_args["init_from"] = self.resumed.initial_checkpoint
            place_loggers(config, self.folder, resumed=self.resumed is not None)
        config.trainer.callbacks = self._callbacks()
        plugins = config.trainer.plugins or []
        plugins = list(plugins) if isinstance(plugins, list) else [plugins]
        config.trainer.plugins = [*plugins, Namespace(class_path=f"{AtomicCheckpointIO.__module__}.AtomicCheckpointIO")]

    def _callbacks(self) -> list[Namespace]:
        """Return the callbacks of the configuration with their paths, and those that every run has."""
        config = self.chosen
        callbacks = chosen_callbacks(config)
        if self.folder is not None:
            place_callbacks(callbacks, self.folder.path)
        callbacks += [spec_of(GracefulShutdown), spec_of(Lineage)]
        callbacks += progress_bar(config, callbacks)
        if self.subcommand == "predict":
            callbacks.append(spec_of(PredictionWriter, path=config.output, overwrite=config.overwrite))
            config.return_predictions = False
        return callbacks

    def instantiate_classes(self) -> None:
        """Build trainer, stage and data module; report invalid arguments as errors of the configuration."""
        try:
            super().instantiate_classes()
        except (TypeError, ValueError) as error:
            raise LaresError(readable(str(error))) from error
        except RuntimeError as error:
            raise repeated_callback(error) from error

    def after_instantiate_classes(self) -> None:
        """Set the options of evaluation on the model."""
        config = self.chosen
        if self.resumed is not None:
            self.model.initial_checkpoint = self.resumed.initial_checkpoint
        set_reasoning(self.model, config, self._get(self.config_init, "stop"))
        if self.subcommand == "predict":
            self.model.predict_k = config.k

    # ------------------------------------------------------------ around the trainer

    def before_fit(self) -> None:
        """Check that the network can be built, then lock the run's folder in the first process.

        A new run never overwrites an old one, which is moved aside.
        """
        check_trainer(self.trainer, self.model)
        if self.resumed is not None:
            check_resumed(self.resumed.settings, self.model.hparams)
        self.datamodule.setup("fit")
        self.model.take_catalogue(self.datamodule, self.chosen.get("ckpt_path"))
        self.model.configure_model()
        self.model.check_instances(self.datamodule)
        if self.trainer.is_global_zero and not self.chosen.trainer.fast_dev_run:
            self._claim()

    def _claim(self) -> None:
        assert self.folder is not None
        self.held.enter_context(self.folder.hold())
        source = self.chosen.get("ckpt_path")
        continues = source is not None and self.folder.contains(source)
        if not continues and (former := self.folder.move_aside()) is not None:
            rank_zero_info(f"{self.folder.path} already contained a run, which was moved to {former}")
        if self.finished is None:
            self.folder.reopen()

    def fit(self, **arguments: Any) -> None:
        """Train, unless an earlier process finished training and only the test is left to do."""
        if self.finished is not None:
            return
        self.trainer.fit(**arguments)

    def after_fit(self) -> None:
        """Record the end of training; test the best checkpoint; after RPT print what changed since SPT."""
        if self.trainer.interrupted:
            return
        assert self.folder is not None
        outcome = Outcome(self.trainer, self.model, self.datamodule, self.folder, self.finished)
        outcome.save_final_weights()
        best = outcome.record(tested=False)
        if self.trainer.received_sigterm:  # with the last update
            raise SIGTERMException
        if self.chosen.test_after_fit:
            outcome.test(best)
            outcome.record(tested=bool(best))

    def after_validate(self) -> None:
        """Print the metrics, and write them to `--output` if given."""
        if not self.trainer.is_global_zero:
            return
        metrics = {name: float(value) for name, value in self.trainer.callback_metrics.items()}
        report = {"checkpoint": self.chosen.ckpt_path, **reasoning_of(self.model), "metrics": metrics}
        print(metrics_text(report))
        if self.chosen.output is not None:
            write_json(Path(self.chosen.output), report)

    after_test = after_validate
