"""Options that were each made alone, in one command: ensembles of unlike runs, seeds of several
targets, searches over published folds, processes whose loss diverges.
"""

from __future__ import annotations

from multiprocessing import Pipe
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from mer.cli import main
from mer.fusion.config import DataConfig, load
from mer.fusion.data import splits
from mer.fusion.evaluation import ensemble, evaluate, robustness, scoring
from mer.fusion.report.gathering import gather
from mer.fusion.report.page import _overview
from mer.fusion.report.page_parts import Named
from mer.fusion.report.results import remarks
from mer.fusion.runs import prediction_table, run_rows, runs_table
from mer.fusion.runs.checkpoint import Run
from mer.fusion.runtime import pool
from mer.fusion.training import experiment, members, tuning, tuning_results
from mer.fusion.training.members import Member, Setting
from mer.fusion.training.one_epoch import DivergedError
from mer.fusion.training.space import spaces_of
from mer.fusion.training.trials import SearchResult
from mer.pipeline.errors import DataError
from mer.pipeline.interchange.export import export
from mer.pipeline.store import FeatureStore, build_index

from tests.fusion.stores import LABELS, make_store, quiet

SMALL = ("model_args.hidden=8", "train.epochs=2", "train.batch_size=16")
NAMES = ("valence", "arousal")


def trained(store: FeatureStore, folder: Path, *sets: str, model="concat", **options) -> Run:
    config = load(model=model, sets=[*SMALL, *sets])
    return experiment.train(store, config, folder, note=quiet, **options)


def with_turns(folder: Path, shift: int = 0, **made) -> FeatureStore:
    """A small store whose rows have a place in their dialogue and a part in three folds."""
    with make_store(folder, n=60, **made) as store:
        header, rows = store.header, store.table().to_pylist()
    for number, row in enumerate(rows):
        fold = number // 4 % 3
        row["position"] = (number + shift) % 4
        row["folds"] = [f"{name}={'test' if name == fold else 'train'}" for name in range(3)]
    known = ("id", "split", "dialogue", "speaker", "label", "targets", "position", "folds")
    return build_index(
        folder / "feats.h5",
        sorted((folder / "feats.shards").glob("*.h5")),
        [{name: row[name] for name in known} for row in rows],
        dataset=header.dataset,
        task=header.task,
        labels=header.labels,
        modalities=header.modalities,
    )


# ---- Ensembles


def test_an_ensemble_of_unlike_runs_speaks_of_all_of_them(tmp_path):
    store = with_turns(tmp_path / "store")
    text = trained(store, tmp_path / "text", model="text")
    context = ("data.context=past", "data.context_width=2")
    audio = trained(store, tmp_path / "audio", *context, model="audio")
    found = ensemble.score([text, audio], predictions=tmp_path / "p.parquet", note=quiet)
    assert found.modalities == ("text", "audio") and found.model == "text+audio"
    assert found.context == "none+past 2" and found.seed is None
    turns = pq.read_table(tmp_path / "p.parquet")["turns"].to_pylist()
    assert turns == [0, 1, 2, 2] * 3, "the first of a dialogue has none before it"
    alone = ensemble.score([text, trained(store, tmp_path / "other", model="concat")], note=quiet)
    assert alone.context is None


def test_thresholds_and_unlearnt_labels_of_an_ensemble_are_of_all_runs(tmp_path):
    store = make_store(tmp_path / "store", n=60, task="multi", signal=0.5)
    group = trained(store, tmp_path / "run", seeds=2)
    found = ensemble.score([group], note=quiet)
    each = [child.result.thresholds for child in group.children]
    assert each[0] != each[1]
    assert found.thresholds == pytest.approx(np.mean(each, axis=0))


def test_of_values_there_are_no_probabilities(tmp_path):
    store = make_store(tmp_path / "store", n=60, task="regression", targets=NAMES)
    group = trained(store, tmp_path / "run", seeds=2)
    found = ensemble.score([group], predictions=tmp_path / "p.parquet", note=quiet)
    assert remarks(found)[0] == "An ensemble: the mean of the values of 2 runs."
    evaluate.evaluate(group, note=quiet)
    tables = [pq.read_table(child.path / "predictions.parquet") for child in group.children]
    means = [np.mean([table[f"value_{name}"] for table in tables], axis=0) for name in NAMES]
    said = pq.read_table(tmp_path / "p.parquet")["pred"].to_pylist()
    np.testing.assert_allclose(said, np.stack(means, axis=1))


