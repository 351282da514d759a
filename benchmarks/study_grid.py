"""What the study trains: models as the commands that a person would type, and budgets by dataset."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

#: epochs of training, the same for all models of a dataset: equal targets, and with equal batches equal updates
BUDGETS = {"beauty": 12, "sports": 10, "scientific": 20, "video": 10, "ml-100k": 40}
#: epochs in which the baseline would take as much CPU time as the recipe does in those above; early stopping may end it before
EQUAL_TIME = {"beauty": 17, "sports": 15, "scientific": 36, "video": 15, "ml-100k": 73}


@dataclass(frozen=True)
class Stage:
    """One `lares fit`.

    Args:
        name: folder of the stage in its run.
        configs: shipped configs, in order.
        options: further options of the command line.
        budget: whether the model's epochs are its budget; otherwise its configs and options say.
    """

    name: str
    configs: tuple[str, ...]
    options: dict[str, str] = field(default_factory=dict)
    budget: bool = True


@dataclass(frozen=True)
class Model:
    """One row of the table.

    Args:
        label: what the table calls it.
        run: name of the run; models that share one share its finished stages.
        stages: what is trained, in order; the last one is evaluated.
        epochs: on each dataset.
    """

    label: str
    run: str
    stages: tuple[Stage, ...]
    epochs: Mapping[str, int] = field(default_factory=lambda: BUDGETS)


def one(label: str, run: str, *configs: str, **options: str) -> Model:
    """A model of one stage; `__` in an option's name stands for a dot."""
    return Model(
        label, run, (Stage("model", configs, {f"--{key.replace('__', '.')}": value for key, value in options.items()}),)
    )


NO_RECURRENCE = {
    "model__backbone__pre_layers": "2",
    "model__backbone__core_layers": "0",
    "model__backbone__depth": "lares_pl.ConstantDepth",
    "model__backbone__depth__depth": "0",
}
RECIPE = Stage("spt", ("spt.yaml",))
MODELS = {
    "sasrec": one("SASRec, 2 layers", "sasrec", "sasrec.yaml"),
    "sasrec-time": Model(
        "SASRec, 2 layers, up to the recipe's CPU time", "sasrec-time", (Stage("model", ("sasrec.yaml",)),), EQUAL_TIME
    ),
    "sasrec4": one("SASRec, 4 layers", "sasrec4", "sasrec.yaml", model__backbone__pre_layers="4"),
    "sasrec-bias": one("SASRec, 2 layers, repeat bias", "sasrec-bias", "sasrec.yaml", model__backbone__repeat_bias="true"),
    "flat": one("recipe without recurrence, 2 layers", "flat", "spt.yaml", **NO_RECURRENCE),
    "recipe": Model("recipe (spt.yaml)", "recipe", (RECIPE,)),
    "recipe-rpt": Model("recipe + RPT (rpt.yaml)", "recipe", (RECIPE, Stage("rpt", ("rpt.yaml",), budget=False))),
    "recipe-continued": Model(
        "recipe + as much supervised training",
        "recipe",
        (
            RECIPE,
            Stage("rpt", ("rpt.yaml",), budget=False),
            Stage("spt-continued", ("spt-continued.yaml",), budget=False),
        ),
    ),
    "paper": one("SPT as released (paper.yaml)", "paper", "spt.yaml", "paper.yaml"),
    "bsarec": one("BSARec, 2 layers", "bsarec", "sasrec.yaml", "bsarec.yaml"),
    "bsarec-recurrent": one("BSARec as the block of the recipe", "bsarec-recurrent", "spt.yaml", "bsarec.yaml"),
    "fmlp": one("FMLP-Rec, 2 layers", "fmlp", "sasrec.yaml", "fmlp.yaml"),
    "fmlp-recurrent": one("FMLP-Rec as the block of the recipe", "fmlp-recurrent", "spt.yaml", "fmlp.yaml"),
}
