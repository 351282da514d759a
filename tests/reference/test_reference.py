"""Import and export of checkpoints of the authors' release: settings, names, files and errors."""

from __future__ import annotations

import json
import os
import pickle
import sys
import types
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lares_pl import (
    BackboneConfig,
    BSARecBlock,
    FMLPBlock,
    Histories,
    ItemEmbedder,
    LaresError,
    LinearInjection,
    LRUBlock,
    PoissonLogNormal,
    RecurrentBackbone,
    SequenceDataset,
    TransformerBlock,
    load_stage,
    prepare,
)
from lares_pl.reference.exchange import export_reference, import_reference
from lares_pl.reference.files import read_reference
from lares_pl.reference.names import family_of, from_reference, to_reference
from lares_pl.reference.settings import backbone_config, complete_settings, reference_settings
from lares_pl.stages.checkpoint import read_checkpoint
from tests.conftest import golden_files
from tests.console import error, lares
from tests.released import released_backbone

SETTINGS: dict[str, Any] = {
    "attn_dropout_prob": 0.1,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.5,
    "hidden_size": 8,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-12,
    "mean_recurrence": 3,
    "n_core_layers": 1,
    "n_heads": 2,
    "n_pre_layers": 1,
    "sampling_scheme": "uniform",
    "sem_func": "dot",
    "state_init_method": "normal_zero",
    "state_scale": 3.0,
    "state_std": 1.0,
    "inner_size": 16,
    "adapter_type": "linear",
    "tau": 1.0,
}


def built(**changes: Any) -> BackboneConfig:
    return backbone_config({**SETTINGS, **changes}, "transformer")


@pytest.mark.parametrize("adapter", ["add", "concat", "linear"])
@pytest.mark.parametrize("initial", ["normal", "zero", "normal_zero"])
@pytest.mark.parametrize("scheme", ["poisson-lognormal", "poisson", "poisson_bounded", "uniform", "constant", "none"])
def test_every_setting_of_the_method_has_a_counterpart(adapter: str, initial: str, scheme: str) -> None:
    config = built(adapter_type=adapter, state_init_method=initial, sampling_scheme=scheme)
    state = RecurrentBackbone(5, 4, config).state_dict()
    assert config.depth.evaluation_depth == (1 if scheme == "none" else 3)
    # and back: the same settings, the same weights
    settings, family = reference_settings(config)
    again = backbone_config(settings, family)
    assert (again.injection, again.initial_state) == (config.injection, config.initial_state)
    assert again.depth.evaluation_depth == config.depth.evaluation_depth
    theirs = to_reference(state, family)
    assert complete_settings(settings, theirs, family)[0]["adapter_type"] == adapter
    ours, unknown = from_reference(theirs, family)
    assert not unknown
    assert all(torch.equal(value, state[name]) for name, value in ours.items())
    assert ours.keys() == state.keys()


def test_unknown_settings_are_named() -> None:
    with pytest.raises(LaresError, match="adapter_type='gated'"):
        built(adapter_type="gated")
    with pytest.raises(LaresError, match="hidden_act='relu'"):
        built(hidden_act="relu")
    assert from_reference({"mystery.weight": torch.zeros(2, 2)}, "transformer") == ({}, ["mystery.weight"])
    with pytest.raises(LaresError, match="no parameters of a LARES model"):
        family_of({"conv.weight": torch.zeros(1)})
    with pytest.raises(LaresError, match=r"n_pre_layers=5 contradicts the weights, which have 1"):
        complete_settings(
            {"n_pre_layers": 5}, to_reference(RecurrentBackbone(5, 4, built()).state_dict(), "transformer"), "transformer"
        )


def test_architectures_that_the_release_cannot_express_are_refused() -> None:
    for config in (
        released_backbone(pre_block=LRUBlock, core_block=LRUBlock),
        released_backbone(pre_block=TransformerBlock, core_block=FMLPBlock),
        released_backbone(pre_block=TransformerBlock, core_block=partial(TransformerBlock, heads=4)),
    ):
        with pytest.raises(LaresError, match="the release has no model with pre-block"):
            reference_settings(config)
    fmlp = partial(FMLPBlock, inner_size=20)
    for config, lost in (
        (released_backbone(embedder=ItemEmbedder(positions=False)), r"embedder\.positions=False"),
        (released_backbone(pre_block=fmlp, core_block=fmlp), r"pre_block\.inner_size=20"),
        (released_backbone(repeat_bias=True), r"repeat_bias=True"),
        (released_backbone(layer_norm_eps=1e-6), r"pre_block\.layer_norm_eps=1e-12"),
        (released_backbone(depth=PoissonLogNormal(sigma=0.9)), r"depth\.sigma=0\.9"),
    ):
        with pytest.raises(LaresError, match=f"the release can't express .*{lost}"):
            reference_settings(config)
    settings, family = reference_settings(released_backbone(pre_block=BSARecBlock, core_block=BSARecBlock))
    assert (family, settings["a"], settings["c"], settings["n_heads"]) == ("bsarec", 0.7, 3, 2)


