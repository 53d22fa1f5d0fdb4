"""Pictures of a finished run: every model gets those it has something for, as PNG and SVG, and the
same files every time.
"""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from mer.fusion import config
from mer.fusion.evaluation import evaluate
from mer.fusion.report import figures, pictures
from mer.fusion.report.drawing import scene
from mer.fusion.runs.records import Bootstrap, Epoch, Scores, SingleMetrics
from mer.fusion.runtime import files
from mer.fusion.training import experiment

from tests.fusion.stores import make_store, quiet

TINY = ("width=8", "heads=2", "layers=1", "memory_layers=1", "atoms=4", "impl=eager")
COMMON = {"confusion", "losses", "dev", "unimodal"}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory, few_resamples):
    """A group of two DHMD runs on a tiny store, its figures of dev, and the folder they were drawn
    into.
    """
    folder = tmp_path_factory.mktemp("figures")
    store = make_store(folder / "feats.h5")
    sets = [*(f"model_args.{s}" for s in TINY), "train.epochs=2", "train.batch_size=16"]
    run = experiment.train(
        store, config.load(model="dhmd", sets=sets), folder / "run", seeds=2, note=quiet
    )
    found = evaluate.evaluate(run, split="dev", note=quiet)
    return run, found, figures.write(run, found, folder / "pictures")


def test_everything_the_model_has(drawn):
    _, _, written = drawn
    names = {p.stem for p in written}
    spaces = {
        f"{what}-{space}"
        for what in ("edges", "entropy", "dead", "atoms")
        for space in ("homo", "hetero")
    }
    assert names == COMMON | spaces | {"overlap", "spaces"}
    assert {p.suffix for p in written} == {".png", ".svg"} and len(written) == 2 * len(names)
    assert all(p.stat().st_size > 1000 for p in written)
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in written if p.suffix == ".png")


def test_same_run_same_files(drawn, tmp_path):
    run, found, written = drawn
    for path in figures.write(run, found, tmp_path / "again"):
        first = next(p for p in written if p.name == path.name)
        assert path.read_bytes() == first.read_bytes(), path.name


def test_no_picture_opens_the_test_part(drawn):
    run, _, _ = drawn
    assert not [c for c in run.children if (c.path / files.TEST_LOG).exists()]


def epoch(**parts) -> Epoch:
    return Epoch(**{"epoch": 1, "train": {}, "seconds": 0.0, "dev": {}} | parts)


def test_curves_are_means_with_the_range_between_runs():
    logs = [
        [epoch(diagnostics={"edge/homo/a->b": v}) for v in values]
        for values in ((0.1, 0.3, 0.5), (0.3, 0.5))
    ]
    figure = figures.draw(pictures.curves(logs, pictures.under("edge/homo/"), "edges"))
    (line,) = figure.axes[0].lines
    assert line.get_label() == "a → b"
    np.testing.assert_allclose(line.get_xydata(), [[1, 0.2], [2, 0.4], [3, 0.5]])
    assert pictures.curves(logs, pictures.under("cosine_"), "none") is None


def test_what_an_epoch_lacks_is_no_point():
    logs = [[epoch(dev={"wa": v}) for v in (None, 0.5, None, 0.7)]]
    (line,) = figures.draw(pictures.curves(logs, lambda e: e.dev, "dev")).axes[0].lines
    np.testing.assert_allclose(line.get_xydata(), [[2, 0.5], [4, 0.7]])
    (line,) = (
        figures.draw(pictures.curves([[epoch(dev={"wa": 0.5})]], lambda e: e.dev, "dev"))
        .axes[0]
        .lines
    )
    assert line.get_marker() == "."  # a line of one point would not be seen


