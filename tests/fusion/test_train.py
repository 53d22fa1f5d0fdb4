from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mer.fusion import config
from mer.fusion.batch import DataSpec
from mer.fusion.data import feature_sets, sources, splits
from mer.fusion.runs import checkpoint
from mer.fusion.runtime import devices
from mer.fusion.training import experiment, optim, resume, train, training_setup
from mer.fusion.training.train import fit
from mer.pipeline.errors import DataError
from mer.pipeline.store import FeatureStore

from tests.fusion.stores import make_store, quiet

SMALL = ("model_args.hidden=16", "train.epochs=4", "train.batch_size=16", "optim.lr=3e-3")
TINY_DRKF = (
    "model_args.d=16",
    "model_args.layers=1",
    "model_args.heads=2",
    "model_args.ffn=16",
    "model_args.ae_layers=8,4",
    "model_args.ae_blocks=2",
    "model_args.d_p=8",
    "train.epochs=3",
    "train.batch_size=16",
    "optim.lr=3e-3",
)


def settings(*more: str, model: str = "concat") -> config.TrainConfig:
    return config.load(model=model, sets=[*(TINY_DRKF if model == "drkf" else SMALL), *more])


def run(store, folder, cfg, note=quiet):
    target = splits.targets(store.table(), store.header.task, store.header.labels)
    return fit(
        store,
        cfg,
        folder,
        split=splits.assign(store.table(), target, cfg.data),
        device="cpu",
        note=note,
    )


def weights(path) -> dict[str, torch.Tensor]:
    return checkpoint.load_tensors(path / checkpoint.MODEL)[0]


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def log(path) -> list[dict]:
    """Without what a clock says."""
    entries = [json.loads(line) for line in (path / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in e.items() if "seconds" not in k} for e in entries]


@pytest.mark.parametrize("model", ["concat", "drkf"])
def test_a_planted_signal_is_learnt(tmp_path, model):
    done = run(make_store(tmp_path), tmp_path / "run", settings("train.epochs=12", model=model))
    assert done.finished and done.info.dev["ua"] > 0.9
    assert done.info.counts == {"train": 72, "dev": 24}


def test_random_labels_stay_at_chance_on_dev(tmp_path):
    """Trained to the end, without choosing an epoch by dev: 80 dev rows, 3 classes, chance 1/3 with
    a deviation of 0.053.
    """
    store = make_store(tmp_path, n=400, shuffled_labels=True)
    done = run(
        store,
        tmp_path / "run",
        settings("train.epochs=15", "train.patience=15", "model_args.hidden=64"),
    )
    last = log(done.path)[-1]
    assert last["train"]["ec"] < 1.05  # it did fit something
    assert abs(last["dev"]["wa"] - 1 / 3) < 3 * 0.053


@pytest.mark.parametrize("task", ["multi", "regression"])
def test_every_task_trains(tmp_path, task):
    done = run(
        make_store(tmp_path, task=task, unlabelled=3), tmp_path / "run", settings("train.epochs=8")
    )
    assert done.info.select_metric == {"multi": "weighted_f1", "regression": "mae"}[task]
    assert done.info.dev["weighted_f1"] > 0.9 if task == "multi" else done.info.dev["mae"] < 0.5
    assert (done.info.thresholds is None) == (task == "regression")
    assert any("3 rows without a label" in n for n in done.info.notes)


@pytest.mark.parametrize("model", ["concat", "drkf"])
def test_a_seed_decides_everything(tmp_path, model):
    store = make_store(tmp_path)
    a, b = (run(store, tmp_path / name, settings(model=model)) for name in "ab")
    assert same(weights(a.path), weights(b.path)) and log(a.path) == log(b.path)
    other = run(store, tmp_path / "c", settings("train.seed=1", model=model))
    assert not same(weights(a.path), weights(other.path))


class Killed(BaseException):
    pass


@pytest.mark.parametrize("model", ["concat", "drkf"])
@pytest.mark.parametrize("after", [1, 2])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, model, after, monkeypatch):
    monkeypatch.setattr(resume, "SAVE_SECONDS", 0)
    store, cfg = make_store(tmp_path), settings("data.residence=stream", model=model)
    whole = run(store, tmp_path / "whole", cfg)

    def kill(line: str) -> None:
        if line.startswith(f"epoch {after:3d}"):
            raise Killed

    with pytest.raises(Killed):
        run(store, tmp_path / "cut", cfg, note=kill)
    assert not checkpoint.Run.open(tmp_path / "cut").finished
    said = []
    again = run(store, tmp_path / "cut", cfg, note=said.append)
    assert f"{tmp_path / 'cut'}: goes on after epoch {after}" in said
    assert same(weights(whole.path), weights(again.path)) and log(whole.path) == log(again.path)
    assert again.info.dev == whole.info.dev and again.info.best_epoch == whole.info.best_epoch


