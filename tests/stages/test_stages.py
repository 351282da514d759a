"""The stages under an ordinary Trainer: losses, pruning, self-contained checkpoints."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch import Tensor

from lares_pl import (
    RPT,
    SPT,
    BackboneConfig,
    ConstantDepth,
    CosineSimilarity,
    LaresError,
    NDCGReward,
    NormalState,
    Pruning,
    RecurrentBackbone,
    SequenceDataset,
    TransformerBlock,
    WarmupCosine,
    load_stage,
    prepare,
)
from lares_pl.stages.checkpoint import _found_again, read_checkpoint
from lares_pl.stages.pruning import kept_instances, pruning_fingerprint
from tests.released import released_backbone
from tests.training import FAST, SMALL, data, released_rpt, released_spt, trainer


@pytest.fixture(scope="module")
def spt_checkpoint(toy_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short SPT run."""
    folder = tmp_path_factory.mktemp("spt")
    L.seed_everything(1)
    fit = trainer(folder, max_epochs=6)
    fit.fit(released_spt(), data(toy_dataset))
    fit.save_checkpoint(folder / "spt.ckpt")
    return folder / "spt.ckpt"


def test_spt_logs_every_part_of_the_loss_and_learns(toy_dataset: Path, tmp_path: Path) -> None:
    L.seed_everything(0)
    model, module = released_spt(), data(toy_dataset)
    fit = trainer(tmp_path, max_epochs=40)
    fit.fit(model, module)
    logged = {name: float(value) for name, value in fit.callback_metrics.items()}
    for name in ("loss", "ce", "tla", "sla", "depth", "pair_depth", "residual", "lr", "instances_per_second"):
        assert f"train/{name}" in logged
    total = logged["train/ce"] + 0.1 * logged["train/tla"] + 0.5 * logged["train/sla"]
    assert logged["train/loss"] == pytest.approx(total, rel=1e-5)
    assert logged["train/ce"] < math.log(41) - 0.5  # what knowing nothing costs
    assert 0 <= logged["val/ndcg@10"] <= logged["val/recall@10"] <= 1


def test_loss_weights_of_zero_skip_their_pass(toy_dataset: Path, tmp_path: Path) -> None:
    for alpha, gamma, passes in ((0.1, 0.5, 3), (0.0, 0.5, 2), (0.0, 0.0, 1)):
        model = released_spt(alpha=alpha, gamma=gamma)
        fit = trainer(tmp_path, max_steps=1)
        counted: list[int] = []
        module = data(toy_dataset)
        fit_model = _Counting(model, counted)
        fit.fit(fit_model.model, module)
        assert counted == [passes]
        assert model.needs_partners == (alpha > 0)


class _Counting:
    """Counts the trajectories of each training rollout."""

    def __init__(self, model: SPT, counted: list[int]) -> None:
        self.model = model
        configure = model.configure_model

        def configure_and_watch() -> None:
            configure()
            if "rollout" in vars(model.backbone):  # a trainer calls it more than once
                return
            rollout = model.backbone.rollout

            def watched(histories: Any, depths: Any, *rest: Any, **named: Any) -> Any:
                if model.training:
                    counted.append(len(depths))
                return rollout(histories, depths, *rest, **named)

            model.backbone.rollout = watched  # type: ignore[method-assign]

        model.configure_model = configure_and_watch  # type: ignore[method-assign]


def test_the_baseline_without_recurrence_has_no_unused_parameters(toy_dataset: Path, tmp_path: Path) -> None:
    config = released_backbone(hidden_size=16, pre_layers=2, core_layers=0, depth=ConstantDepth(0))
    model = released_spt(config, alpha=0, gamma=0)
    fit = trainer(tmp_path, max_steps=2)
    fit.fit(model, data(toy_dataset))
    assert not any("core" in name or "injection" in name for name, _ in model.named_parameters())
    assert all(parameter.grad is not None for parameter in model.backbone.parameters())


