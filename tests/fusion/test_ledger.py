"""The ledger of test openings: who has seen a test part is counted over all runs of a store, and
nothing that happens to the file is believed, fatal or kept quiet.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from mer.cli import main
from mer.fusion import report
from mer.fusion.evaluation import ensemble, opening_rows
from mer.fusion.evaluation import evaluate as evaluation
from mer.fusion.evaluation.evaluate import evaluate
from mer.fusion.runs import ledger
from mer.fusion.runtime import files, typed
from mer.fusion.training import experiment
from mer.pipeline.errors import DataError

from tests.disk import files_of_at_most
from tests.fusion.stores import make_store, quiet, with_rows
from tests.fusion.test_train import SMALL, settings

pytestmark = pytest.mark.usefixtures("few_resamples")

ONE = ledger.Opening(
    id="0123456789abcdef",
    time="2026-11-29T10:00:00+00:00",
    store="/corpora/feats.h5",
    fingerprint="f",
    rows=24,
    content="c" * 64,
    configuration="a" * 64,
    training="t" * 64,
    run="/runs/one",
    model="concat",
    dataset="toy",
    seed=0,
)


@pytest.fixture
def state(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "mer" / "ledgers"


def call(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


def train(store, folder, *more: str, seeds=1, folds=None):
    return experiment.train(
        store,
        settings("train.epochs=1", *more),
        folder,
        seeds=seeds,
        folds=folds,
        note=quiet,
    )


def told(run, **more) -> str:
    """The line about the test part that an evaluation ends with."""
    lines: list[str] = []
    evaluate(run, note=lines.append, **more)
    return next(line for line in lines if line.startswith("test part: "))


def note_into(folder: Path, opening: ledger.Opening, lines: list[str] | None = None) -> Path:
    """The ledger beside a store in `folder`, after one more opening."""
    say = quiet if lines is None else lines.append
    ledger.record(opening, log=folder / "test_log.jsonl", store=folder / "feats.h5", note=say)
    return folder / "feats.ledger.jsonl"


# ---- What is counted


def test_rows_are_known_by_ids_and_references_alone():
    """By hand: the JSON of task, labels and the sorted pairs."""
    wanted = '["single", ["a", "b"], [["u1", "a"], ["u2", "b"]]]'
    found = ledger.content_of("single", ("a", "b"), ["u2", "u1"], ["b", "a"])
    assert found == hashlib.sha256(wanted.encode()).hexdigest()
    assert found != ledger.content_of("single", ("a", "b"), ["u2", "u1"], ["b", "b"])
    assert found != ledger.content_of("single", ("a", "c"), ["u2", "u1"], ["b", "a"])


def test_configurations_and_trainings_that_saw_the_rows(tmp_path, state):
    """Two seeds are one configuration; a fold is another test part."""
    store = make_store(tmp_path)
    one = train(store, tmp_path / "one")
    first = "test part: 24 rows, seen by 1 configuration (1 training)"
    assert told(one) == first
    assert told(one) == first
    assert told(train(store, tmp_path / "three", seeds=3)).endswith("1 configuration (3 trainings)")
    other = train(store, tmp_path / "other", "optim.lr=1e-4")
    assert "by 2 configurations (4 trainings)" in told(other)
    lines = (tmp_path / "feats.ledger.jsonl").read_text().splitlines()
    assert len(lines) == 6 and not state.exists()
    # one writer: the run's own log has the same opening
    (short,) = (other.path / "test_log.jsonl").read_text().splitlines()
    assert json.loads(short).items() <= json.loads(lines[-1]).items()
    folds = told(train(store, tmp_path / "folds", folds="session"))
    assert folds.startswith("test part: 120 rows, seen by 1 configuration (3 trainings)")
    assert folds.endswith("; other test rows of this store by 1 more")
    # that of the folds has the same settings as the first, and has seen other rows
    assert told(one).startswith("test part: 24 rows, seen by 2 configurations (4 trainings)")


def test_an_ensemble_is_a_configuration_of_its_own(tmp_path, state):
    """Whoever tries five sets of runs on test has tried five things, though no run is new. Those
    that answered only together have not been seen alone.
    """
    store = make_store(tmp_path)
    seeds = train(store, tmp_path / "seeds", seeds=2)
    other = train(store, tmp_path / "other", "optim.lr=1e-4")
    said: list[str] = []

    def tried(*runs) -> str:
        ensemble.score(runs, note=said.append)
        return said[-1]

    assert tried(seeds) == "test part: 24 rows, seen by 1 configuration (2 trainings)"
    assert tried(other, seeds).endswith("by 2 configurations (3 trainings)")
    assert tried(seeds, other).endswith("by 2 configurations (3 trainings)")
    assert told(seeds).endswith("by 3 configurations (3 trainings)")
    lines: list[str] = []
    ensemble.score([seeds], split="dev", note=lines.append)
    assert not [line for line in lines if "test part" in line]
    assert len(ledger.read(ledger.beside(store.path)).openings) == 2 + 3 + 3 + 2


def test_a_dev_part_is_no_opening(tmp_path):
    run = train(make_store(tmp_path), tmp_path / "run")
    lines: list[str] = []
    evaluate(run, split="dev", note=lines.append)
    assert not [line for line in lines if "test part" in line]
    assert not (tmp_path / "feats.ledger.jsonl").exists()


def test_refused_rows_are_not_opened(tmp_path):
    store = make_store(tmp_path)
    run = train(store, tmp_path / "run")
    rows = store.table().to_pylist()
    for row in rows:
        row["split"] = "test"
    with_rows(store, rows)
    with pytest.raises(DataError, match="used in training"):
        evaluate(run, note=quiet)
    assert not (tmp_path / "feats.ledger.jsonl").exists()
    assert not (run.path / "test_log.jsonl").exists()


def test_other_features_of_the_same_rows_are_another_configuration(tmp_path):
    """Fifty encoders are fifty openings, though the settings are the same."""
    told(train(make_store(tmp_path), tmp_path / "one"))
    again = make_store(tmp_path, signal=1.0, name="other.h5", modalities={"audio": 8, "text": 5})
    assert "by 1 configuration" in told(train(again, tmp_path / "two"))
    shutil.copy(tmp_path / "feats.ledger.jsonl", tmp_path / "other.ledger.jsonl")
    assert "by 2 configurations (2 trainings)" in told(train(again, tmp_path / "three"))


def test_a_store_that_moved_with_its_ledger_keeps_the_count(tmp_path):
    (tmp_path / "here").mkdir()
    store = make_store(tmp_path / "here")
    run = train(store, tmp_path / "run")
    told(run)
    store.close()
    (tmp_path / "here").rename(tmp_path / "there")
    moved = tmp_path / "there" / "feats.h5"
    assert told(run, features=moved).endswith("(1 training)")
    found = ledger.read(tmp_path / "there" / "feats.ledger.jsonl").openings
    assert len(found) == 2 and len({one.content for one in found}) == 1


def test_a_store_that_moved_without_its_ledger_is_noticed(tmp_path):
    (tmp_path / "here").mkdir()
    store = make_store(tmp_path / "here")
    run, other = train(store, tmp_path / "run"), train(store, tmp_path / "other", "optim.lr=1e-4")
    told(run), told(other)
    (tmp_path / "here" / "feats.ledger.jsonl").unlink()
    found = report.compare(run, other).seen
    assert (found.configurations, found.trainings, found.missing) == (2, 2, 2)
    assert found.line().endswith("; 2 trainings here not in its ledger, but counted")
    assert "seen by 2 configurations" in report.page([run, other])


def test_a_run_that_moved_is_the_same_training(tmp_path):
    run = train(make_store(tmp_path), tmp_path / "run")
    told(run)
    run.path.rename(tmp_path / "elsewhere")
    assert told(tmp_path / "elsewhere").endswith("by 1 configuration (1 training)")


def test_runs_of_an_earlier_mer_are_counted(tmp_path):
    """Their logs name no rows; that their figures are at hand says that they saw them."""
    folder = shutil.copytree(Path(__file__).parent / "version1", tmp_path / "version1")
    runs = [evaluation.Run.open(path) for path in sorted((folder / "runs").iterdir())]
    done = [run for run in runs if (run.path / "metrics.json").exists()][:1]
    p = report.results.predictions(done[0])[0]
    found = opening_rows.seen(done[0].children, p)
    assert found.configurations == 1 and found.missing == len(done[0].children)


# ---- The command line


def test_train_opens_once_and_no_test_never(tmp_path):
    """`train` ends with the test table, again without opening; `--no-test` leaves no trace."""
    store = make_store(tmp_path).path
    place = tmp_path / "feats.ledger.jsonl"
    sets = [word for s in SMALL for word in ("--set", s)]
    asked = ("train", store, "--model", "concat", *sets)
    blind = call(*asked, "--out", tmp_path / "blind", "--no-test")
    assert blind.exit_code == 0, blind.output
    assert not place.exists() and not (tmp_path / "blind" / "test_log.jsonl").exists()
    assert "test part: " not in blind.output
    first = call(*asked, "--out", tmp_path / "a")
    assert "test part: 24 rows, seen by 1 configuration (1 training)" in first.stderr
    assert call(*asked, "--out", tmp_path / "a").stdout == first.stdout
    assert len(place.read_text().splitlines()) == 1
    b = call("train", store, "--model", "text", *sets, "--out", tmp_path / "b")
    assert "seen by 2 configurations (2 trainings)" in b.stderr
    compared = call("compare", tmp_path / "a", tmp_path / "b")
    assert "seen by 2 configurations (2 trainings)" in compared.stdout
    assert "p (Holm)" in compared.stdout and "\none seed each: " in compared.stdout
    assert "24 utterances are few" in compared.stdout
    as_json = json.loads(call("compare", tmp_path / "a", tmp_path / "b", "--json").stdout)
    figures = as_json["metrics"].values()
    assert all(one["p"] <= one["p_holm"] <= 1 for one in figures) and len(figures) == 4
    assert as_json["seen"]["configurations"] == 2 and as_json["seen"]["missing"] == 0
    place.write_text(place.read_text().replace("concat", "concot"))
    broken = call("compare", tmp_path / "a", tmp_path / "b")
    assert broken.exit_code == 0 and "1 of 2 lines damaged (line 1)" in broken.stderr
    assert "1 training here not in its ledger, but counted" in broken.stdout
    page = call("report", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "r.html")
    assert page.exit_code == 0
    text = (tmp_path / "r.html").read_text()
    assert "1 of 2 lines damaged (line 1)" in text and "seen by 2 configurations" in text
    assert "p (Holm)" in text and "95 % interval (24 utterances)" in text


# ---- What happens to the file


APPENDING = """
import json, sys
from dataclasses import replace
from pathlib import Path
from mer.fusion.runs import ledger
from mer.fusion.runtime import typed

