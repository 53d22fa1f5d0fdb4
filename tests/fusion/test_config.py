from __future__ import annotations

import math

import pytest

from mer.fusion import config
from mer.fusion.models import REGISTRY
from mer.pipeline.errors import DataError


@pytest.mark.parametrize("model", sorted(REGISTRY))
def test_every_model_has_a_config_that_survives_toml(model):
    made = config.load(model=model)
    assert made.model == model
    assert config.from_toml(config.to_toml(made), "test") == made


@pytest.mark.parametrize("name", sorted(config.presets()))
def test_every_preset_loads_for_a_known_model(name):
    assert config.load(preset=name).model in REGISTRY


def test_set_converts_to_the_type_of_the_field():
    made = config.load(
        model="concat",
        sets=[
            "optim.lr=3e-5",
            "train.epochs=7",
            "data.standardise=false",
            "optim.betas=0.8,0.9",
            "data.pool_hz=inf",
            "train.class_weight=sqrt",
            "model_args.hidden=16",
            "data.modalities=audio,text",
            "train.epochs=8",
        ],
    )
    assert (made.optim.lr, made.train.epochs, made.data.standardise, made.optim.betas) == (
        3e-5,
        8,
        False,
        (0.8, 0.9),
    )
    assert (
        made.data.pool_hz == math.inf
        and made.train.class_weight == "sqrt"
        and made.model_args.hidden == 16
    )
    assert config.from_toml(config.to_toml(made), "test") == made


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("optim.lr", "TABLE.KEY=VALUE"),
        ("lr=1", "TABLE.KEY=VALUE"),
        ("optm.lr=1", "did you mean 'optim'"),
        ("optim.lrr=1", "did you mean 'lr'"),
        ("optim.lr=fast", "expected a number"),
        ("optim.lr=-1", "above 0"),
        ("optim.lr=nan", "above 0"),
        ("optim.betas=0.9", "expected 2 values"),
        ("train.epochs=2.5", "a whole number"),
        ("train.epochs=0", "at least 1"),
        ("data.standardise=yes", "true or false"),
        ("train.class_weight=heavy", "none, balanced, sqrt"),
        ("model_args.widht=3", "known: hidden"),
        ("data.dev_share=1.5", "between 0 and 1"),
        ("optim.lr.x=1", "expected a number"),
    ],
)
def test_a_wrong_set_is_one_line_that_names_the_remedy(text, says):
    with pytest.raises(DataError, match=says) as raised:
        config.load(model="concat", sets=[text])
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("model", "text"), [("drkf", "w_ed=-1"), ("drkf", "w_mi=nan"), ("dmd", "weight_margin=-0.01")]
)
def test_a_loss_term_weighs_0_or_more(model, text):
    """Below 0 a term would be learnt backwards, and the figures would not say so."""
    with pytest.raises(DataError, match=r"at least 0 \(0: off\) and finite"):
        config.load(model=model, sets=[f"model_args.{text}"])


def test_the_weight_of_a_shared_part_is_no_share():
    made = config.load(model="dmd", sets=["model_args.weight_shared=2"])
    assert made.model_args.weight_shared == 2


def test_preset_files(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('model = "concat"\n[optim]\nlr = 1\n[model_args]\nhidden = 9\n')
    made = config.load(preset=str(path), sets=["optim.lr=2e-3"])
    assert made.model_args.hidden == 9 and made.optim.lr == 2e-3
    with pytest.raises(DataError, match="is for model concat"):
        config.load(preset=str(path), model="text")
    path.write_text('model = "concat"\n[optimiser]\nlr = 1\n')
    with pytest.raises(DataError, match="unknown key 'optimiser'"):
        config.load(preset=str(path))
    path.write_text("model = [")
    with pytest.raises(DataError, match="not valid TOML"):
        config.load(preset=str(path))
    path.write_text('model = "concat"\n[train]\nepochs = "3x"\n')
    with pytest.raises(DataError, match="a whole number"):
        config.load(preset=str(path))
    for bad in ('"concat"\n[optim]\nlr = -1', '"drkf"\n[model_args]\ntau = 2'):
        path.write_text(f"model = {bad}\n")
        with pytest.raises(DataError, match=f"^preset {path}: "):
            config.load(preset=str(path))
    path.write_text('model = "concat"\noptim = 3\n')
    with pytest.raises(DataError, match="is a table"):
        config.load(preset=str(path))


def test_unknown_model_and_preset():
    with pytest.raises(DataError, match="did you mean 'concat'"):
        config.load(model="conact")
    with pytest.raises(DataError, match="no such preset or file.* and [0-9]+ more$"):
        config.load(preset="nothing-of-the-kind")


def test_differences_name_the_default_of_what_is_left_out():
    """A run that an earlier preset began, without the cooldown that today's has."""
    before, now = (
        config.to_tree(config.load(model="drkf", sets=[f"train.cooldown={epochs}"]))
        for epochs in (0, 5)
    )
    assert config.differences(before, now) == ["train.cooldown: 0 -> 5"]


def test_differences_name_the_leaves():
    a, b = (
        config.load(model="concat", sets=[f"optim.lr={lr}", f"train.seed={seed}"])
        for lr, seed in ((3e-4, 0), (1, 3))
    )
    assert config.differences(config.to_tree(a), config.to_tree(b)) == [
        "optim.lr: 0.0003 -> 1.0",
        "train.seed: 0 -> 3",
    ]
