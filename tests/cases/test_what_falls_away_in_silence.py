"""DRKF on one modality trained without its cross-modal terms and without emotion discrimination,
and nothing said so; nor was it said of other settings and terms that nothing came of.
"""

from __future__ import annotations

import pytest

from mer.fusion import config
from mer.fusion.training import experiment

from tests.fusion.stores import make_store
from tests.fusion.test_crosscorpus import renamed

SMALL = {
    "drkf": ("d=16", "layers=1", "ffn=32", "heads=2", "d_p=8", "ae_layers=8"),
    "fusion": ("d=16", "layers=1", "ffn=32", "heads=2"),
    "dmd": ("width=8", "heads=2", "layers=1", "memory_layers=1"),
    "dhmd": ("width=8", "heads=2", "layers=1", "memory_layers=1", "atoms=4"),
    "concat": ("hidden=8",),
    "audio": ("hidden=8",),
}


def told(tmp_path, model: str, *sets: str, made=None, **given) -> list[str]:
    """What a training says before its first step."""
    store = made or make_store(tmp_path, n=40, **given)
    small = [f"model_args.{one}" for one in SMALL[model]]
    asked = config.load(model=model, sets=[*small, "train.epochs=1", *sets])
    said: list[str] = []
    experiment.train(store, asked, tmp_path / "run", note=said.append, device="cpu")
    return said


ALONE = "data.modalities=audio"


@pytest.mark.parametrize(
    ("model", "sets", "says"),
    [
        (
            "drkf",
            (ALONE,),
            "drkf: reads audio alone, so that it has no cross-modal terms (w_cross) and no emotion "
            "discrimination (w_ed)",
        ),
        (
            "drkf",
            (ALONE, "model_args.w_ed=0"),
            "drkf: reads audio alone, so that it has no cross-modal terms (w_cross)",
        ),
        ("fusion", (ALONE,), "fusion: reads audio alone: there is nothing to fuse"),
        ("concat", (ALONE,), "concat: reads audio alone: there is nothing to fuse"),
        (
            "drkf",
            ("train.batch_size=1", "model_args.w_ed=0"),
            "drkf: w_mi and w_cross: nothing is learnt in batches of one row",
        ),
        (
            "dmd",
            ("train.batch_size=1",),
            "dmd: weight_margin: nothing is learnt in batches of one row",
        ),
        (
            "dhmd",
            ("train.batch_size=1",),
            "dhmd: weight_dictionary: nothing is learnt in batches of one row",
        ),
        (
            "concat",
            ("model_args.regression_loss=mse",),
            "model_args.regression_loss does nothing: the task is single",
        ),
        (
            "concat",
            ("model_args.turn_dropout=0.1",),
            "model_args.turn_dropout does nothing without data.context=past or both",
        ),
        (
            "concat",
            ("optim.plateau_factor=0.1",),
            "optim.plateau_factor does nothing without optim.schedule=plateau",
        ),
        (
            "concat",
            ("data.dev_share=0.5",),
            "data.dev_share does nothing: the store has a dev part",
        ),
        (
            "drkf",
            ("model_args.ed_jaccard=0.5",),
            "drkf: model_args.ed_jaccard does nothing: the task is single",
        ),
    ],
)
def test_what_falls_away_is_said_once(tmp_path, model, sets, says):
    assert told(tmp_path, model, *sets).count(says) == 1


@pytest.mark.parametrize("model", ["drkf", "dmd", "concat", "audio"])
def test_nothing_is_said_where_nothing_falls_away(tmp_path, model):
    said = told(tmp_path, model)
    assert not [line for line in said if "nothing" in line or "no " in line], said


def test_of_numbers_labels_are_not_smoothed(tmp_path):
    sets = ("model_args.label_smoothing=0.1", "model_args.regression_loss=mse")
    said = told(tmp_path, "concat", *sets, task="regression")
    assert "model_args.label_smoothing does nothing: the task is regression" in said
    assert not any("regression_loss" in line for line in said)


def test_seeds_say_it_once(tmp_path):
    store = make_store(tmp_path, n=40)
    asked = config.load(model="concat", sets=["train.epochs=1", "model_args.hidden=8", ALONE])
    said: list[str] = []
    experiment.train(store, asked, tmp_path / "run", seeds=2, note=said.append, device="cpu")
    assert sum("nothing to fuse" in line for line in said) == 1


def test_modalities_that_no_row_has_together(tmp_path):
    apart = {"audio": range(0, 40, 2), "text": range(1, 40, 2)}
    said = told(tmp_path, "concat", absent=apart)
    what = "no training row has both audio and text: what they say together is not learnt"
    assert said.count(what) == 1
    # of three modalities any two are together in some row, and never all
    three = {m: range(k, 40, 3) for k, m in enumerate(("audio", "text", "vision"))}
    widths = {"audio": 6, "text": 5, "vision": 4}
    said = told(tmp_path / "three", "concat", absent=three, modalities=widths)
    assert "no training row has audio, text and vision together" in said
    assert not any("has both" in line for line in said)


def test_a_context_in_which_nobody_has_a_neighbour(tmp_path):
    def lone(row: dict) -> dict:
        return {**row, "dialogue": row["id"], "position": 0}

    made = renamed(make_store(tmp_path, n=40), lone)
    said = told(tmp_path, "concat", "data.context=past", made=made)
    for part, size in (("train", 24), ("dev", 8)):
        line = f"context of {part}: past 8, 0.0 turns each; {size} of {size} utterances without any"
        assert said.count(f"{line}: data.context changes nothing there") == 1, said


def test_rows_without_shares_are_counted(tmp_path):
    def shares(row: dict) -> dict:
        known = int(row["id"][1:]) % 4
        return {**row, "targets": [0.5, 0.25, 0.25] if known else None}

    made = renamed(make_store(tmp_path, n=40), shares)
    said = told(tmp_path, "concat", "data.soft_labels=true", made=made)
    train = [row for row in range(40) if row // 4 % 5 < 3]
    lacking = sum(row % 4 == 0 for row in train)
    what = f"data.soft_labels: {lacking} of {len(train)} training rows without shares of raters, "
    assert said.count(f"{what}learnt by label") == 1, said