# ---------------------------------------------------------------- files


def recorded(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    values = np.load(path)
    state = {key[6:]: torch.from_numpy(values[key]) for key in values.files if key.startswith("param/")}
    return state, json.loads(str(values["config_json"]))


def recbole_file(path: Path, state: dict[str, Tensor], settings: dict[str, Any]) -> None:
    """A checkpoint as RecBole writes it, with a pickled Config object and enum of a package that is missing later."""
    package = types.ModuleType("recbole_config_of_a_test")
    code = (
        "class Config:\n    pass\nimport enum\nclass InputType(enum.Enum):\n    PAIRWISE = 2\nclass Listed(list):\n    pass\n"
    )
    exec(code, package.__dict__)
    sys.modules[package.__name__] = package
    for kind in (package.Config, package.InputType, package.Listed):
        kind.__module__ = package.__name__
    config = package.Config()
    config.final_config_dict = {**settings, "MODEL_INPUT_TYPE": package.InputType.PAIRWISE, "device": torch.device("cpu")}
    config.parameters = package.Listed(["a", "b"])
    content = {"config": config, "epoch": 3, "cur_step": 0, "best_valid_score": np.float64(0.1), "state_dict": state}
    torch.save(content, path)
    del sys.modules[package.__name__]


@pytest.mark.parametrize("path", golden_files(), ids=lambda path: path.stem)
@pytest.mark.parametrize("form", ["recbole", "bare"])
def test_import_and_export_give_the_same_file(
    path: Path, form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state, settings = recorded(path)
    source = tmp_path / "file.pth"
    settings = {key: value for key, value in settings.items() if key not in ("n_exps", "inner_size")}  # of all families at once
    if form == "recbole":
        recbole_file(source, {**state, "loss_fct.mystery": torch.zeros(2)}, settings)
    else:
        torch.save(state, source)
        (tmp_path / "settings.json").write_text(json.dumps(settings))
    given = None if form == "recbole" else str(tmp_path / "settings.json")
    import_reference(str(source), str(tmp_path / "ours.ckpt"), settings=given)
    said = capsys.readouterr().out
    assert ("not mapped       loss_fct.mystery" if form == "recbole" else "nothing: every parameter") in said
    assert "not in the file  nothing" in said

    stage = load_stage(tmp_path / "ours.ckpt")
    assert stage.hparams["alignment"]["tau"] == settings["tau"]
    values = np.load(path)
    states = torch.from_numpy(values["in/initial_states"])[0]
    histories = Histories.from_padded(torch.from_numpy(values["in/history"]).long())
    real = torch.arange(states.shape[1]) < histories.lengths[:, None]
    start = states if stage.backbone.padded else states[real]
    (trajectory,) = stage.backbone.rollout(histories, [int(values["forward/num_steps"])], initial_states=[start])
    torch.testing.assert_close(trajectory[-1], torch.from_numpy(values["forward/user_state"]), rtol=1e-4, atol=1e-5)

    export_reference(str(tmp_path / "ours.ckpt"), str(tmp_path / "back.pth"))
    again, config = read_reference(tmp_path / "back.pth")
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], state[name]) for name in state)
    for key in ("hidden_size", "n_heads", "tau", "sem_func", "tau", "mean_recurrence", "adapter_type", "alpha", "gamma"):
        if key in config:
            assert config[key] == settings[key], key
    assert (config["alpha"], config["gamma"]) == (0.1, 0.5)


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_file_is_not_executed(zipped: bool, tmp_path: Path) -> None:
    state, settings = recorded(golden_files()[0])
    content = {"config": settings, "state_dict": state, "other_parameter": Evil(tmp_path / "pwned")}
    torch.save(content, tmp_path / "evil.pth", _use_new_zipfile_serialization=zipped)
    found, said = read_reference(tmp_path / "evil.pth")
    assert not (tmp_path / "pwned").exists()
    assert found.keys() == state.keys()
    assert said["hidden_size"] == settings["hidden_size"]
    with (tmp_path / "plain.pkl").open("wb") as file:
        pickle.dump(Evil(tmp_path / "pwned"), file)
    with pytest.raises(LaresError, match=r"plain\.pkl"):
        read_reference(tmp_path / "plain.pkl")
    assert not (tmp_path / "pwned").exists()


def test_settings_missing_from_a_state_dict_are_the_papers_and_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state, _ = recorded(next(path for path in golden_files() if path.stem == "bsarec_add"))
    torch.save(state, tmp_path / "bare.pth")
    import_reference(str(tmp_path / "bare.pth"), str(tmp_path / "ours.ckpt"))
    said = capsys.readouterr().out
    for assumption in ("n_heads=2", "mean_recurrence=4", "a=0.7", "sem_func=dot"):
        assert assumption in said
    assert "hidden_size=" not in said  # the weights tell
    del state["core_encoder.blocks.0.layer.filter_layer.sqrt_beta"]
    torch.save(state, tmp_path / "bare.pth")
    with pytest.raises(LaresError, match=r"no value for core_blocks\.0\.frequency\.beta"):
        import_reference(str(tmp_path / "bare.pth"), str(tmp_path / "other.ckpt"))
    with pytest.raises(LaresError, match=r"ours\.ckpt exists"):
        import_reference(str(tmp_path / "bare.pth"), str(tmp_path / "ours.ckpt"))


