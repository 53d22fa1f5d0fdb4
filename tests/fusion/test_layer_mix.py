"""Layers of an encoder, mixed by learned weights: the module by hand, and training, resuming,
evaluating and drawing on stores that hold layer means or stacks.
"""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from mer.fusion import config, report
from mer.fusion.batch import Block, DataSpec, FeatureSet
from mer.fusion.data import feature_sets, sources
from mer.fusion.evaluation import answering, evaluate
from mer.fusion.modules.layer_mix import LayerMix
from mer.fusion.report import figures, pictures
from mer.fusion.runs.checkpoint import Run
from mer.fusion.training import experiment, resume
from mer.fusion.training.training_setup import spec_of
from mer.pipeline.errors import DataError, KeyMismatchError

from tests.fusion.stores import make_store, quiet

SMALL = ("train.epochs=3", "train.batch_size=16")


def settings(model: str, *sets: str) -> config.TrainConfig:
    own = ("d=16", "layers=1", "heads=2", "ffn=32") if model == "fusion" else ()
    return config.load(model=model, sets=[*(f"model_args.{s}" for s in own), *SMALL, *sets])


# ---- The module


def test_equal_weights_are_the_mean_of_the_layers():
    x = torch.arange(12.0).view(2, 6)
    np.testing.assert_allclose(LayerMix(3, 2)(x).detach(), [[2, 3], [8, 9]])


@pytest.mark.parametrize("layer", range(3))
def test_all_weight_on_one_layer_is_that_layer(layer):
    mix, x = LayerMix(3, 4), torch.randn(5, 7, 12)
    mix.weight.data[layer] = 200.0
    torch.testing.assert_close(mix(x), x[..., 4 * layer : 4 * layer + 4])


def test_the_gradient_is_that_of_the_softmax():
    """d z / d w_k = s_k (x_k - z) for one number a layer."""
    mix, x = LayerMix(3, 1), torch.tensor([[1.0, 5.0, -2.0]])
    mix.weight.data[:] = torch.tensor([0.0, np.log(2.0), np.log(5.0)])
    z = mix(x)
    z.sum().backward()
    shares = np.array([1, 2, 5]) / 8
    value = (shares * [1, 5, -2]).sum()
    assert z.item() == pytest.approx(value)
    np.testing.assert_allclose(mix.weight.grad, shares * (np.array([1, 5, -2]) - value), rtol=1e-6)


# ---- What is read


def test_blocks_of_a_spec():
    sets = (FeatureSet("audio", 4, means=3, stack=(1, 2)), FeatureSet("audio.egemaps", 2))
    spec = DataSpec({"audio": 6}, {"audio": None}, "single", ("a", "b"), {"audio": sets})
    steps = [Block("audio", (1, 2), 4), Block("audio.egemaps", (), 2)]
    assert spec.blocks("audio", summary=False) == steps
    means = [Block("audio", (0, 1, 2), 4), Block("audio.egemaps", (), 2)]
    # layer means come without a deviation: it would be that of one layer, maybe the worst
    assert spec.blocks("audio", summary=True) == [
        *means,
        replace(steps[1], label="audio.egemaps deviation"),
    ]
    assert list(spec.sources) == ["audio", "audio.egemaps"] and spec.mixes


def test_a_summary_is_the_layer_means(tmp_path):
    store = make_store(tmp_path, n=20, means={"audio": 3}, absent={"audio": [4]})
    chosen = settings("audio")
    spec = spec_of(store, chosen)
    assert spec.modalities == {"audio": 8} and spec.sources["audio"].means == 3
    rows = np.arange(20)
    part = sources.batch_source(
        store, spec, chosen.data, rows, np.zeros(20, np.int64), device="cpu", summary=True
    )
    for streamed in (False, True):
        part.packed = {} if streamed else part.packed
        batch = part.batch(rows[::-1].copy())
        assert batch.x["audio"].shape == (20, 1, 3 * 8) and batch.lengths["audio"][15] == 0
        means = store.layer_means("audio")
        for place, row in enumerate(rows[::-1]):
            x = batch.x["audio"][place, 0].numpy()
            if row == 4:
                assert not x.any()
                continue
            np.testing.assert_array_equal(x, means[row].reshape(-1))