folder, name = Path(sys.argv[1]), sys.argv[2]
one = typed.convert(ledger.Opening, json.loads(sys.argv[3]))
(folder / name).touch()
while not ((folder / "a").exists() and (folder / "b").exists()):
    pass
for n in range(40):
    line = replace(one, id=f"{name}{n}")
    ledger.record(line, log=folder / f"{name}.log", store=folder / "feats.h5", note=print)
"""


def test_two_processes_append_at_once(tmp_path, state):
    """Forty lines from each of two; each is whole and there once."""
    given = json.dumps(typed.tree(ONE))
    asked = [[sys.executable, "-c", APPENDING, str(tmp_path), name, given] for name in "ab"]
    both = [subprocess.Popen(one) for one in asked]
    assert [one.wait(timeout=120) for one in both] == [0, 0]
    found = ledger.read(tmp_path / "feats.ledger.jsonl")
    wanted = {f"{name}{n}" for name in "ab" for n in range(40)}
    assert found.trouble is None and len(found.openings) == 80
    assert {one.id for one in found.openings} == wanted


@pytest.mark.parametrize("cut", [1, 40, 400])
def test_a_line_that_a_crash_cut_short(tmp_path, state, cut):
    """The next line stands for itself; the cut one is named, and those before are sound."""
    place = note_into(tmp_path, ONE)
    with place.open("ab") as file:
        file.write(ledger.as_line(replace(ONE, id="cut")).encode()[:cut])
    assert "1 of 2 lines damaged (line 2)" in str(ledger.read(place).trouble)
    note_into(tmp_path, replace(ONE, id="next"))
    found = ledger.read(place)
    assert [one.id for one in found.openings] == [ONE.id, "next"]
    assert "1 of 3 lines damaged (line 2)" in str(found.trouble)


def test_a_cut_line_with_the_next_one_behind_it(tmp_path, state):
    """As another program would have appended it."""
    place = tmp_path / "feats.ledger.jsonl"
    whole = ledger.as_line(ONE)
    place.write_text(f"{whole[:100]}{whole}\n")
    found = ledger.read(place)
    assert found.openings == (ONE,) and "1 of 1 line damaged (line 1)" in str(found.trouble)


def test_a_flipped_bit_changes_no_count_in_silence(tmp_path, state):
    """Four hundred flips: what is read is what was written, and what is missing is told."""
    lines = [replace(ONE, id=f"{n:016x}", configuration=f"{n}" * 64) for n in range(3)]
    place = tmp_path / "feats.ledger.jsonl"
    sound = "".join(f"{ledger.as_line(one)}\n" for one in lines).encode()
    rng = np.random.default_rng(0)
    for _ in range(400):
        raw = bytearray(sound)
        bit = int(rng.integers(8 * len(raw)))
        raw[bit // 8] ^= 1 << bit % 8
        place.write_bytes(raw)
        found = ledger.read(place)
        assert set(found.openings) <= set(lines), bit
        lost = len(lines) - len(found.openings)
        assert lost <= 1 and (found.trouble is not None or not lost), bit
        if found.trouble is not None:
            assert str(place) in found.trouble and "damaged" in found.trouble
            assert len(found.trouble.replace(str(tmp_path), "")) <= 300


@pytest.mark.parametrize(
    "line",
    [
        "",
        "x",
        "{}",
        "[]",
        "null",
        '{"id": "a"}',
        "{" * 100_000,
        '{"sha256": "0"}',
        "\x00",
        "9" * 9999,
    ],
)
def test_a_line_that_mer_did_not_write(tmp_path, state, line):
    place = note_into(tmp_path, ONE)
    place.write_text(place.read_text() + line + "\n")
    found = ledger.read(place)
    assert found.openings == (ONE,)
    assert (found.trouble is None) == (not line)


def test_a_ledger_beyond_its_bound_is_said(tmp_path, state, monkeypatch):
    place = note_into(tmp_path, ONE)
    note_into(tmp_path, replace(ONE, id="second"))
    monkeypatch.setattr(ledger, "LEDGER_BYTES", len(ledger.as_line(ONE)) + 1)
    found = ledger.read(place)
    assert found.openings == (ONE,) and "longer than" in str(found.trouble)


# ---- Where it cannot be written


def test_a_folder_that_takes_no_file(tmp_path, state):
    """/proc takes none, not even root's: the line goes into the state folder, and is read there."""
    lines: list[str] = []
    ledger.record(ONE, log=tmp_path / "log", store=Path("/proc/feats.h5"), note=lines.append)
    (kept,) = state.iterdir()
    assert kept.name == f"{'c' * 32}.jsonl" and ledger.read(kept).openings == (ONE,)
    assert len(lines) == 1 and lines[0].endswith(f"the opening is noted in {kept}")
    found = ledger.seen([ONE.content], 24, [Path("/proc/feats.h5")], [])
    assert (found.trainings, found.configurations) == (1, 1)
    # a store that could be written to later has both
    note_into(tmp_path, replace(ONE, id="second", configuration="b" * 64, training="b"))
    found = ledger.seen([ONE.content], 24, [tmp_path / "feats.h5"], [])
    assert (found.trainings, found.configurations) == (2, 2)