# ---- Intervals over seeds


def one_seed(seed: int, wrong: int) -> prediction_table.Predicted:
    """Thirty utterances, the first of them answered wrongly."""
    label = [LABELS[row % 3] for row in range(30)]
    pred = [LABELS[(row + (row < wrong)) % 3] for row in range(30)]
    table = pa.table({"id": [f"u{row:02}" for row in range(30)], "label": label, "pred": pred})
    return prediction_table.from_table(table, "single", LABELS)


def test_no_interval_over_seeds_ends_where_no_figure_can_be():
    each = [one_seed(0, 0), one_seed(1, 8)]
    found = scoring.intervals_of(each, np.arange(30))
    assert found["wa"][1] == 1.0 and found["wf1"][1] == 1.0
    assert all(0 <= low < high <= 1 for low, high in found.values())


# ---- Labels, searches, lists, files


def test_of_several_targets_only_one_that_does_not_vary_is_told():
    target = np.array([[-0.5, 4.0], [0.25, 4.0], [-1.0, 4.0], [0.5, 2.0]], np.float32)
    said = splits.label_notes(target, np.array([0, 1, 2]), np.array([3, 0]), NAMES, "regression")
    assert said == ["all train targets of arousal are 4"]
    table = pa.table({"split": ["train", "train", "train", "dev"]})
    plan = splits.assign(table, target, DataConfig(), labels=NAMES, task="regression")
    assert plan.notes == (
        "all train targets of arousal are 4",
        "all dev targets of valence are 0.5",
        "all dev targets of arousal are 2",
    )


def searched(store: FeatureStore, folder: Path, *sets: str, **options) -> list[SearchResult]:
    base = load(model="concat", sets=[*SMALL, *sets])
    return tuning.tune(
        store,
        [base],
        spaces_of(["concat"], []),
        folder,
        **{"trials": 1, "note": quiet} | options,
    )