def test_load_from_checkpoint_needs_only_the_file(spt_checkpoint: Path, toy_dataset: Path, tmp_path: Path) -> None:
    torch.load(spt_checkpoint, weights_only=True)  # no code in it
    by_class = SPT.load_from_checkpoint(spt_checkpoint)
    by_path = load_stage(spt_checkpoint)
    assert isinstance(by_path, SPT)
    assert by_class.alpha == 0.1
    assert by_class.backbone_config.hidden_size == 16
    for one, two in zip(by_class.state_dict().values(), by_path.state_dict().values(), strict=True):
        assert torch.equal(one, two)
    module = data(toy_dataset)
    results = [trainer(tmp_path).test(stage, module, verbose=False) for stage in (by_class, by_path)]
    assert results[0] == results[1]


def test_evaluation_is_deterministic_and_independent_of_batches(
    spt_checkpoint: Path, toy_dataset: Path, tmp_path: Path
) -> None:
    stage = load_stage(spt_checkpoint)
    by_size = [trainer(tmp_path).test(stage, data(toy_dataset, eval_batch_size=size), verbose=False) for size in (7, 7, 64)]
    assert by_size[0] == by_size[1]
    assert by_size[0][0] == pytest.approx(by_size[2][0], rel=1e-6)


def test_depth_is_chosen_at_test_time(spt_checkpoint: Path, toy_dataset: Path, tmp_path: Path) -> None:
    stage = load_stage(spt_checkpoint)
    assert stage.evaluation_depth == 4
    results = {}
    for depth in (0, 1, 9):
        stage.evaluation_depth = depth
        results[depth] = trainer(tmp_path).test(stage, data(toy_dataset), verbose=False)[0]["test/mrr"]
    assert len(set(results.values())) == 3


def test_seen_items_are_ranked_or_left_out(spt_checkpoint: Path, toy_dataset: Path, tmp_path: Path) -> None:
    stage = load_stage(spt_checkpoint)
    ranked = trainer(tmp_path).test(stage, data(toy_dataset), verbose=False)[0]
    stage.exclude_seen = True
    without = trainer(tmp_path).test(stage, data(toy_dataset), verbose=False)[0]
    assert without["test/mrr"] > ranked["test/mrr"]  # fewer competitors, the target itself always stays
    module = data(toy_dataset)
    stage.predict_k = 40
    predicted: Any = trainer(tmp_path).predict(stage, module)
    sequences, instances = module.sequences, module.sequences.held_out("next").all()
    for index, items, scores in zip(predicted[0].instances, predicted[0].items, predicted[0].scores, strict=True):
        seen = set(sequences.items[instances.starts[index] : instances.ends[index]].tolist())
        given = set(items[torch.isfinite(scores)].tolist())
        assert given == set(range(1, sequences.catalogue_size + 1)) - seen


def test_another_catalogue_is_refused(spt_checkpoint: Path, tmp_path: Path) -> None:
    from lares_pl import prepare

    (tmp_path / "x.txt").write_text("".join(f"{user} 1 2 3 4\n" for user in range(5)))
    prepare(str(tmp_path / "x.txt"), str(tmp_path / "other"))
    with pytest.raises(LaresError, match=r"another catalogue \(40 items.*Use the dataset"):
        trainer(tmp_path).test(load_stage(spt_checkpoint), data(tmp_path / "other"), verbose=False)