def test_other_rows_of_a_store_whose_folder_takes_no_file(tmp_path, state):
    """A label that was corrected makes other test rows; the state folder has a file for each."""
    store = Path("/proc/feats.h5")
    here = replace(ONE, store=str(store))
    corrected = replace(here, id="2", content="d" * 64, configuration="b" * 64, training="b")
    stranger = replace(corrected, id="3", store="/elsewhere/feats.h5", configuration="e" * 64)
    for one in (here, corrected, stranger):
        ledger.record(one, log=tmp_path / "log", store=store, note=quiet)
    found = ledger.seen([ONE.content], 24, [store], [])
    assert (found.configurations, found.elsewhere) == (1, 1)
    assert found.line().endswith("; other test rows of this store by 1 more")
    # damage of a file that is about other rows is nobody's here
    (state / f"{'d' * 32}.jsonl").write_text("{\n")
    found = ledger.seen([ONE.content], 24, [store], [])
    assert found.elsewhere == 0 and not found.troubles


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes into any folder")
def test_a_read_only_folder(tmp_path, state):
    (tmp_path / "store").mkdir(mode=0o555)
    ledger.record(ONE, log=tmp_path / "log", store=tmp_path / "store" / "feats.h5", note=quiet)
    assert len(list(state.iterdir())) == 1