def test_where_layers_are_mixed_no_step_is_read(tmp_path, monkeypatch):
    """Nor held against its checksum; what is there is as the lengths say, whatever the pooling."""
    absent = {"audio": [4, 5]}
    store = make_store(tmp_path, n=20, means={"audio": 3}, absent=absent)
    steps = store.lengths("audio")

    def unexpected(*_args, **_kwargs):
        raise AssertionError("steps were read")

    for name in ("packed", "batch", "features", "check"):
        monkeypatch.setattr(type(store), name, unexpected)
    rows = np.arange(20)
    for hz in ("inf", "12.5", "0.5"):
        chosen = settings("audio", f"data.pool_hz={hz}")
        spec = spec_of(store, chosen)
        part = sources.batch_source(
            store, spec, chosen.data, rows, np.zeros(20, np.int64), device="cpu", summary=True
        )
        assert part.resident and part.n["audio"].tolist() == (steps > 0).astype(int).tolist()
        x, lengths = part.read(rows, "audio")
        assert lengths.tolist() == part.n["audio"].tolist() and lengths.dtype == np.int64
        np.testing.assert_array_equal(x, store.layer_means("audio")[steps > 0].reshape(18, 24))
        # each row once, though it was read twice: 3 layers of 8 numbers in float16
        assert part.checked.bytes == 18 * 3 * 8 * 2 and part.checked.seconds > 0


def test_auto_mixes_where_there_are_layers_and_leaves_other_stores_alone(tmp_path):
    plain = make_store(tmp_path / "plain")
    kept = make_store(tmp_path / "kept", means={"audio": 3})
    stack = make_store(tmp_path / "stack", stacks={"audio": (2, 3)})
    assert not spec_of(plain, settings("concat")).sets
    assert spec_of(kept, settings("concat")).sources["audio"].means == 3
    assert not spec_of(kept, settings("concat")).sources["text"].means
    assert not spec_of(kept, settings("concat", "data.layers=stored")).sets
    assert not spec_of(kept, settings("fusion")).sets  # reads steps, of which there is one layer
    spec = spec_of(stack, settings("fusion"))
    assert spec.sources["audio"] == FeatureSet("audio", 8, stack=(2, 3))
    assert spec.modalities == {"audio": 8, "text": 6}
    wide = spec_of(stack, settings("fusion", "data.layers=stored"))
    assert not wide.sets and wide.modalities == {"audio": 16, "text": 6}
    assert spec_of(stack, settings("audio")).sources["audio"].stack == (2, 3)


@pytest.mark.parametrize(
    ("model", "kept", "remedy"),
    [
        ("concat", {}, "has no layer means of what this model reads; extract again with --layer"),
        ("fusion", {"means": {"audio": 3}}, "has no layers side by side .* --audio-layer stack:"),
    ],
)
def test_mix_without_layers_is_one_line(tmp_path, model, kept, remedy):
    store = make_store(tmp_path, **kept)
    with pytest.raises(DataError, match=remedy) as refused:
        experiment.train(store, settings(model, "data.layers=mix"), tmp_path / "run", note=quiet)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 300 + len(str(tmp_path))