def test_names_are_text_never_formulas(tmp_path):
    """Class names are the user's: no mathematics, no markup, and letters that no font here has are
    no error.
    """
    labels = [
        "$x^$",
        "a<b & c",
        "\u9ad8\u5174",
        "\u0633\u0639\u064a\u062f",
        "\N{GRINNING FACE}",
        "\\frac{",
        "_ _",
    ]
    found = SingleMetrics(
        metrics=Scores(confusion=np.eye(7).tolist()),
        labels=tuple(labels),
        model="m",
        dataset="$",
        split="test",
        task="single",
        select_metric="wf1",
        untrained_encoders=(),
        unlabelled=0,
        interval={},
        bootstrap=Bootstrap("utterance", 7),
    )
    with figures.style(**{"svg.fonttype": "none"}):
        page = figures.drawn_as(figures.draw(pictures.confusion(found)), "svg")
    texts = {t.text for t in ET.fromstring(page).iter("{http://www.w3.org/2000/svg}text")}
    assert {"$x^$", "a<b & c", "\u9ad8\u5174", "\\frac{"} <= texts
    with figures.style():
        figures.draw(pictures.confusion(found)).savefig(tmp_path / "x.png")


def test_principal_components_of_a_line():
    x = np.outer(np.arange(5.0), [3.0, 4.0, 0.0])
    flat, share = figures.principal(x)
    assert share.tolist() == pytest.approx([1, 0], abs=1e-9)
    assert np.abs(flat[:, 0]).tolist() == pytest.approx([10, 5, 0, 5, 10])


def test_groups_of_each_task():
    assert {
        k: v.tolist() for k, v in figures.groups(np.array([0, 1, -1]), "single", ("a", "b")).items()
    } == {
        "a": [True, False, False],
        "b": [False, True, False],
    }
    signs = figures.groups(np.array([[-1.0], [0.0], [2.0]]), "regression", ("y",))
    assert [signs[k].tolist() for k in ("negative", "neutral", "positive")] == np.eye(
        3, dtype=bool
    ).tolist()


def test_command(drawn, tmp_path):
    from click.testing import CliRunner

    from mer import cli

    run, _, _ = drawn
    args = [
        "evaluate",
        str(run.children[0].path),
        "--split",
        "dev",
        "--figures",
        str(tmp_path / "out"),
        "--json",
        "--device",
        "cpu",
    ]
    result = CliRunner().invoke(cli.main, args)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["model"] == "dhmd"
    assert (tmp_path / "out" / "edges-hetero.svg").exists() and "files to" in result.stderr


# ---- What people read off a picture


def test_counts_of_a_matrix_are_whole_or_say_that_they_are_means():
    """Three seeds that name one of six utterances wrong in different ways: '17 (0)' would read as
    a sixth of nothing.
    """
    mean = pictures.Matrix("m", "t", ("a", "b"), ((5 / 3, 1 / 3), (0.0, 2.0)))
    told = [mark.text for mark in scene(mean).marks]
    assert {"(1.7)", "(0.3)", "(2)", "(0)"} <= set(told)
    whole = pictures.Matrix("m", "t", ("a", "b"), ((5.0, 1.0), (0.0, 2.0)))
    assert {"(5)", "(1)", "(2)", "(0)"} <= {mark.text for mark in scene(whole).marks}


def test_losses_that_are_never_negative_have_no_tick_below_0():
    def of(*values):
        line = pictures.Line("ec", pictures.BLUE, "-", (1, 2, 3), values, None, None)
        return pictures.Curves("losses", "losses", "loss", (line,), log=True)

    def labels(picture):
        return [mark.text for mark in scene(picture).marks if mark.tag == "text"]

    assert not [text for text in labels(of(1.3, 0.02, 0.0)) if text.startswith("-")]
    assert [text for text in labels(of(1.3, 0.02, -0.4)) if text.startswith("-")]
    with figures.style():
        assert figures.draw(of(1.3, 0.02, 0.0)).axes[0].get_ylim()[0] > -1e-3
        assert figures.draw(of(1.3, 0.02, -0.4)).axes[0].get_ylim()[0] < -0.3


def test_the_line_of_chance_leaves_out_names_and_figures():
    rows = tuple(pictures.Dot(f"run-{n}", 0.5, 0.4, 0.6) for n in range(3))
    drawn = scene(pictures.Intervals("f", "t", "WA (%)", rows, 0.5, "chance 50.0", True)).marks
    lines = [m.attributes for m in drawn if m.attributes["class"] == "chance"]
    names = [m.attributes["y"] for m in drawn if "halo" in str(m.attributes["class"])]
    assert len(lines) == 3
    assert not [y for y in names for one in lines if one["y1"] < y - 2 < one["y2"]]