def test_evaluation_goes_on_without_any_ledger(tmp_path, monkeypatch):
    """Neither beside the store nor at home: the figures of hours of training are still made."""
    run = train(make_store(tmp_path), tmp_path / "run")
    appended = files.append_line

    def read_only(path: Path, line: str, **more) -> None:
        if path.name != "test_log.jsonl":
            raise OSError(30, "Read-only file system", str(path))
        appended(path, line, **more)

    monkeypatch.setattr(files, "append_line", read_only)
    lines: list[str] = []
    assert evaluate(run, note=lines.append).metrics.n == 24
    (said,) = (line for line in lines if "cannot be written" in line)
    assert "Read-only file system" in said and said.endswith("test_log.jsonl of the run only")
    assert len(said.replace(str(tmp_path), "")) <= 300
    assert any("1 training here not in its ledger, but counted" in line for line in lines)


def test_no_home(tmp_path, monkeypatch):
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setattr(Path, "home", nowhere)
    lines: list[str] = []
    ledger.record(ONE, log=tmp_path / "log", store=Path("/proc/feats.h5"), note=lines.append)
    assert "(no home folder)" in lines[0]
    assert ledger.seen([ONE.content], 24, [], []).trainings == 0


def test_a_relative_state_folder_is_ignored(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", "state")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert str(ledger.in_state("c")).startswith(str(tmp_path / ".local" / "state" / "mer"))


def test_a_full_disk_takes_no_half_line(tmp_path, state):
    """A limit on the size of files stands for it: what was written of the line is cut off again,
    and the line goes where there is room.
    """
    place = note_into(tmp_path, ONE)
    whole = place.read_bytes()
    place.write_bytes(whole * 20)
    lines: list[str] = []
    with files_of_at_most(len(whole) * 20 + 100):
        note_into(tmp_path, replace(ONE, id="late"), lines)
    assert place.read_bytes() == whole * 20
    (kept,) = state.iterdir()
    assert [one.id for one in ledger.read(kept).openings] == ["late"]
    assert "File too large" in lines[0]


@pytest.mark.parametrize("what", ["pipe", "folder", "link", "link to nothing"])
def test_something_else_in_its_place(tmp_path, state, what):
    """It is neither followed nor waited for."""
    place = tmp_path / "feats.ledger.jsonl"
    (tmp_path / "thesis.tex").write_text("mine")
    match what:
        case "pipe":
            os.mkfifo(place)
        case "folder":
            place.mkdir()
        case _:
            place.symlink_to(tmp_path / ("thesis.tex" if what == "link" else "nowhere"))
    lines: list[str] = []
    note_into(tmp_path, ONE, lines)
    assert "cannot be written" in lines[0] and len(list(state.iterdir())) == 1
    assert (tmp_path / "thesis.tex").read_text() == "mine" and not (tmp_path / "nowhere").exists()
    found = ledger.seen([ONE.content], 24, [tmp_path / "feats.h5"], [])
    assert found.trainings == 1


@pytest.mark.parametrize("said", ["", "/", ".", "\0", "x" * 5000, 3, None])
def test_a_run_that_names_no_store(tmp_path, said):
    log = tmp_path / "test_log.jsonl"
    log.write_text(json.dumps({"store": said}) + "\nnot JSON\n")
    found = ledger.seen(["c"], 24, ledger.stores_of(log), [("a", "b")])
    assert (found.configurations, found.missing) == (1, 1)