# ---- Training


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A store whose signal is in the second of four layers, and a run of two seeds on it."""
    folder = tmp_path_factory.mktemp("kept")
    store = make_store(folder, means={"audio": 4, "text": 3})
    sets = ("train.epochs=25", "data.modalities=audio")
    run = experiment.train(
        store, settings("audio", *sets), folder / "run", seeds=2, note=quiet, device="cpu"
    )
    return store, run


def test_the_weights_find_the_layer_and_are_logged_drawn_and_kept(kept, tmp_path, few_resamples):
    store, run = kept
    child = run.children[0]
    assert child.config.data.layers == "mix"
    logs = [pictures.read_log(one) for one in run.children]
    for entry in logs[0]:
        weights = entry.layers["audio"]
        assert list(weights) == ["0", "1", "2", "3"] and sum(weights.values()) == pytest.approx(1)
    assert max(logs[0][-1].layers["audio"].items(), key=lambda pair: pair[1])[0] == "1"
    chosen = pictures.chosen_layers(run.children, logs)
    best = logs[1][run.children[1].result.best_epoch - 1]
    assert chosen["audio"]["1"][1] == best.layers["audio"]["1"] and len(chosen["audio"]["1"]) == 2
    shares = child.model().layer_weights()["audio"]
    of_best = logs[0][child.result.best_epoch - 1].layers["audio"]
    assert shares == pytest.approx(of_best, abs=1e-6)
    found = evaluate.evaluate(run, note=quiet)
    again = answering.predict_rows(child, store, range(len(store)))
    assert again.num_rows == len(store)
    names = {p.name for p in figures.write(run, found, tmp_path / "pictures")}
    assert {"layers.png", "layers.svg"} <= names
    assert "where the emotion is" in report.page([run])
    assert report.compare(run, run).verdict == "undecided"


@pytest.mark.parametrize("model", ["concat", "fusion"])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, monkeypatch, model):
    from mer.fusion.training import train

    monkeypatch.setattr(resume, "SAVE_SECONDS", 0)
    store = make_store(tmp_path, means={"audio": 3}, stacks={"audio": (1, 2)})
    chosen = settings(model)
    whole = experiment.train(store, chosen, tmp_path / "whole", note=quiet, device="cpu")
    epoch = train._one_epoch

    def killed(training, keeper, parts, progress):
        if progress.epoch == 2:
            raise KeyboardInterrupt
        return epoch(training, keeper, parts, progress)

    monkeypatch.setattr(train, "_one_epoch", killed)
    with pytest.raises(KeyboardInterrupt):
        experiment.train(store, chosen, tmp_path / "cut", note=quiet, device="cpu")
    monkeypatch.undo()
    cut = experiment.train(store, chosen, tmp_path / "cut", note=quiet, device="cpu")
    assert cut.result.model_sha256 == whole.result.model_sha256
    mixes = [name for name in whole.model().state_dict() if name.endswith(".weight")]
    assert any(name.startswith("mix.") for name in mixes)


@pytest.mark.parametrize("task", ["multi", "regression"])
def test_other_tasks(tmp_path, task):
    store = make_store(tmp_path, means={"audio": 3}, task=task)
    run = experiment.train(store, settings("concat"), tmp_path / "run", note=quiet, device="cpu")
    assert run.finished and pictures.read_log(run)[-1].layers["audio"].keys() == {"0", "1", "2"}


def test_a_store_without_layers_keeps_the_text_and_the_hash_of_its_runs(tmp_path):
    """config.toml and run.json name nothing that an earlier mer did not."""
    store = make_store(tmp_path)
    run = experiment.train(store, settings("concat"), tmp_path / "run", note=quiet, device="cpu")
    assert "layers" not in (run.path / "config.toml").read_text()
    said = json.loads((run.path / "run.json").read_text())
    assert "sets" not in said["spec"]
    assert set(said["store"]["modalities"]["audio"]) == {
        "dim", "frame_rate", "encoder", "revision", "layer", "trained"
    }  # fmt: skip
    log = (run.path / "log.jsonl").read_text().splitlines()
    assert all("layers" not in json.loads(line) for line in log)


# ---- Another store


def test_a_run_that_mixes_asks_for_the_same_layers(kept, tmp_path):
    _, run = kept
    for name, made, said in (
        (
            "none",
            {},
            "has no layer means of audio, which .* mixes; .* again with --layer-means --force",
        ),
        ("fewer", {"means": {"audio": 3}}, "audio.layers: 4 -> 3"),
        ("stack", {"means": {"audio": 4}, "stacks": {"audio": (1, 2)}}, "audio.stack"),
    ):
        make_store(tmp_path / name, **made)
        with pytest.raises(KeyMismatchError, match=said) as refused:
            evaluate.evaluate(run, tmp_path / name / "feats.h5", note=quiet)
        assert "\n" not in str(refused.value)


def test_a_run_that_mixes_none_takes_stores_with_and_without(tmp_path, few_resamples):
    store = make_store(tmp_path / "plain")
    make_store(tmp_path / "kept", means={"audio": 3})
    run = experiment.train(store, settings("concat"), tmp_path / "run", note=quiet, device="cpu")
    found = evaluate.evaluate(run, tmp_path / "kept" / "feats.h5", note=quiet)
    assert found.metrics["wf1"] == evaluate.evaluate(run, note=quiet).metrics["wf1"]


def test_layers_that_are_no_number_of_the_store_are_damage(kept, tmp_path):
    _, run = kept
    path = run.children[0].path / "run.json"
    text = path.read_text()
    for old, new in (('"means": 4', '"means": 5'), ('"width": 8', '"width": 7')):
        assert old in text
        value = json.loads(text.replace(old, new))
        from mer.fusion.runs.records import run_info

        with pytest.raises(ValueError, match="spec and store differ"):
            run_info(value)
    assert Run.open(path.parent).spec.sources["audio"].means == 4


# ---- Several feature sets

BOTH = {"audio": 8, "text": 6, "audio.egemaps": 3}


def source(store, wanted: str, *, model: str = "fusion", **more) -> sources.BatchSource:
    chosen = settings(model, f"data.modalities={wanted}")
    spec, rows = spec_of(store, chosen), np.arange(len(store))
    return sources.batch_source(
        store,
        spec,
        replace(chosen.data, **more),
        rows,
        np.zeros(len(rows), np.int64),
        device="cpu",
        summary=model != "fusion",
    )


def test_a_set_is_chosen_and_keeps_the_name_of_its_modality(tmp_path):
    store = make_store(tmp_path, modalities=BOTH, vectors=["audio.egemaps"])
    part = source(store, '["text", "audio.egemaps"]')
    assert part.spec.modalities == {"audio": 3, "text": 6}
    batch = part.batch(np.arange(5))
    np.testing.assert_array_equal(batch.x["audio"][2, 0], store.features("audio.egemaps", 2)[0])
    assert list(source(store, "all").spec.modalities.values()) == [8, 6]
    assert feature_sets.unread(store, source(store, "all").spec) == ["audio.egemaps"]


@pytest.mark.parametrize("residence", ["device", "stream"])
@pytest.mark.parametrize("vectors", [["audio.egemaps"], []])
def test_joined_sets_stand_side_by_side(tmp_path, vectors, residence):
    """One step is repeated; equal steps are joined step by step."""
    store = make_store(tmp_path, n=24, modalities=BOTH, vectors=vectors, rate=12.5)
    part = source(store, "audio+audio.egemaps,text", residence=residence)
    assert part.spec.modalities == {"audio": 11, "text": 6}
    order = np.arange(24)[::-1].copy()
    batch = part.batch(order)
    for place, row in enumerate(order):
        n = int(batch.lengths["audio"][place])
        assert n == store.lengths("audio")[row]
        x = batch.x["audio"][place, :n].numpy()
        np.testing.assert_array_equal(x[:, :8], store.features("audio", row))
        other = np.broadcast_to(store.features("audio.egemaps", row), (n, 3))
        np.testing.assert_array_equal(x[:, 8:], other)


def test_a_joined_modality_is_there_where_all_of_it_is_and_the_rest_is_counted(tmp_path):
    absent = {"audio": [0, 1], "audio.egemaps": [1, 4, 5]}
    store = make_store(
        tmp_path, modalities=BOTH, vectors=["audio.egemaps"], absent=absent, means={"audio": 3}
    )
    for model in ("fusion", "audio"):
        part = source(store, "audio+audio.egemaps", model=model)
        lengths = part.batch(np.arange(8)).lengths["audio"]
        assert ((lengths == 0).numpy() == [1, 1, 0, 0, 1, 1, 0, 0]).all()
    said: list[str] = []
    chosen = settings("audio", "data.modalities=audio+audio.egemaps")
    run = experiment.train(store, chosen, tmp_path / "run", note=said.append, device="cpu")
    assert any("3 of 96 utterances lack one of them and count as without" in s for s in said), said
    assert set(pictures.read_log(run)[-1].layers) == {"audio"}
    assert run.spec.modalities == {"audio": 11}


@pytest.mark.parametrize("model", ["drkf", "dmd", "dhmd"])
def test_models_that_know_modalities_by_name_get_joined_sets_under_it(tmp_path, model):
    own = {"drkf": ("d=16", "layers=1", "heads=2", "ffn=32", "ae_layers=8,4", "d_p=16")}
    tiny = own.get(model, ("width=8", "heads=2", "layers=1", "memory_layers=1"))
    store = make_store(tmp_path, modalities=BOTH, vectors=["audio.egemaps"], n=40)
    sets = [*(f"model_args.{s}" for s in tiny), "train.epochs=1"]
    chosen = config.load(model=model, sets=[*sets, "data.modalities=text,audio+audio.egemaps"])
    run = experiment.train(store, chosen, tmp_path / "run", note=quiet, device="cpu")
    assert run.spec.modalities == {"audio": 11, "text": 6}
    table = answering.predict_rows(run, store, range(len(store)))
    assert "pred_audio" in table.column_names


def test_sets_that_do_not_fit_together_are_one_line(tmp_path):
    store = make_store(tmp_path, modalities=BOTH | {"text.b": 2}, vectors=["audio.egemaps"])
    for wanted, said in (
        ("audio+audio.mfcc", "no such features; the store has audio, audio.egemaps, text, text.b"),
        ("audio+text", "joins what is not several feature sets of one modality"),
        ("audio+audio", "joins what is not several feature sets of one modality"),
        ("audio,audio.egemaps", r"names audio twice; to join feature sets write audio\+audio.ege"),
    ):
        with pytest.raises(DataError, match=said) as refused:
            source(store, wanted)
        assert "\n" not in str(refused.value) and len(str(refused.value)) < 300


def test_steps_that_differ_are_one_line_and_no_matter_to_a_pooled_model(tmp_path):
    store = make_store(tmp_path, modalities=BOTH, rate=50.0)  # pooled by four, egemaps is not
    with pytest.raises(DataError, match="audio and audio.egemaps cannot be joined: of"):
        source(store, "audio+audio.egemaps")
    assert source(store, "audio+audio.egemaps", model="audio").width("audio") == 22


def test_only_further_sets(tmp_path):
    one = make_store(tmp_path / "one", modalities={"audio.a": 3, "text": 6})
    assert source(one, "all").spec.modalities == {"audio": 3, "text": 6}
    two = make_store(
        tmp_path / "two",
        modalities={"audio.a": 3, "audio.b": 2, "text": 6},
        vectors=["audio.a", "audio.b"],
    )
    for wanted in ("all", "audio"):
        said = "the store has audio.a, audio.b and no audio: say which"
        with pytest.raises(DataError, match=said):
            source(two, wanted)
    assert source(one, "audio").spec.sources.keys() == {"audio.a"}


def test_a_list_in_a_preset_is_what_a_comma_is(tmp_path):
    preset = tmp_path / "own.toml"
    preset.write_text('model = "concat"\n[data]\nmodalities = ["text", "audio+audio.egemaps"]\n')
    chosen = config.load(preset=str(preset))
    assert chosen.data.modalities == "text,audio+audio.egemaps"
    assert config.from_toml(config.to_toml(chosen), "again") == chosen
