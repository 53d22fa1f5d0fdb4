"""A clip without a modality got the answer of that modality's head to nothing (found by a user)."""

from __future__ import annotations

import csv
import io

import pytest

from mer.commands import predicting
from mer.fusion.evaluation import answer_text
from mer.fusion.training import experiment

from tests.fusion.stores import make_store, quiet
from tests.fusion.test_train import settings

WITHOUT_TEXT, WHOLE = "u000", "u001"
TASKS = ("single", "multi", "regression")


def predicted(tmp_path, task: str, ids, *, seeds: int = 1):
    """What `mer predict` makes of some clips whose features are those of a store's rows."""
    store = make_store(tmp_path, n=60, task=task, absent={"text": [0]})
    config = settings("train.epochs=1", model="drkf")
    run = experiment.train(store, config, tmp_path / "run", seeds=seeds, note=quiet)
    clips = [predicting.Utterance(id=name, audio="a.wav") for name in ids]
    rows = predicting._rows(run.children, store, clips, {}, "cpu", predicting.SILENT)
    return rows, run.children[0].spec


def cells(rows, spec) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(answer_text.as_csv(rows, spec))))


@pytest.mark.parametrize("task", TASKS)
def test_a_head_says_nothing_of_a_modality_that_the_clip_lacks(tmp_path, task):
    rows, spec = predicted(tmp_path, task, [WITHOUT_TEXT, WHOLE])
    without, whole = rows
    assert without["missing"] == ["text"] and whole["missing"] == []
    assert without["pred_text"] is None and without["pred_audio"] is not None
    assert whole["pred_text"] is not None and whole["pred_audio"] is not None
    said = [line for line in answer_text.prediction_lines(without, spec) if "each alone" in line]
    assert len(said) == 1 and said[0].endswith("  text –") and "audio –" not in said[0]
    assert "–" not in "".join(
        line for line in answer_text.prediction_lines(whole, spec) if "each alone" in line
    )
    assert cells(rows, spec)[0]["pred_text"] == ""
    # alone, too: the model has the head, so the column is there
    assert cells(rows[:1], spec)[0]["pred_text"] == ""


def test_a_mean_over_seeds_has_no_answers_of_heads(tmp_path):
    rows, spec = predicted(tmp_path, "single", [WITHOUT_TEXT], seeds=2)
    assert not any(name.startswith("pred_") for name in rows[0])
    lines = answer_text.prediction_lines(rows[0], spec)
    assert not any("each alone" in line for line in lines)