def test_another_history_length_is_refused(spt_checkpoint: Path, toy_dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(LaresError, match="max_length to 8"):
        trainer(tmp_path).test(load_stage(spt_checkpoint), data(toy_dataset, max_length=9), verbose=False)


def test_a_foreign_or_damaged_checkpoint_is_refused(tmp_path: Path, spt_checkpoint: Path) -> None:
    torch.save({"state_dict": {}}, tmp_path / "foreign.ckpt")
    with pytest.raises(LaresError, match="not a checkpoint of a lares_pl stage"):
        read_checkpoint(tmp_path / "foreign.ckpt")
    (tmp_path / "log.csv").write_text("user_id,item_id\n1,2\n")
    with pytest.raises(LaresError, match=r"log.csv: not a checkpoint of a lares_pl stage; expected a file such as runs/RUN/"):
        read_checkpoint(tmp_path / "log.csv")
    (tmp_path / "half.ckpt").write_bytes(spt_checkpoint.read_bytes()[:5000])
    with pytest.raises(LaresError, match="can't be read as a checkpoint"):
        read_checkpoint(tmp_path / "half.ckpt")
    torch.save({"code": _Bomb()}, tmp_path / "bomb.ckpt")
    with pytest.raises(LaresError, match="can't be read as a checkpoint"):
        read_checkpoint(tmp_path / "bomb.ckpt")
    with pytest.raises(LaresError, match="no checkpoint at"):
        read_checkpoint(tmp_path / "missing.ckpt")


def test_the_checkpoint_a_run_started_from_is_found_where_the_run_was_moved_to(tmp_path: Path) -> None:
    moved = tmp_path / "moved" / "spt" / "checkpoints" / "best.ckpt"
    moved.parent.mkdir(parents=True)
    moved.touch()
    former, rpt = tmp_path / "former", tmp_path / "moved" / "rpt" / "checkpoints" / "best.ckpt"
    initial = str(former / "spt" / "checkpoints" / "best.ckpt")
    assert _found_again(initial, rpt) == str(moved)
    assert _found_again(initial, Path("/best.ckpt")) == initial
    assert _found_again("/best.ckpt", rpt) == "/best.ckpt"
    assert _found_again(str(moved), rpt) == str(moved)
    assert _found_again(None, rpt) is None
    former.mkdir()  # that run is still there, without the checkpoint: the other one is of another run
    assert _found_again(initial, rpt) == initial


class _Bomb:
    """Would run code when unpickled."""

    def __reduce__(self) -> Any:
        return (pytest.fail, ("code in a checkpoint was run",))


# ---------------------------------------------------------------- RPT


def test_rpt_takes_architecture_and_weights_and_keeps_its_reference(
    spt_checkpoint: Path, toy_dataset: Path, tmp_path: Path
) -> None:
    L.seed_everything(2)
    spt = load_stage(spt_checkpoint)
    rpt = released_rpt(spt_checkpoint, group_size=4, reward=NDCGReward(5), dropout=0.0, pruning=Pruning(2, 20))
    fit = trainer(tmp_path)
    fit.fit(rpt, data(toy_dataset))
    assert rpt.backbone_config.hidden_size == 16
    assert rpt.backbone_config.dropout == 0.0
    moved = False
    for name, before in spt.backbone.state_dict().items():
        assert torch.equal(rpt.reference.state_dict()[name], before), name
        moved |= not torch.equal(rpt.backbone.state_dict()[name], before)
    assert moved
    assert not rpt.reference.training
    assert rpt.backbone.training
    logged = {name: float(value) for name, value in fit.callback_metrics.items()}
    for name in ("loss", "kl", "reward", "groups_without_variance", "advantage_std", "depth", "residual", "lr"):
        assert f"train/{name}" in logged
    assert 0 <= logged["train/groups_without_variance"] <= 1

    fit.save_checkpoint(tmp_path / "rpt.ckpt")
    spt_checkpoint_gone = load_stage(tmp_path / "rpt.ckpt")  # needs no SPT file: `init_from` is not among its settings
    assert isinstance(spt_checkpoint_gone, RPT)
    assert spt_checkpoint_gone.init_from is None
    assert spt_checkpoint_gone.objective.reward == NDCGReward(5)
    for one, two in zip(spt_checkpoint_gone.state_dict().values(), rpt.state_dict().values(), strict=True):
        assert torch.equal(one, two)


def test_a_large_beta_keeps_the_policy_near_its_reference(spt_checkpoint: Path, toy_dataset: Path, tmp_path: Path) -> None:
    kl = {}
    for beta in (0.0, 10.0):
        L.seed_everything(3)
        rpt = released_rpt(spt_checkpoint, group_size=4, beta=beta, dropout=0.0, pruning=None)
        fit = trainer(tmp_path, max_epochs=4)
        fit.fit(rpt, data(toy_dataset))
        kl[beta] = float(fit.callback_metrics["train/kl"])
    assert kl[10.0] < kl[0.0] / 3


def test_pruning_keeps_instances_that_rank_within_top_in_any_pass(spt_checkpoint: Path, toy_dataset: Path) -> None:
    stage, module = load_stage(spt_checkpoint), data(toy_dataset)
    count = len(module.sequences.training_instances)

    def kept(passes: int, top: int, size: int = 64) -> torch.Tensor:
        loader = data(toy_dataset, eval_batch_size=size).instances_loader()
        return kept_instances(stage.backbone, loader, count, 4, Pruning(passes, top)).bool()

    single, three = kept(1, 5), kept(3, 5)
    assert 0 < single.sum() < three.sum() < count
    assert (three | ~single).all()  # the first pass is one of the three
    assert torch.equal(three, kept(3, 5, size=7))
    assert kept(1, 40).all()


def test_the_fingerprint_of_pruning_tells_architectures_of_equal_weights_apart() -> None:
    found = set()
    for options in ({}, {"similarity": CosineSimilarity()}, {"initial_state": NormalState(scale=0.5)}):
        torch.manual_seed(0)
        found.add(pruning_fingerprint(RecurrentBackbone(9, 5, replace(SMALL, **options)), [np.arange(3)], 4))
    assert len(found) == 3
    torch.manual_seed(0)
    assert pruning_fingerprint(RecurrentBackbone(9, 5, SMALL), [np.arange(3)], 4) in found


def test_pruning_makes_one_pass_where_passes_would_be_equal(toy_dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = RecurrentBackbone(40, 8, BackboneConfig(hidden_size=16, initializer_range=0.3)).eval()
    asked: list[int] = []
    rollout = RecurrentBackbone.rollout

    def counted(model: RecurrentBackbone, histories: Any, depths: list[int], *more: Any, **options: Any) -> list[Tensor]:
        asked.append(len(depths))
        return rollout(model, histories, depths, *more, **options)

    monkeypatch.setattr(RecurrentBackbone, "rollout", counted)
    count = len(data(toy_dataset).sequences.training_instances)
    three, one = (kept_instances(backbone, data(toy_dataset).instances_loader(), count, 2, Pruning(n, 5)) for n in (3, 1))
    assert set(asked) == {1}
    assert torch.equal(three, one)
    assert 0 < one.sum() < count


def test_rpt_without_weights_is_refused(toy_dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(LaresError, match="init_from"):
        released_rpt()
    with pytest.raises(LaresError, match="init_from"):
        trainer(tmp_path).fit(released_rpt(backbone=SMALL), data(toy_dataset))
    with pytest.raises(LaresError, match="group_size"):
        released_rpt(backbone=SMALL, group_size=1)


def test_weights_of_another_architecture_are_refused_with_the_settings_that_differ(
    toy_dataset: Path, tmp_path: Path, spt_checkpoint: Path
) -> None:
    larger = replace(SMALL, hidden_size=2 * SMALL.hidden_size)
    said = rf"its weights don't fit this model \(model\.backbone: hidden_size {SMALL.hidden_size} -> {larger.hidden_size}\)"
    with pytest.raises(LaresError, match=said):
        trainer(tmp_path).fit(released_spt(larger, init_from=str(spt_checkpoint)), data(toy_dataset))


def test_weights_for_histories_of_another_length_are_refused(toy_dataset: Path, tmp_path: Path, spt_checkpoint: Path) -> None:
    with pytest.raises(LaresError, match=r"histories of up to 8 items and data\.max_length is 5: set data\.max_length to 8"):
        trainer(tmp_path).fit(released_rpt(spt_checkpoint), data(toy_dataset, max_length=5))


def test_lists_longer_than_the_catalogue_are_announced_as_shorter(toy_dataset: Path, tmp_path: Path) -> None:
    stage = released_spt()
    stage.predict_k = 41
    with pytest.warns(UserWarning, match=r"the catalogue has 40 items, so lists have 40 instead of 41 \(--k\)"):
        found: Any = trainer(tmp_path).predict(stage, data(toy_dataset))
    assert {ranked.items.shape[1] for ranked in found} == {40}


def test_pruning_everything_is_an_error(toy_dataset: Path, tmp_path: Path, spt_checkpoint: Path) -> None:
    rpt = released_rpt(spt_checkpoint, pruning=Pruning(1, 1))
    fit = trainer(tmp_path)
    module = data(toy_dataset)
    rpt.evaluation_depth = 4

    def nothing(*_: Any) -> torch.Tensor:
        return torch.zeros(len(module.sequences.training_instances), dtype=torch.uint8)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lares_pl.stages.rpt.kept_instances", nothing)
        with pytest.raises(LaresError, match=r"no training instance.*pruning.top"):
            fit.fit(rpt, module)


@pytest.fixture(scope="module")
def rpt_checkpoint(spt_checkpoint: Path, toy_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An RPT run of one epoch on pruned instances."""
    path = tmp_path_factory.mktemp("rpt") / "rpt.ckpt"
    fit = trainer(path.parent, max_epochs=1)
    fit.fit(released_rpt(spt_checkpoint, pruning=Pruning(1, 10)), data(toy_dataset))
    fit.save_checkpoint(path)
    return path


def prunings_when_resumed(path: Path, dataset: Path, pruning: Pruning = Pruning(1, 10), **options: Any) -> tuple[int, RPT]:
    """How often a resumed run computes the pruned set."""
    again = released_rpt(backbone=read_checkpoint(path).settings["backbone"], pruning=pruning)
    again.evaluation_depth = options.pop("depth", again.evaluation_depth)
    counted = 0

    def count(*arguments: Any) -> torch.Tensor:
        nonlocal counted
        counted += 1
        return kept_instances(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lares_pl.stages.rpt.kept_instances", count)
        resumed = trainer(path.parent, max_epochs=2)
        resumed.fit(again, data(dataset, **options), ckpt_path=path, weights_only=True)
    assert resumed.current_epoch == 2
    return counted, again


def test_resuming_restores_the_pruned_set(rpt_checkpoint: Path, toy_dataset: Path) -> None:
    counted, again = prunings_when_resumed(rpt_checkpoint, toy_dataset)
    assert counted == 0
    assert again._kept is not None
    stored = torch.load(rpt_checkpoint, weights_only=True)["lares"]["kept"]
    instances = len(SequenceDataset.load(toy_dataset).training_instances)
    assert len(again._kept.mask) == stored["instances"] == instances
    assert stored["bits"].nbytes == -(-instances // 8)  # a bit an instance
    unpacked = [bool(stored["bits"][i // 8] & (128 >> i % 8)) for i in range(instances)]
    assert again._kept.mask.tolist() == unpacked
    assert 0 < sum(unpacked) < instances


def test_the_pruned_set_is_bound_to_model_rule_and_dataset(rpt_checkpoint: Path, toy_dataset: Path, tmp_path: Path) -> None:
    for rule in (Pruning(1, 12), Pruning(2, 10)):
        assert prunings_when_resumed(rpt_checkpoint, toy_dataset, rule)[0] == 1
    assert prunings_when_resumed(rpt_checkpoint, toy_dataset, depth=2)[0] == 1
    assert prunings_when_resumed(rpt_checkpoint, toy_dataset, instances="sequence", batch_size=16)[0] == 1

    # the same number of training instances and the same catalogue, but other histories
    original = SequenceDataset.load(toy_dataset)
    rows = [original.items[a:b].tolist() for a, b in pairwise(original.offsets.tolist())]
    late = max(user for user, row in enumerate(rows) if len(row) > 3 and row[0] != row[1])  # items keep their numbers
    rows[late][:2] = rows[late][1::-1]
    names = original.item_ids.to_pylist()
    lines = [f"{user}\t{names[item - 1]}\t{time}" for user, row in enumerate(rows) for time, item in enumerate(row)]
    (tmp_path / "toy.tsv").write_text("user_id\titem_id\ttimestamp\n" + "\n".join(lines) + "\n")
    prepare(str(tmp_path / "toy.tsv"), str(tmp_path / "other"))
    changed = SequenceDataset.load(tmp_path / "other")
    assert len(changed.training_instances) == len(original.training_instances)
    assert changed.catalogue_fingerprint == original.catalogue_fingerprint
    assert prunings_when_resumed(rpt_checkpoint, tmp_path / "other")[0] == 1

    # another reference
    content = torch.load(rpt_checkpoint, weights_only=True)
    content["state_dict"]["reference.embedding.item.weight"][1] += 0.1
    torch.save(content, tmp_path / "other.ckpt")
    assert prunings_when_resumed(tmp_path / "other.ckpt", toy_dataset)[0] == 1


def test_warmup_cosine() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = WarmupCosine(optimizer, warmup=4, total=10, floor=0.1)
    rates = []
    for _ in range(14):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates[:4] == pytest.approx([0.5, 1.0, 1.5, 2.0])
    assert rates[4] == pytest.approx(2.0)
    assert rates[7] == pytest.approx(0.2 + 1.8 / 2)
    assert rates[10:] == pytest.approx([0.2] * 4)
    with pytest.raises(LaresError):
        WarmupCosine(optimizer, warmup=10, total=10)


def test_warmup_takes_at_most_half_of_a_short_training() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = WarmupCosine(optimizer, warmup=200, floor=0.1)
    schedule.end_at(8)
    rates = []
    for _ in range(9):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[:5] == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0])
    assert rates[5:] == pytest.approx([0.2 + 0.9 * (1 + math.cos(math.pi * done)) for done in (0.25, 0.5, 0.75, 1.0)])
    schedule = WarmupCosine(optimizer, warmup=200)
    schedule.end_at(1)
    assert optimizer.param_groups[0]["lr"] == 2.0


def test_a_schedule_without_a_total_ends_with_training(spt_checkpoint: Path, toy_dataset: Path, tmp_path: Path) -> None:
    schedule = partial(WarmupCosine, warmup=1, floor=0.25)
    fit = trainer(tmp_path, max_epochs=2)
    fit.fit(released_spt(scheduler=schedule), data(toy_dataset))
    (left,) = (group["lr"] for group in fit.optimizers[0].param_groups)
    assert left == pytest.approx(0.25 * FAST.keywords["lr"])
    with pytest.raises(LaresError, match=r"training has no end"):
        trainer(tmp_path, max_epochs=-1).fit(released_spt(scheduler=schedule), data(toy_dataset))
    with pytest.raises(LaresError, match="RPT prunes its instances first"):
        trainer(tmp_path).fit(released_rpt(spt_checkpoint, scheduler=schedule), data(toy_dataset))
    rpt = released_rpt(spt_checkpoint, pruning=Pruning(1, 3), scheduler=schedule)
    pruned = data(toy_dataset)
    trainer(tmp_path, max_steps=2).fit(rpt, pruned)
    assert rpt.kept is not None
    assert pruned.train_dataloader().sampler.count <= rpt.kept.mask.sum() < len(rpt.kept.mask)


def test_the_next_stage_trains_on_all_instances_again(spt_checkpoint: Path, toy_dataset: Path, tmp_path: Path) -> None:
    module = data(toy_dataset)
    trainer(tmp_path, max_steps=1).fit(released_rpt(spt_checkpoint, pruning=Pruning(1, 3)), module)
    pruned = module.train_dataloader().sampler.count
    trainer(tmp_path, max_steps=1).fit(released_spt(), module)
    assert pruned < module.train_dataloader().sampler.count == len(module.sequences.training_instances)


def test_the_policys_dropout_reaches_blocks_that_set_their_own(spt_checkpoint: Path) -> None:
    own = partial(TransformerBlock, inner_size=32, dropout=0.5, attention_dropout=0.4)
    rpt = released_rpt(backbone=released_backbone(hidden_size=16, core_block=own, pre_block=own), dropout=0.25)
    block: Any = RecurrentBackbone(9, 5, rpt.backbone_config).core_blocks[0]
    assert block.feed_forward.inner.out_features == 32
    assert {block.attention.dropout.p, block.attention.attention_dropout, block.feed_forward.dropout.p} == {0.25}


class Untyped(TransformerBlock):
    """A block as users write them: untyped, with its own dropout and a second dropout option."""

    def __init__(self, hidden_size, dropout=0.5, state_dropout=0.3):  # type: ignore[no-untyped-def]
        super().__init__(hidden_size, dropout=dropout, attention_dropout=state_dropout)


def test_an_untyped_block_is_restored_with_the_policys_dropout(toy_dataset: Path, tmp_path: Path) -> None:
    block = partial(Untyped, dropout=0.05)
    fit = trainer(tmp_path, limit_train_batches=2)
    fit.fit(released_spt(released_backbone(hidden_size=16, pre_block=block, core_block=block)), data(toy_dataset))
    fit.save_checkpoint(tmp_path / "spt.ckpt")
    spt: Any = load_stage(tmp_path / "spt.ckpt").backbone.core_blocks[0]
    assert (spt.attention.dropout.p, spt.attention.attention_dropout) == (0.05, 0.3)
    rpt = released_rpt(tmp_path / "spt.ckpt", dropout=0.1)
    policy: Any = RecurrentBackbone(9, 5, rpt.backbone_config).core_blocks[0]
    assert (policy.attention.dropout.p, policy.attention.attention_dropout) == (0.1, 0.1)


def test_a_block_that_a_checkpoint_cannot_name_is_refused_before_training() -> None:
    class Local(TransformerBlock):
        """Defined in a function, so a checkpoint cannot name it."""

    with pytest.raises(LaresError, match=r"could not be rebuilt from a checkpoint: .*importable by name"):
        SPT(BackboneConfig(core_block=Local))
    with pytest.raises(LaresError, match=r"could not be rebuilt from a checkpoint"):
        SPT(BackboneConfig(core_block=partial(Untyped, width=3)))  # type: ignore[call-arg]


@pytest.mark.parametrize("precision", ["bf16-true", "64-true", "bf16-mixed"])
def test_other_precisions_train(precision: str, toy_dataset: Path, tmp_path: Path) -> None:
    fit = trainer(tmp_path, limit_train_batches=2, max_epochs=1, precision=precision)
    stage = released_spt()
    fit.fit(stage, data(toy_dataset))
    fit.test(stage, data(toy_dataset), verbose=False)
    assert math.isfinite(float(fit.callback_metrics["test/mrr"]))


def test_depth_zero_with_a_core_block_is_refused() -> None:
    with pytest.raises(LaresError, match="set core_layers to 0"):
        BackboneConfig(depth=ConstantDepth(0))


# ---------------------------------------------------------------- subclasses


class Forgets(SPT):
    def __init__(self, *arguments: Any, extra: int = 1, other: str = "", **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.extra = extra


class Keeps(Forgets):
    def __init__(self, *arguments: Any, extra: int = 1, **options: Any) -> None:
        super().__init__(*arguments, extra=extra, **options)
        self.save_hyperparameters("extra")


class Inherits(Keeps):
    pass


class Passes(Keeps):
    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)


def test_a_subclass_that_would_lose_its_arguments_is_refused(toy_dataset: Path, tmp_path: Path) -> None:
    expected = r'Forgets: .*model\.extra, model\.other.*self\.save_hyperparameters\("extra", "other"\) in Forgets\.__init__'
    with pytest.raises(LaresError, match=expected):
        trainer(tmp_path).fit(Forgets(SMALL, extra=5), data(toy_dataset))


@pytest.mark.parametrize("kind", [Keeps, Inherits, Passes])
def test_a_subclass_keeps_its_arguments(kind: type[Keeps], toy_dataset: Path, tmp_path: Path) -> None:
    fit = trainer(tmp_path, max_steps=1)
    fit.fit(kind(SMALL, extra=5), data(toy_dataset))
    fit.save_checkpoint(tmp_path / "own.ckpt")
    loaded = load_stage(tmp_path / "own.ckpt")
    assert type(loaded) is kind
    assert loaded.extra == 5