@pytest.mark.parametrize(
    "where", ["model.safetensors", "last.safetensors", "run.json", "split.json", "config.toml"]
)
def test_killed_while_writing_any_file_it_resumes_to_the_same_result(tmp_path, where, monkeypatch):
    """The rename of that file fails the second time it is written (the first time, where it is
    written once).
    """
    monkeypatch.setattr(resume, "SAVE_SECONDS", 0)
    store, cfg = make_store(tmp_path), settings()
    whole = run(store, tmp_path / "whole", cfg)
    replaced, count = os.replace, []

    def cut(temporary, path):
        if Path(path).name == where:
            count.append(path)
            if len(count) == (2 if "safetensors" in where else 1):
                raise Killed
        replaced(temporary, path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", cut)
        with pytest.raises(Killed):
            run(store, tmp_path / "cut", cfg)
    again = run(store, tmp_path / "cut", cfg)
    assert same(weights(whole.path), weights(again.path)) and log(whole.path) == log(again.path)
    assert not list((tmp_path / "cut").glob(".*"))


def saving_at(epochs: set[int], monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """A `note` that makes it time to save after these epochs, and not after others."""
    due = {True: 0.0, False: float("inf")}
    monkeypatch.setattr(resume, "SAVE_SECONDS", due[1 in epochs])

    def note(line: str) -> None:
        if line.startswith("epoch "):
            monkeypatch.setattr(resume, "SAVE_SECONDS", due[int(line.split()[1]) + 1 in epochs])

    return note


def saves(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The epochs after which progress is written."""
    found = []
    written = checkpoint.save_tensors

    def count(path, tensors, meta):
        found.append(meta["epoch"])
        written(path, tensors, meta)

    monkeypatch.setattr(checkpoint, "save_tensors", count)
    return found


def test_short_epochs_are_saved_every_few_seconds_and_at_the_end(tmp_path, monkeypatch):
    store, cfg = make_store(tmp_path), settings("train.epochs=6", "train.patience=6")
    whole = run(store, tmp_path / "whole", cfg)
    with monkeypatch.context() as patch:
        found = saves(patch)
        done = run(store, tmp_path / "run", cfg, note=saving_at({3}, patch))
    assert found == [3, 6]
    assert same(weights(whole.path), weights(done.path)) and log(whole.path) == log(done.path)


@pytest.mark.parametrize("where", [checkpoint.LAST, checkpoint.MODEL])
@pytest.mark.parametrize("epoch", range(2, 6))
def test_chosen_weights_of_an_epoch_that_was_not_saved_are_kept(
    tmp_path, where, epoch, monkeypatch
):
    """Killed after the file was written for the first time, at the end of some later epoch, the run
    goes on to the same end.
    """
    store, cfg = make_store(tmp_path), settings("train.epochs=6", "train.patience=6")
    whole = run(store, tmp_path / "whole", cfg)
    replaced = os.replace

    def cut(temporary, path):
        replaced(temporary, path)
        if Path(path).name == where:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", cut)
        with pytest.raises(Killed):
            run(store, tmp_path / "cut", cfg, note=saving_at({epoch}, patch))
    said = []
    again = run(store, tmp_path / "cut", cfg, note=said.append)
    assert f"{tmp_path / 'cut'}: goes on after epoch {epoch}" in said
    assert again.info.best_epoch == whole.info.best_epoch
    assert same(weights(whole.path), weights(again.path)) and log(whole.path) == log(again.path)


def test_accumulated_batches_equal_one_big_batch(tmp_path):
    """72 rows: 16 accumulated batches of 5 (the last of 2) make the step that one batch of 72
    makes. No dropout, one epoch.
    """
    store = make_store(tmp_path)
    common = ("model_args.dropout=0", "train.epochs=1", "optim.warmup=0")
    one = run(store, tmp_path / "one", settings(*common, "train.batch_size=72"))
    many = run(
        store, tmp_path / "many", settings(*common, "train.batch_size=5", "optim.accumulate=16")
    )
    a, b = weights(one.path), weights(many.path)
    assert log(one.path)[0]["step"] == log(many.path)[0]["step"] == 1
    for k in a:
        torch.testing.assert_close(a[k], b[k], rtol=1e-4, atol=1e-5, msg=k)
    assert log(one.path)[0]["train"]["ec"] == pytest.approx(
        log(many.path)[0]["train"]["ec"], rel=1e-5
    )


def test_the_last_partial_group_makes_a_step(tmp_path):
    done = run(
        make_store(tmp_path),
        tmp_path / "run",
        settings("train.batch_size=10", "optim.accumulate=3", "train.epochs=2"),
    )
    assert [e["step"] for e in log(done.path)] == [3, 6]  # 8 batches: 3 + 3 + 2


def test_the_trainer_never_reads_a_test_row(tmp_path, monkeypatch):
    """Every read of features by the trainer is recorded; none may touch the test part, and the test
    labels do not matter.
    """
    store = make_store(tmp_path)
    test = set(splits.held_out(store.table()).tolist())
    seen: set[int] = set()
    for name in ("features", "batch", "packed", "pooled"):
        original = getattr(FeatureStore, name)

        def recorded(self, modality, rows=None, *args, _original=original, **more):
            touched = range(len(self)) if rows is None else np.atleast_1d(rows).tolist()
            seen.update(touched)
            if test & set(touched):
                raise AssertionError(f"test rows {sorted(test & set(touched))[:3]} were read")
            return _original(self, modality, *([] if rows is None else [rows]), *args, **more)

        monkeypatch.setattr(FeatureStore, name, recorded)
    for k, residence in enumerate(("device", "stream")):
        experiment.train(
            store,
            settings("train.epochs=2", f"data.residence={residence}"),
            tmp_path / f"run{k}",
            note=quiet,
        )
    assert len(seen) == 96 and len(test) == 24
    for module in (train, experiment, feature_sets, sources):
        assert "held_out" not in Path(module.__file__).read_text()


def test_standardisation_comes_from_train_rows_only_and_can_be_switched_off(tmp_path):
    store = make_store(tmp_path)
    done = run(store, tmp_path / "run", settings("train.epochs=1"))
    plan = splits.assign(
        store.table(),
        splits.targets(store.table(), "single", store.header.labels),
        config.DataConfig(),
    )
    factor = feature_sets.pool_factor(50.0, 12.5)
    means = np.stack(
        [
            sources.pool(
                store.features("audio", int(r)), np.array([store.lengths("audio")[r]]), factor
            )[0].mean(0)
            for r in plan.train
        ]
    )
    np.testing.assert_allclose(
        weights(done.path)["standardise.audio.mean"][:8], means.mean(0), atol=1e-4
    )
    plain = run(store, tmp_path / "plain", settings("train.epochs=1", "data.standardise=false"))
    assert (weights(plain.path)["standardise.audio.mean"] == 0).all()


def test_badly_scaled_features_train_by_default(tmp_path):
    """openSMILE-like columns: huge offsets and scales, one constant."""
    source = make_store(tmp_path / "a")
    from mer.pipeline.store import ModalityInfo, ShardWriter, build_index

    scale = np.array([1e4, 1e-3, 1, 300, 1, 1, 1, 0], dtype=np.float32)
    shard = tmp_path / "feats.shards" / "shard-00000.h5"
    shard.parent.mkdir()
    ids = source.table()["id"].to_pylist()
    with ShardWriter(shard, {"audio": 8}, dtype="float32") as writer:
        for r, name in enumerate(ids):
            writer.add(name, {"audio": source.features("audio", r) * scale + 50 * scale})
    store = build_index(
        tmp_path / "feats.h5",
        [shard],
        source.table(),
        dataset="wild",
        task="single",
        labels=source.header.labels,
        modalities={"audio": ModalityInfo(8, 50.0, dtype="float32")},
    )
    done = run(store, tmp_path / "run", settings("train.epochs=12"))
    assert done.info.dev["ua"] > 0.75


def test_early_stop_keeps_the_best_epoch(tmp_path):
    store = make_store(tmp_path, shuffled_labels=True)
    early = settings("train.epochs=40", "train.patience=2", "train.cooldown=0")
    done = run(store, tmp_path / "run", early)
    entries = log(done.path)
    assert done.info.epochs == done.info.best_epoch + 2 < 40
    scores = [(e["dev"]["wf1"], -e["dev"]["loss"]) for e in entries]
    assert done.info.best_epoch == 1 + scores.index(max(scores))


def test_the_rate_falls_to_zero_where_patience_ends(tmp_path, monkeypatch):
    """Rates by hand: those of the cosine of 40 epochs, times a line from 1 to 0 over the steps of
    the last four; killed in between, the fall goes on where it was.
    """
    monkeypatch.setattr(resume, "SAVE_SECONDS", 0)
    store = make_store(tmp_path, shuffled_labels=True)
    cooled = settings("train.epochs=40", "train.patience=2", "train.cooldown=4")
    done = run(store, tmp_path / "run", cooled)
    early = replace(cooled, train=replace(cooled.train, cooldown=0))
    first = run(store, tmp_path / "early", early).info.epochs
    entries = log(done.path)
    steps = entries[0]["step"]
    assert len(entries) == first + 4 == done.info.epochs < 40
    assert entries[:first] == log(tmp_path / "early")
    for entry in entries:
        step = entry["step"] - 1
        factor = optim.schedule(step, 40 * steps, cooled.optim.warmup, "cosine")
        fallen = max(step - first * steps, 0) / (4 * steps)
        assert entry["lr"] == pytest.approx(cooled.optim.lr * factor * (1 - fallen))
    assert entries[-1]["lr"] < 0.1 * entries[first - 1]["lr"]

    def kill(line: str) -> None:
        if line.startswith(f"epoch {first + 2:3d}"):
            raise Killed

    with pytest.raises(Killed):
        run(store, tmp_path / "cut", cooled, note=kill)
    again = run(store, tmp_path / "cut", cooled)
    assert same(weights(done.path), weights(again.path)) and log(done.path) == log(again.path)


def test_a_fall_that_the_last_epoch_would_cut_short_is_shorter(tmp_path):
    store = make_store(tmp_path, shuffled_labels=True)
    early = settings("train.epochs=40", "train.patience=2", "train.cooldown=0")
    first = run(store, tmp_path / "early", early).info.epochs
    most = settings(f"train.epochs={first + 1}", "train.patience=2", "train.cooldown=30")
    entries = log(run(store, tmp_path / "run", most).path)
    assert len(entries) <= first + 1
    assert entries[-1]["lr"] < 0.2 * most.optim.lr


def test_select_metric(tmp_path):
    store = make_store(tmp_path)
    assert (
        run(store, tmp_path / "a", settings("train.select_metric=loss")).info.select_metric
        == "loss"
    )
    with pytest.raises(DataError, match="dev has wa, ua"):
        run(store, tmp_path / "b", settings("train.select_metric=accuracy"))


def test_a_diverging_loss_is_one_line(tmp_path):
    with pytest.raises(DataError, match="no longer finite.*lower optim.lr"):
        run(
            make_store(tmp_path),
            tmp_path / "run",
            settings("optim.lr=1e25", "optim.clip=inf", "train.epochs=3"),
        )


def test_class_weights():
    spec = DataSpec({"audio": 1}, {"audio": None}, "single", ("a", "b", "c"))
    y = np.array([0] * 6 + [1] * 2)
    balanced = training_setup.class_weights(y, spec, "balanced")
    assert balanced[1] / balanced[0] == pytest.approx(3) and balanced[2] == 1
    assert float(balanced[torch.from_numpy(y)].mean()) == pytest.approx(1)
    assert (lambda w: w[1] / w[0])(training_setup.class_weights(y, spec, "sqrt")) == pytest.approx(
        3**0.5
    )
    multi = training_setup.class_weights(
        np.array([[1, 0], [0, 0], [0, 0], [1, 0]], dtype=np.float32),
        replace(spec, task="multi", labels=("a", "b")),
        "balanced",
    )
    assert multi.tolist() == [1, 1]


def test_class_weights_reach_the_model_and_its_checkpoint(tmp_path):
    done = run(
        make_store(tmp_path),
        tmp_path / "run",
        settings("train.class_weight=balanced", "train.epochs=1"),
    )
    assert not (weights(done.path)["class_weights"] == 1).all()


def test_decay_spares_norms_biases_and_parameters_with_their_own_rate():
    from mer.fusion.models import model_class

    cfg = settings(model="drkf")
    spec = DataSpec({"audio": 8, "text": 6}, {"audio": 12.5, "text": None}, "single", ("a", "b"))
    model = model_class("drkf")[0](cfg.model_args, spec)
    groups = optim.parameter_groups(model, cfg)
    assert sum(len(g["params"]) for g in groups) == len(list(model.parameters()))
    assert all(p.ndim > 1 for g in groups if g["weight_decay"] for p in g["params"])
    theta = dict(model.named_parameters())["temperature.theta"]
    own = next(g for g in groups if any(p is theta for p in g["params"]))
    assert (
        own["lr"] == pytest.approx(cfg.optim.lr * cfg.model_args.tau_lr_scale)
        and own["weight_decay"] == 0
    )


def test_schedule():
    assert [optim.schedule(s, 100, 0.1, "constant") for s in (0, 4, 9, 50, 99)] == [
        0.1,
        0.5,
        1.0,
        1.0,
        1.0,
    ]
    assert optim.schedule(10, 100, 0.1, "cosine") == 1.0
    assert optim.schedule(55, 100, 0.1, "cosine") == pytest.approx(0.5)
    assert 0 < optim.schedule(99, 100, 0.1, "cosine") < 0.001
    assert optim.schedule(0, 1, 0.05, "cosine") == 1.0


def test_a_folder_of_another_run_is_left_alone(tmp_path):
    store = make_store(tmp_path)
    run(store, tmp_path / "run", settings())
    with pytest.raises(DataError, match="holds another run .optim.lr: 0.003 -> 0.5"):
        run(store, tmp_path / "run", settings("optim.lr=0.5"))
    with pytest.raises(DataError, match="other labels or splits"):
        run(make_store(tmp_path / "x", seed=2), tmp_path / "run", settings())
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(DataError, match="not empty"):
        run(store, tmp_path / "mine", settings())
    said = []
    run(store, tmp_path / "run", settings(), note=said.append)
    assert said == [f"{tmp_path / 'run'}: already trained"]


def test_seeds_and_folds_each_get_a_folder(tmp_path):
    store, cfg = make_store(tmp_path), settings("train.epochs=1")
    done = experiment.train(store, cfg, tmp_path / "run", seeds=2, folds="session", note=quiet)
    assert [c.path.name for c in done.children] == [
        f"fold-S{f}-seed-{s}" for f in range(3) for s in range(2)
    ]
    assert {c.info.seed for c in done.children} == {0, 1} and {
        c.fold.name for c in done.children
    } == {"S0", "S1", "S2"}
    with pytest.raises(DataError, match="holds another run .2 seeds, --folds session"):
        experiment.train(store, cfg, tmp_path / "run", seeds=3, folds="speaker", note=quiet)
    with pytest.raises(DataError, match="at least 1"):
        experiment.train(store, cfg, tmp_path / "none", seeds=0, note=quiet)


def test_an_interrupted_group_goes_on_where_it_was(tmp_path):
    store, cfg = make_store(tmp_path), settings("train.epochs=2")

    def kill(line: str) -> None:
        if line.startswith("[2/3]"):
            raise Killed

    with pytest.raises(Killed):
        experiment.train(store, cfg, tmp_path / "run", seeds=3, note=kill)
    said = []
    done = experiment.train(store, cfg, tmp_path / "run", seeds=3, note=said.append)
    assert done.finished and all(c.finished for c in done.children)
    assert any(s.endswith("seed-0: already trained") for s in said)


def test_default_folders_count_up_and_are_found_again(tmp_path):
    store = make_store(tmp_path)
    names = [
        experiment.train(
            store, settings("train.epochs=1", *more), runs=tmp_path / "runs", note=quiet
        ).path.name
        for more in ((), ("optim.lr=1e-4",), (), ("optim.lr=1e-4",))
    ]
    assert names == ["toy-concat-1", "toy-concat-2", "toy-concat-1", "toy-concat-2"]


def test_untrained_encoders_are_said(tmp_path):
    store = make_store(tmp_path)
    store.header.modalities["audio"] = replace(store.header.modalities["audio"], trained=False)
    said = []
    experiment.train(store, settings("train.epochs=1"), tmp_path / "run", note=said.append)
    assert any("UNTRAINED" in s and s.startswith("audio") for s in said)


def test_devices_that_are_not_there():
    with pytest.raises(DataError, match="--device gpu0"):
        devices.pick_device("gpu0")
    if not torch.cuda.is_available():
        with pytest.raises(DataError, match="--device cuda:7"):
            devices.pick_device("cuda:7")


def test_what_the_fused_losses_announce_is_passed_on():
    import logging

    said = []
    with devices.announcements(said.append):
        logging.getLogger("mer.fusion.ops").info("contrastive loss: path %s", "chunked")
    logging.getLogger("mer.fusion.ops").info("not now")
    assert said == ["contrastive loss: path chunked"]