def test_a_search_over_published_folds_says_how_its_winner_is_trained(tmp_path):
    store = with_turns(tmp_path / "store")
    words = ["tune", str(store.path), "--model", "concat", "--trials", "1", "--device", "cpu"]
    sets = [word for one in ("train.epochs=1", "train.batch_size=16") for word in ("--set", one)]
    out = tmp_path / "out"
    done = CliRunner().invoke(main, [*words, *sets, "--folds", "published", "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert done.stdout.rstrip().endswith("concat.toml --folds published")
    assert done.stdout.startswith("dev WF1, mean of published folds, without context")
    names = sorted(path.name for path in (out / "concat" / "trial-000").glob("fold-*"))
    assert names == ["fold-0", "fold-1", "fold-2"]


def test_a_search_with_context_is_of_one_order_of_turns(tmp_path):
    store = with_turns(tmp_path / "store")
    searched(store, tmp_path / "context", "data.context=past")
    searched(store, tmp_path / "none")
    other = with_turns(tmp_path / "store", shift=1)
    with pytest.raises(DataError, match="holds another search"):
        searched(other, tmp_path / "context", "data.context=past")
    searched(other, tmp_path / "none")


def test_a_search_that_draws_its_context_is_of_one_order_of_turns(tmp_path):
    """What the space says of the context counts as what --set says of it."""
    path = tmp_path / "space.toml"
    drawn = "[optim]\nlr = [1e-3, 1e-2]\n[data]\ncontext ="
    path.write_text(f'{drawn} "past"\n')
    assert spaces_of(["concat"], [path])[0].values("data.context") == ("past",)
    path.write_text(f'{drawn} ["none", "past"]\n')
    spaces = spaces_of(["concat"], [path])
    base = [load(model="concat", sets=SMALL)]
    out = tmp_path / "out"
    store = with_turns(tmp_path / "store")
    first = tuning.tune(store, base, spaces, out, trials=1, note=quiet)
    assert tuning.tune(store, base, spaces, out, trials=1, note=quiet)[0].trials == first[0].trials
    kind = first[0].trials[0].settings["data.context"]
    seen = "without context" if kind == "none" else "context past 8"
    assert f", {seen}; best of n" in tuning_results.table(first, 1).title
    other = with_turns(tmp_path / "store", shift=1)
    with pytest.raises(DataError, match="holds another search"):
        tuning.tune(other, base, spaces, out, trials=1, note=quiet)


def test_a_loss_that_diverges_in_a_process_is_told_as_one(tmp_path):
    store = make_store(tmp_path / "store", n=60)
    config = load(model="concat", sets=[*SMALL, "optim.lr=1e25"])
    task = members._Task(
        Path(store.path), Member("seed-0", None, config), tmp_path, Setting("cpu"), 1, True
    )
    ours, theirs = Pipe()
    kind, failed = pool._answer(members._trained, task, "seed-0", theirs)
    ours.close()
    theirs.close()
    assert kind == "failed" and isinstance(failed, DivergedError)
    assert str(failed).startswith("seed-0: epoch 1: the loss is no longer finite")


def test_settings_that_files_leave_out_are_compared_at_their_defaults(tmp_path):
    store = make_store(tmp_path / "store", n=60)
    trained(store, tmp_path / "runs" / "plain", model="audio")
    more = ("optim.ema=0.5", "train.calibrate=temperature", "model_args.pooling=attentive")
    trained(store, tmp_path / "runs" / "other", *more, model="audio")
    rows = [run_rows.read(tmp_path / "runs" / name) for name in ("plain", "other")]
    assert set(runs_table.differing(rows)) == {
        "optim.ema",
        "train.calibrate",
        "model_args.pooling",
    }
    assert [row.settings["optim.ema"] for row in rows] == [0.0, 0.5]
    assert not set(runs_table.differing(rows[:1] * 2))


def test_robustness_on_another_store_lies_beside_that_of_the_run(tmp_path):
    store = make_store(tmp_path / "store", n=60)
    run = trained(store, tmp_path / "run", model="text")
    robustness.measure(run, split="dev", note=quiet)
    other = make_store(tmp_path / "other", n=60, seed=1, dataset="elsewhere")
    robustness.measure(run, other.path, "dev", note=quiet)
    found = sorted(path.name for path in run.path.glob("robustness*"))
    assert found == ["robustness-dev-elsewhere.json", "robustness-dev.json"]
    assert robustness.stored(run, "dev").dataset == "toy"


def test_a_form_with_one_target_takes_no_store_of_several(tmp_path):
    store = make_store(tmp_path / "store", n=20, task="regression", targets=NAMES)
    with pytest.raises(DataError, match=r"2 targets per utterance \(valence, arousal\)") as caught:
        export(store, "mmsa", tmp_path / "x.pkl")
    assert "export to single, npy or parquet" in str(caught.value)
    assert not (tmp_path / "x.pkl").exists()


def test_of_two_errors_of_one_target_the_smaller_is_the_better(tmp_path):
    store = make_store(tmp_path / "store", n=60, task="regression", targets=NAMES)
    by = "train.select_metric=mae_valence"
    found = searched(store, tmp_path / "out", by, trials=2)[0]
    assert found.best.score == min(trial.score for trial in found.trials)
    assert "dev MAE of valence" in Path(found.preset).read_text()
    group = trained(store, tmp_path / "run", by, seeds=2)
    dev = {child.path: child.result.dev["mae_valence"] for child in group.children}
    assert len(set(dev.values())) == 2 and group.best().path == min(dev, key=dev.__getitem__)


def test_a_report_of_values_and_classes_has_its_figures_in_one_order(tmp_path):
    values = make_store(tmp_path / "values", n=60, task="regression", targets=NAMES)
    classes = make_store(tmp_path / "classes", n=60)
    named = []
    for number, store in enumerate((values, classes)):
        run = trained(store, tmp_path / f"run-{number}", seeds=2, model="text")
        evaluate.evaluate(run, note=quiet)
        named.append(run.path)
    told, _, _ = gather(named)
    table = _overview([Named(one.run.path.name, "", one) for one in told]).table
    assert table.columns[4:] == (
        *("WA", "UA", "WF1", "macro-F1"),
        *("CCC", "CCC of valence", "CCC of arousal"),
        *("MAE", "MAE of valence", "MAE of arousal"),
        *("Pearson", "Pearson of valence", "Pearson of arousal"),
    )
    assert table.rows[0][4:8] == ("–",) * 4 and table.rows[1][8:] == ("–",) * 9
    assert all(" ± " in cell for cell in (*table.rows[0][8:], *table.rows[1][4:8]))