def test_settings_are_converted_to_their_types(tmp_path: Path) -> None:
    state, _ = recorded(next(path for path in golden_files() if path.stem == "bsarec_add"))
    torch.save({f"module.{name}": value for name, value in state.items()}, tmp_path / "bare.pth")
    (tmp_path / "x.yaml").write_text("layer_norm_eps: 1e-12\nn_heads: 4.0\nmean_recurrence: '6'\ntau: 2\n")
    import_reference(str(tmp_path / "bare.pth"), str(tmp_path / "ours.ckpt"), settings=str(tmp_path / "x.yaml"))
    stage = load_stage(tmp_path / "ours.ckpt")
    assert stage.backbone.pre_blocks[0].attention.heads == 4  # type: ignore[union-attr]
    assert (stage.evaluation_depth, stage.hparams["alignment"]["tau"]) == (6, 2.0)

    def said(settings: str, state: dict[str, Tensor] = state) -> str:
        torch.save(state, tmp_path / "other.pth")
        (tmp_path / "y.yaml").write_text(settings)
        with pytest.raises(LaresError) as caught:
            import_reference(str(tmp_path / "other.pth"), str(tmp_path / "z.ckpt"), settings=str(tmp_path / "y.yaml"))
        assert not (tmp_path / "z.ckpt").exists()
        return str(caught.value)

    assert "n_heads=2.5: expected int, such as 2" in said("n_heads: 2.5")
    assert "n_heads='two': expected int" in said("n_heads: two")
    less = {name: value for name, value in state.items() if "dense_1" not in name}
    assert "not the parameters of a whole bsarec model" in said("tau: 1", less)
    assert "not finite in layernorm_1.bias" in said("tau: 1", {**state, "layernorm_1.bias": torch.full((16,), torch.nan)})


@pytest.mark.slow
def test_an_imported_model_ranks_by_original_ids(tmp_path: Path) -> None:
    """The release numbers items in its own order; a file of ids puts its rows into the dataset's."""
    rng = np.random.default_rng(0)
    ids = [f"i{n}" for n in range(40)]
    lines = [" ".join([f"u{user}", *rng.choice(ids, 6)]) for user in range(60)]
    (tmp_path / "x.txt").write_text("\n".join([*lines, " ".join(["all", *ids])]) + "\n")
    prepare(str(tmp_path / "x.txt"), str(tmp_path / "prepared"))
    state, settings = recorded(next(path for path in golden_files() if path.stem == "fmlp_add"))
    recbole_file(tmp_path / "file.pth", state, settings)
    theirs = list(rng.permutation(ids))
    (tmp_path / "items.txt").write_text("\n".join(theirs) + "\n")
    lares(tmp_path, "import-reference", "file.pth", "--dataset", "prepared", "--items", "items.txt", "--output", "ours.ckpt")
    done = lares(tmp_path, "test", "--ckpt_path", "ours.ckpt", "--output", "test.json")
    assert "test/ndcg@10" in json.loads((tmp_path / "test.json").read_text())["metrics"], done.stdout
    ours = read_checkpoint(tmp_path / "ours.ckpt").weights["backbone.embedding.item.weight"]
    order = SequenceDataset.load(tmp_path / "prepared").item_ids.to_pylist()
    for row, item_id in enumerate(order, start=1):
        assert torch.equal(ours[row], state["item_embedding.weight"][theirs.index(item_id) + 1])
    lares(tmp_path, "export-reference", "ours.ckpt", "--items", "items.txt", "--output", "back.pth")
    again, _ = read_reference(tmp_path / "back.pth")
    assert all(torch.equal(again[name], state[name]) for name in state)
    (tmp_path / "items.txt").write_text("\n".join(theirs[1:]) + "\n")
    assert "39 lines" in error(tmp_path, "import-reference", "file.pth", "--dataset", "prepared", "--items", "items.txt")
    # it goes on as SPT's successor, and is no run to resume
    quick = ["--trainer.limit_train_batches", "2", "--trainer.max_epochs", "1", "--trainer.logger", "false"]
    quick += ["--data.batch_size", "16", "--test_after_fit", "false", "--model.pruning", "null"]
    lares(tmp_path, "fit", "--config", "rpt.yaml", "--model.init_from", "ours.ckpt", *quick)
    said = error(tmp_path, "fit", "--config", "spt.yaml", "--ckpt_path", "ours.ckpt")
    assert "--model.init_from" in said


def test_the_scalar_of_the_linear_injection_is_mapped() -> None:
    assert isinstance(built(adapter_type="linear").injection, LinearInjection)
    for name, value in {"adapter": torch.tensor([0.3]), "adapter.weight": torch.tensor([[0.3]])}.items():
        ours, unknown = from_reference({name: value}, "transformer")
        assert ours["injection.gate"].shape == ()
        assert not unknown
