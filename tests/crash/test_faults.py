"""What goes wrong around an extraction: disks, clocks, clips, names, files of others.

Never a wrong feature, and one line that helps.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from mer import cli
from mer.pipeline.errors import DataError, FailuresError, StoreError
from mer.pipeline.extraction import Share, extract, repair
from mer.pipeline.extraction.fingerprint import fingerprint
from mer.pipeline.extraction.memory import FileMemory
from mer.pipeline.manifest import Manifest
from mer.pipeline.store import FeatureStore, Shard

from tests.crash.runs import ROOT, again, check, fresh, in_workers
from tests.extract import corpus

TINY = [
    "--audio-encoder",
    "builtin:tiny-wav2vec2",
    "--text-encoder",
    "builtin:tiny-roberta",
    "--offline",
]


def mer(*args: str):
    return CliRunner().invoke(cli.main, [str(arg) for arg in args])


@pytest.fixture
def read_only(tmp_path):
    """`read_only(folder)` makes it so by a mount, which holds for root, too."""
    mounted: list[Path] = []

    def make(folder: Path) -> None:
        if subprocess.run(
            ["mount", "--bind", "-o", "ro", folder, folder], capture_output=True
        ).returncode:
            pytest.skip("mounting is not permitted here")
        mounted.append(folder)

    yield make
    for folder in mounted:
        subprocess.run(["umount", folder], check=True)


# --- the disk


def test_a_read_only_output_is_one_line(undisturbed, tmp_path, read_only):
    made, _ = undisturbed
    folder = fresh(made, tmp_path / "x")
    (tmp_path / "out").mkdir()
    read_only(tmp_path / "out")
    result = mer(
        "extract",
        "--manifest",
        folder / "manifest.parquet",
        *TINY,
        "--out",
        tmp_path / "out" / "feats.h5",
    )
    assert result.exit_code == 1
    last = result.stderr.splitlines()[-1]
    assert (
        last.startswith("mer: ")
        and str(tmp_path / "out") in last
        and "Read-only" in last
        and "--out" in last
    )


def test_a_finished_store_on_a_read_only_mount_is_used_as_it_is(undisturbed, tmp_path, read_only):
    made, _ = undisturbed
    folder = shutil.copytree(made, tmp_path / "x")
    read_only(folder)
    assert again(folder).action == "nothing"
    changed = dataclasses.replace(
        Manifest.read(folder / "manifest.parquet"), labels=("a", "b", "c")
    )
    with pytest.raises(OSError, match="Read-only"):
        extract(changed, folder / "feats.h5", corpus.options())


# --- files of others in a store's place


@pytest.fixture
def other(run, tmp_path) -> Path:
    """A store of the same recipe over other clips."""
    folder = tmp_path / "other"
    corpus.make(folder, seed=9)
    assert run(folder)[0] == 0
    return folder


def test_a_shard_of_another_cache_in_its_place_is_found_and_only_it_is_made_again(
    undisturbed, other, tmp_path
):
    made, _ = undisturbed
    folder = shutil.copytree(made, tmp_path / "x")
    shards = sorted((folder / "feats.shards").glob("shard-*.h5"))
    before = corpus.digests(folder / "feats.shards")
    shutil.copy(next((other / "feats.shards").glob("shard-00001-*.h5")), shards[1])
    result = mer("verify", folder / "feats.h5")
    assert result.exit_code == 5 and shards[1].name in result.stderr and "--repair" in result.stderr
    with pytest.raises(StoreError):
        FeatureStore(folder / "feats.h5").packed("audio")
    report = repair(folder / "feats.h5", decoders=0)
    after = corpus.digests(folder / "feats.shards")
    assert after.keys() == before.keys() and {
        name for name in after if after[name] != before[name]
    } <= {shards[1].name}
    assert 0 < report.extracted < 24
    FeatureStore(folder / "feats.h5").verify()


def test_the_head_of_another_cache_makes_the_head_again_and_no_feature(
    undisturbed, other, tmp_path
):
    made, _ = undisturbed
    folder = shutil.copytree(made, tmp_path / "x")
    shutil.copy(other / "feats.h5", folder / "feats.h5")
    assert mer("verify", folder / "feats.h5").exit_code == 5
    report = again(folder)
    assert (report.extracted, report.reused) == (0, 24)
    check(folder, made)


# --- clocks and clips


def test_a_clock_that_was_set_back(undisturbed, tmp_path, monkeypatch):
    """Every file is from the future, and what is written now is older than what was written before:
    hashed again, never believed.
    """
    made, _ = undisturbed
    folder = fresh(made, tmp_path / "x")
    again(folder)
    now, now_ns, year = time.time, time.time_ns, 365 * 86_400
    monkeypatch.setattr(time, "time", lambda: now() - year)
    monkeypatch.setattr(time, "time_ns", lambda: now_ns() - year * 10**9)
    assert again(folder).action == "nothing"
    size = (folder / "clip3.wav").stat().st_size
    corpus.write_clip(folder / "clip3.wav", (size - 44) / 2 / 16_000, seed=400)
    assert (folder / "clip3.wav").stat().st_size == size, (
        "as long as before, only the bytes are others"
    )
    os.utime(folder / "clip3.wav", ns=(time.time_ns(), time.time_ns()))
    assert again(folder).extracted == 1
    memory = FileMemory()
    memory.sha256(folder / "clip3.wav")
    assert not memory.files, (
        "a file from the future may change again within its tick: not remembered"
    )
    expected = fresh(folder, tmp_path / "expected")
    again(expected)
    np.testing.assert_allclose(
        FeatureStore(folder / "feats.h5").features("audio", 3),
        FeatureStore(expected / "feats.h5").features("audio", 3),
        atol=4e-3,
    )


@pytest.mark.parametrize("change", ["audio", "text", "gone"])
def test_something_changes_between_a_killed_run_and_the_next(run, undisturbed, tmp_path, change):
    """What is left of the killed run is of another content: the store is that of a run that saw the
    new content only.
    """
    made, total = undisturbed
    folder = fresh(made, tmp_path / "x")
    assert run(folder, total // 2)[0] == -signal.SIGKILL
    if change == "text":
        manifest = Manifest.read(folder / "manifest.parquet")
        rows = [
            dataclasses.replace(u, text="something else") if u.id == "u007" else u
            for u in manifest.rows
        ]
        dataclasses.replace(manifest, rows=tuple(rows)).write(folder / "manifest.parquet")
    elif change == "audio":
        corpus.write_clip(folder / "clip7.wav", 0.4, seed=70)
    else:
        (folder / "clip7.wav").unlink()
    expected = fresh(folder, tmp_path / "expected")
    shutil.rmtree(expected / "feats.shards", ignore_errors=True)
    for place in (folder, expected):
        again(place, max_failures=change == "gone")
    FeatureStore(folder / "feats.h5").verify()
    assert fingerprint_of(folder) == fingerprint_of(expected)
    a, b = FeatureStore(folder / "feats.h5"), FeatureStore(expected / "feats.h5")
    assert len(a) == len(b) == 24 - (change == "gone")
    for modality in ("audio", "text"):
        np.testing.assert_allclose(a.packed(modality)[0], b.packed(modality)[0], atol=4e-3)


def fingerprint_of(folder: Path) -> str:
    return fingerprint(Manifest.read(folder / "manifest.parquet"), corpus.options())


# --- decoders

HANGING = """
import sys
if sys.argv[0] == "-m" or "mer.pipeline.media.workers" in " ".join(getattr(sys, "orig_argv", [])):
    import mer.pipeline.media.audio as media
    load, probe = media.load, media.probe
    def hang(path, **keywords):
        if "clip5" in str(path) and not (folder / "repaired").exists():
            %s
        return load(path, **keywords)
    media.load = hang
