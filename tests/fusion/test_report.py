from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from mer.cli import main
from mer.fusion import report
from mer.fusion.evaluation.evaluate import evaluate
from mer.fusion.runs.checkpoint import Run
from mer.fusion.training import experiment
from mer.pipeline.errors import DataError

from tests.fusion.stores import make_store, quiet
from tests.fusion.test_train import SMALL, settings

pytestmark = pytest.mark.usefixtures("few_resamples")

ODD = ("<b>calm & co</b>", "glad", "sad")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two evaluated groups on one store with a label that HTML must not believe: a learnt one, and
    one trained for nothing.
    """
    folder = tmp_path_factory.mktemp("report")
    store = make_store(folder, n=240, labels=ODD)
    good = experiment.train(store, settings("train.epochs=6"), folder / "good", seeds=2, note=quiet)
    poor = experiment.train(
        store, settings("train.epochs=1", "optim.lr=1e-9"), folder / "poor", seeds=2, note=quiet
    )
    for run in (good, poor):
        evaluate(run, note=quiet)
    return good, poor


def call(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


def test_the_page_is_whole_escaped_and_needs_nothing_from_outside(runs):
    page = report.page(runs)
    assert "<b>calm" not in page and "&lt;b&gt;calm &amp; co&lt;/b&gt;" in page
    assert not re.search(r"src=|@import|<script|url\((?!#)", page)
    assert all(
        to.startswith(("#", "data:image/png;base64,"))
        for to in re.findall(r'href\s*=\s*"([^"]*)', page)
    )
    assert not re.findall(r"https?://[^\"' ]+", page)
    for svg in re.findall(r"<svg.*?</svg>", page, flags=re.S):
        ET.fromstring(svg)
    assert page.count("<svg") == page.count("</svg>") == 8
    # confusion, losses, dev for both runs; their figures and their difference
    assert page == report.page(runs)
    found = json.loads((runs[0].path / "metrics.json").read_text())
    assert f"{100 * found['metrics']['wa']:.1f} ± {100 * found['sd']['wa']:.1f}" in page


def test_compare_says_better_worse_and_undecided(runs):
    good, poor = runs
    assert report.compare(poor, good).verdict == "better"
    found = report.compare(good, poor)
    assert found.verdict == "worse" and found.metric == "wf1"
    f = found.metrics["wf1"]
    assert (
        f.difference == pytest.approx(f.second - f.first)
        and f.interval[0] <= f.difference <= f.interval[1] < 0
    )
    same = report.compare(good, good)
    assert same.verdict == "undecided" and same.metrics["wa"].interval == (0.0, 0.0)
    with pytest.raises(DataError, match="known are wa, ua"):
        report.compare(good, poor, metric="luck")


def test_lower_is_better_for_errors(tmp_path):
    store = make_store(tmp_path, n=240, task="regression")
    made = []
    for name, more in (("good", "optim.lr=3e-3"), ("poor", "optim.lr=1e-9")):
        made.append(
            experiment.train(store, settings("train.epochs=6", more), tmp_path / name, note=quiet)
        )
        evaluate(made[-1], note=quiet)
    assert (
        report.compare(made[1], made[0]).verdict == "better"
        and report.compare(made[0], made[1]).verdict == "worse"
    )


def test_only_the_same_rows_can_be_compared(runs, tmp_path):
    other = experiment.train(
        make_store(tmp_path, n=120, labels=ODD),
        settings("train.epochs=1"),
        tmp_path / "run",
        note=quiet,
    )
    with pytest.raises(DataError, match="no predictions; run `mer evaluate"):
        report.compare(runs[0], other)
    evaluate(other, note=quiet)
    with pytest.raises(DataError, match="not tested on the same rows.*; train both on the same"):
        report.compare(runs[0], other)
    third = experiment.train(
        make_store(tmp_path / "x"), settings("train.epochs=1"), tmp_path / "third", note=quiet
    )
    evaluate(third, note=quiet)
    with pytest.raises(DataError, match="other tasks or labels"):
        report.compare(runs[0], third)


def test_the_order_of_rows_does_not_matter_to_compare(runs, tmp_path):
    good, poor = runs
    before = report.compare(good, poor)
    path = poor.path / "predictions.parquet"
    table = pq.read_table(path)
    pq.write_table(table.take(pa.array(np.random.default_rng(0).permutation(len(table)))), path)
    with pytest.raises(
        DataError, match="predictions.parquet: damaged .metrics.json is of other predictions"
    ):
        report.compare(good, poor)
    figures = json.loads((poor.path / "metrics.json").read_text())
    del figures["predictions_sha256"], figures["sha256"]  # as an older mer left it
    (poor.path / "metrics.json").write_text(json.dumps(figures))
    assert report.compare(good, poor) == before


def test_undefined_figures_are_dashes():
    assert report.number("wa", None) == "–" and report.number("pearson", float("nan")) == "–"
    assert (
        report.number("wa", 0.6231) == "62.3"
        and report.number("mae", 0.6231) == "0.623"
        and report.number("wa", 0.01, signed=True) == "+1.0"
    )


def test_plain_tables_line_up():
    lines = report.plain(
        report.Table("t", ("", "a"), (("long name", "1"), ("x", "100")))
    ).splitlines()
    assert lines == ["t", "             a", "long name    1", "x          100"]


def test_from_the_command_line(tmp_path):
    """train, again, evaluate, report, compare; results on stdout, notes on stderr, exit codes as
    documented.
    """
    store = make_store(tmp_path).path
    sets = [word for s in SMALL for word in ("--set", s)]
    first = call("train", "--features", store, "--model", "concat", *sets, "--out", tmp_path / "a")
    assert first.exit_code == 0, first.output
    assert (
        first.stdout.startswith("concat on toy test, 24 utterances")
        and "epoch" not in first.stdout.split("per class")[0]
    )
    assert "epoch   1" in first.stderr
    again = call("train", "--features", store, "--model", "concat", *sets, "--out", tmp_path / "a")
    assert again.stdout == first.stdout and "already trained" in again.stderr
    # the figures of the first time were shown again
    assert len((tmp_path / "a" / "test_log.jsonl").read_text().splitlines()) == 1
    as_json = call(
        "evaluate",
        tmp_path / "a",
        "--json",
        "--predictions",
        tmp_path / "p.parquet",
        "--figures",
        tmp_path / "figures",
    )
    assert as_json.exit_code == 0, as_json.output
    assert json.loads(as_json.stdout)["metrics"]["n"] == 24
    assert (tmp_path / "p.parquet").exists() and (tmp_path / "figures" / "confusion.svg").exists()
    blind = call(
        "train", "--features", store, "--model", "text", *sets, "--out", tmp_path / "b", "--no-test"
    )
    assert (
        blind.exit_code == 0
        and blind.stdout.startswith("dev (it chose")
        and not (tmp_path / "b" / "test_log.jsonl").exists()
    )
    # not evaluated yet
    assert call("report", tmp_path / "b", "--out", tmp_path / "r.html").exit_code == 1
    some = call("report", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "r.html")
    assert some.exit_code == 0, some.output
    said = "1 run left out, no test figures; `mer evaluate` makes them: b\n"
    assert some.stderr == said and f">{tmp_path / 'b'}<" not in (tmp_path / "r.html").read_text()
    assert call("evaluate", tmp_path / "b").exit_code == 0
    made = call("report", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "r.html")
    assert made.exit_code == 0 and (tmp_path / "r.html").read_text().startswith("<!doctype html>")
    assert call("compare", tmp_path / "a", tmp_path / "a", "--fail-if", "worse").exit_code == 0
    worse = call("compare", tmp_path / "a", tmp_path / "b", "--fail-if", "worse", "--json")
    assert worse.exit_code == (1 if json.loads(worse.stdout)["verdict"] == "worse" else 0)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--set", "optim.lrr=1"], 1, "did you mean 'lr'"),
        (["--model", "bert"], 1, "unknown"),
        (["--preset", "none.toml"], 1, "no such preset"),
        (["--seeds", "0"], 1, "at least 1"),
        (["--seeds", "many"], 2, "--seeds"),
        (["--folds", "season"], 2, "--folds"),
        (["--set", "data.modalities=smell"], 1, "the store has audio, text"),
    ],
)
def test_a_wrong_command_is_one_line(tmp_path, arguments, code, says):
    store = make_store(tmp_path).path
    model = [] if {"--model", "--preset"} & set(arguments) else ["--model", "concat"]
    result = call("train", "--features", store, *model, "--out", tmp_path / "run", *arguments)
    assert result.exit_code == code and says in result.stderr
    if code == 1:
        assert (
            result.stderr.strip().splitlines()[-1].startswith("mer: ")
            and "Traceback" not in result.output
        )
    assert Run.__name__ + "(" not in result.output


def test_a_store_that_is_not_there_or_not_one(tmp_path):
    for path, content in (
        (tmp_path / "none.h5", None),
        (tmp_path / "empty.h5", b""),
        (tmp_path / "text.h5", b"hello"),
    ):
        if content is not None:
            path.write_bytes(content)
        result = call("train", "--features", path, "--model", "concat", "--out", tmp_path / "run")
        assert (
            result.exit_code in (1, 5)
            and str(path) in result.stderr
            and result.stderr.count("\n") == 1
        )