"""


@pytest.mark.parametrize(
    ("does", "stage"),
    [
        ("import time; time.sleep(1000)", "timeout"),
        ("import os; os.kill(os.getpid(), 9)", "killed"),
        ("import os; os.abort()", "decode"),
    ],
)
def test_a_decoder_that_hangs_or_dies_costs_one_clip_and_is_tried_again(
    undisturbed, tmp_path, monkeypatch, does, stage
):
    made, _ = undisturbed
    folder = fresh(made, tmp_path / "x")
    for name, value in in_workers(folder, HANGING % does).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(FailuresError, match="1 utterance failed") as error:
        again(folder, decoders=1, decode_timeout=3.0)
    failure = error.value.report.failures[0]
    assert (failure.id, failure.stage) == ("u005", stage) and "clip5.wav" in failure.reason
    FeatureStore(folder / "feats.h5").verify()
    assert len(FeatureStore(folder / "feats.h5")) == 23
    (folder / "repaired").touch()
    if stage == "decode":
        # the clip's own fault, as far as can be told: not tried again until it changes
        with pytest.raises(FailuresError):
            again(folder, decoders=1)
    else:
        assert again(folder, decoders=1).utterances == 24
        FeatureStore(folder / "feats.h5").verify()


# --- network file systems


@pytest.fixture
def late(monkeypatch) -> list[tuple[str, str]]:
    """Renames come to light only when their folder is read again, as on a client of NFS that
    remembers that there was no such name.
    """
    replace, listdir, waiting = os.replace, os.listdir, []

    def replaced(source, target, **keywords):
        if ".shards" in str(target) and not str(target).endswith("plan.json"):
            os.rename(source, f"{target}.late")
            waiting.append((f"{target}.late", str(target)))
        else:
            replace(source, target, **keywords)

    def listed(folder="."):
        for pair in [pair for pair in waiting if os.path.dirname(pair[1]) == str(folder)]:
            waiting.remove(pair)
            replace(*pair)
        return listdir(folder)

    monkeypatch.setattr(os, "replace", replaced)
    monkeypatch.setattr(os, "listdir", listed)
    return waiting


def test_renames_that_are_seen_late_are_waited_for(undisturbed, tmp_path, late):
    made, _ = undisturbed
    folder = fresh(made, tmp_path / "x")
    assert again(folder).extracted == 24 and not late
    check(folder, made)


def test_the_last_share_waits_for_the_parts_of_the_others(undisturbed, tmp_path, late):
    """It knows from the ledger that they are done, so it neither leaves them to nobody nor computes
    them again.
    """
    made, _ = undisturbed
    folder = fresh(made, tmp_path / "x")
    manifest = Manifest.read(folder / "manifest.parquet")
    for index, action in ((2, "part"), (3, "part"), (1, "extracted")):
        report = extract(
            manifest,
            folder / "feats.h5",
            corpus.options(),
            source=folder / "manifest.parquet",
            where=Share(index, 3),
        )
        assert report.action == action
        assert bool(late) == (action == "part"), "seen by nobody so far"
    assert corpus.digests(folder / "feats.shards") == corpus.digests(made / "feats.shards")


def test_what_never_appears_is_an_error_after_a_while(undisturbed, tmp_path, monkeypatch):
    made, _ = undisturbed
    folder = fresh(made, tmp_path / "x")
    monkeypatch.setattr("mer.pipeline.runtime.hold.LATE_SECONDS", 0.1)
    collect = "mer.pipeline.extraction.runner.LocalRunner.collect"
    from mer.pipeline.extraction.runner import LocalRunner

    original = LocalRunner.collect

    def without_one(self, window):
        work = self.assignment
        (work.place.parts / work.plan.parts[window][0].name).unlink()
        return original(self, window)

    monkeypatch.setattr(collect, without_one)
    with pytest.raises(StoreError, match="absent or damaged; run the same command again"):
        again(folder)
    monkeypatch.undo()
    again(folder)
    check(folder, made)


def test_a_part_that_is_damaged_before_its_frames_are_taken_over(
    undisturbed, tmp_path, monkeypatch
):
    from mer.pipeline.extraction.parts import Finished
    from mer.pipeline.extraction.runner import LocalRunner

    made, _ = undisturbed
    folder = fresh(made, tmp_path / "x")
    collect = LocalRunner.collect

    def flipped(self, window) -> Finished:
        work = self.assignment
        path = work.place.parts / work.plan.parts[window][0].name
        at = path.read_bytes().index(next(iter(Shard(path).frames("audio", 0, 1))).tobytes())
        with path.open("r+b") as file:
            file.seek(at)
            file.write(b"\xff\x7f")  # a NaN
        return collect(self, window)

    monkeypatch.setattr(LocalRunner, "collect", flipped)
    with pytest.raises(
        StoreError, match="audio-00000-00000.h5: damaged; run the same command again"
    ):
        again(folder)
    monkeypatch.undo()
    again(folder)
    check(folder, made)


# --- names

# one byte of Latin-1, quotes, Chinese in UTF-8
ODD = os.fsdecode(b"caf\xe9 'a' \"b\" $c `d` \xe6\x96\x87\xe4\xbb\xb6")


def test_folders_whose_names_are_no_utf8(undisturbed, tmp_path):
    made, _ = undisturbed
    folder = fresh(made, tmp_path / ODD)
    (folder / "clip1.wav").write_text("no audio")
    for path in folder.glob("clip*.wav"):
        os.utime(path, (1e9, 1e9))  # settled: its hash is remembered
    report = again(folder, max_failures=1)
    assert (report.extracted, report.failures[0].id) == (23, "u001")
    assert again(folder, max_failures=1).action == "nothing"
    assert FileMemory(folder / ".mer-files.parquet").files
    assert (
        json.loads((folder / "feats.shards" / "failures.jsonl").read_text(encoding="utf-8"))["id"]
        == "u001"
    )
    sorted((folder / "feats.shards").glob("shard-*.h5"))[0].unlink()
    assert repair(folder / "feats.h5", decoders=0).extracted > 0
    FeatureStore(folder / "feats.h5").verify()
    result = mer(
        "extract",
        "--manifest",
        folder / "manifest.parquet",
        *TINY,
        "--out",
        folder / "other.h5",
        "--max-failures",
        "1",
    )
    assert result.exit_code == 0, result.stderr


def test_names_that_a_file_cannot_hold_are_one_line(tmp_path):
    manifest, _ = corpus.make(tmp_path, 2)
    rows = (
        dataclasses.replace(manifest.rows[0], audio=os.fsdecode(b"caf\xe9.wav")),
        manifest.rows[1],
    )
    with pytest.raises(DataError, match="is not UTF-8; rename that file"):
        dataclasses.replace(manifest, rows=rows).write(tmp_path / "manifest.parquet")
    with pytest.raises(DataError, match="must be UTF-8; choose another --out"):
        extract(manifest, tmp_path / os.fsdecode(b"caf\xe9.h5"), corpus.options())


@pytest.mark.slow
@pytest.mark.parametrize("utf8", ["0", None])
def test_locale_c(tmp_path, utf8):
    """PYTHONUTF8=0 takes even Python's own way out: file names are then ASCII and bytes.

    Clips with names beyond are told, not lost.
    """
    folder = tmp_path / ODD
    corpus.make(tmp_path / "plain", 4)
    (tmp_path / "plain" / "clip2.wav").rename(tmp_path / "plain" / "文 2.wav")
    manifest = Manifest.read(tmp_path / "plain" / "manifest.parquet")
    rows = [
        dataclasses.replace(u, audio="文 2.wav") if u.id == "u002" else u for u in manifest.rows
    ]
    dataclasses.replace(manifest, rows=tuple(rows)).write(tmp_path / "plain" / "manifest.parquet")
    (tmp_path / "plain").rename(folder)
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("PYTHONUTF8", "LANG", "PYTHONIOENCODING")
    }
    environment |= {
        "LC_ALL": "C",
        "PYTHONPATH": str(ROOT),
        **({"PYTHONUTF8": utf8} if utf8 else {}),
    }
    command = [
        sys.executable,
        "-m",
        "cli",
        "extract",
        "--manifest",
        folder / "manifest.parquet",
        *TINY,
        "--out",
        folder / "feats.h5",
    ]
    done = subprocess.run(command, env=environment, capture_output=True, timeout=200)
    stderr = done.stderr.decode("utf-8", "backslashreplace")
    assert b"Traceback" not in done.stderr and "internal error" not in stderr
    if utf8 is None:
        assert done.returncode == 0 and os.fsdecode(done.stdout).strip() == str(
            folder / "feats.h5"
        ), stderr
    else:
        assert done.returncode == 3 and "u002: open" in stderr and "set PYTHONUTF8=1" in stderr, (
            stderr
        )
        environment["PYTHONUTF8"] = "1"
        done = subprocess.run(command, env=environment, capture_output=True, timeout=200)
        assert done.returncode == 0, done.stderr
    assert len(FeatureStore(folder / "feats.h5")) == 4


@pytest.mark.slow
def test_fifty_thousand_clips_in_one_folder(tmp_path):
    """`mer prepare table` and `mer fingerprint`; asked again, no file is read."""
    clips = tmp_path / "clips"
    clips.mkdir()
    corpus.write_clip(clips / "0.wav", 0.03, 0)
    rows = ["id,audio,text,label,speaker"]
    for i in range(50_000):
        name = clips / f"{i // 20_000}.wav"  # a file has 65,000 names at most on ext4
        if i % 20_000 == 0 and i:
            shutil.copy(clips / "0.wav", name)
        os.link(name, clips / f"c{i:05}.wav")
        rows.append(f"u{i},clips/c{i:05}.wav,,{'ab'[i % 2]},s{i % 50}")
    for path in clips.glob("?.wav"):
        os.utime(path, (1e9, 1e9))
    (tmp_path / "table.csv").write_text("\n".join(rows), encoding="utf-8")
    result = mer(
        "prepare",
        "table",
        "--from",
        tmp_path / "table.csv",
        "--labels",
        "a,b",
        "--out",
        tmp_path / "manifest.parquet",
    )
    assert result.exit_code == 0, result.stderr
    assert len(Manifest.read(tmp_path / "manifest.parquet")) == 50_000
    call = ["fingerprint", "--manifest", tmp_path / "manifest.parquet", *TINY]
    first, second = mer(*call), mer(*call)
    assert first.exit_code == second.exit_code == 0 and first.stdout == second.stdout
    assert "hashing 50,000 files" in first.stderr and "hashing" not in second.stderr
