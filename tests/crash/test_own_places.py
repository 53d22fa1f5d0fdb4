"""Nothing outside the output is deleted, emptied or replaced, whatever somebody has put in a place
where mer writes.

A place is replaced by a symbolic link, relative or absolute, to a file or a folder of somebody
else; every command that writes there either refuses in one line or replaces the link itself. (Issue
11: tidying followed `.work` and deleted, a hold emptied what it led to.)
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from mer import cli
from mer.commands import features
from mer.pipeline.extraction import extract
from mer.pipeline.store import FeatureStore

from tests.extract import corpus
from tests.fusion import stores
from tests.store.build import make_store

TINY = [
    "--audio-encoder",
    "builtin:tiny-wav2vec2",
    "--text-encoder",
    "builtin:tiny-roberta",
    "--offline",
]


def mer(*args: object):
    return CliRunner().invoke(cli.main, [str(arg) for arg in args])


def one_line(result) -> str:
    """The line of a command that refused."""
    assert result.exit_code in (1, 2, 5), result.output
    last = result.stderr.splitlines()[-1]
    assert (
        last.startswith("mer: ")
        and "internal error" not in last
        and len(last) <= 300 + len("mer: ")
    ), last
    return last


def contents(folder: Path) -> dict[str, str]:
    """Everything of somebody else: names, kinds and bytes."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        found[name] = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
    return found


@pytest.fixture
def theirs(tmp_path) -> Path:
    """A folder of somebody else, full of names that mer would use."""
    folder = tmp_path / "theirs" / "deep"
    make_store(folder)
    for name in (
        "audio-00000-00000.h5",
        "shard-00000-01234567.h5",
        "shard-00000.h5",
        "plan.json",
        "failures.jsonl",
        ".hold",
        "notes.txt",
    ):
        (folder / name).write_text(f"{name} of somebody else")
    (folder / "inner").mkdir()
    (folder / "inner" / "text-00000-00000.h5").write_text("theirs")
    return tmp_path / "theirs"


def link(place: Path, target: Path, *, relative: bool = False) -> None:
    """Put a link to `target` in `place`, whatever is there."""
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    place.unlink(missing_ok=True)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(os.path.relpath(target, place.parent) if relative else target)


PLACES = {
    "feats.h5": "deep/feats.h5",
    "feats.shards": "deep",
    "feats.shards/.work": "deep",
    "feats.shards/.work/plan.json": "deep/plan.json",
    "feats.shards/.hold": "deep/.hold",
    "feats.shards/failures.jsonl": "deep/failures.jsonl",
    "feats.shards/.mer-files.parquet": "deep/notes.txt",
    ".mer-files.parquet": "deep/notes.txt",
    "feats.shards/.turn": "deep/notes.txt",
    "feats.shards/.hold-1-of-1": "deep/notes.txt",
    "feats.shards/shard-00099-01234567.h5": "deep/shard-00000-01234567.h5",
}
COMMANDS = ["first", "update", "repair", "share"]


@pytest.fixture(scope="module")
def few(tmp_path_factory) -> Path:
    """A store of twelve clips: the cases are many, and not about what is computed."""
    folder = tmp_path_factory.mktemp("few")
    manifest, file = corpus.make(folder, 12)
    extract(manifest, folder / "feats.h5", corpus.options(), source=file)
    assert len(list((folder / "feats.shards").glob("shard-*.h5"))) > 1
    return folder


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("command", COMMANDS)
def test_extract_changes_nothing_of_somebody_else(
    few, tmp_path, theirs, place, command, relative, monkeypatch
):
    made = few
    monkeypatch.setattr(features, "extract_options", lambda manifest, **given: corpus.options())
    folder = shutil.copytree(made, tmp_path / "x")
    if command in ("first", "share"):
        (folder / "feats.h5").unlink()
        shutil.rmtree(folder / "feats.shards")
    elif command == "update":
        corpus.write_clip(folder / "clip3.wav", 0.4, 703)
    else:
        damaged = sorted((folder / "feats.shards").glob("shard-*.h5"))[0]
        damaged.write_bytes(damaged.read_bytes()[:-1])
    if place == "feats.h5" and command == "repair":
        pytest.skip("the store that is to be repaired is somebody else's then")
    link(folder / place, theirs / PLACES[place], relative=relative)
    before = contents(theirs)
    call = [
        "extract",
        "--manifest",
        folder / "manifest.parquet",
        "--out",
        folder / "feats.h5",
        *TINY,
    ]
    if command == "repair":
        result = mer("verify", folder / "feats.h5", "--repair")
    else:
        result = mer(*call, *(["--shard", "1/1"] if command == "share" else []))
    assert contents(theirs) == before
    if result.exit_code:
        assert str(folder / place) in one_line(result)
    else:
        FeatureStore(folder / "feats.h5").verify()


def test_a_head_that_is_a_link_to_another_depth_is_refused_before_anything_is_computed(
    undisturbed, tmp_path, theirs, monkeypatch
):
    """`--out` led two folders up: everything was computed, then the head could not find
    its shards.
    """
    made, _ = undisturbed
    folder = shutil.copytree(made, tmp_path / "x", ignore=shutil.ignore_patterns("feats*"))
    link(folder / "feats.h5", theirs / "elsewhere.h5")
    result = mer(
        "extract", "--manifest", folder / "manifest.parquet", "--out", folder / "feats.h5", *TINY
    )
    assert "a symbolic link" in one_line(result) and not (folder / "feats.shards").exists()


def make_npz(folder: Path) -> Path:
    np.savez(
        folder / "f.npz",
        id=np.array(["a", "b", "c"]),
        label=np.array(["x", "y", "x"]),
        audio=np.ones((3, 4), np.float32),
    )
    return folder / "f.npz"


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize(
    "place", ["feats.h5", "feats.shards", "feats.shards/.hold", "feats.shards/shard-00000.h5"]
)
def test_import_changes_nothing_of_somebody_else(tmp_path, theirs, place, force):
    folder = tmp_path / "x"
    folder.mkdir()
    source = make_npz(folder)
    link(folder / place, theirs / ("deep" if place == "feats.shards" else "deep/shard-00000.h5"))
    before = contents(theirs)
    result = mer(
        "import", "npz", source, "--out", folder / "feats.h5", *(["--force"] if force else [])
    )
    assert contents(theirs) == before
    if result.exit_code:
        assert str(folder / place) in one_line(result)
    else:
        FeatureStore(folder / "feats.h5").verify()


@pytest.mark.parametrize("form", ["single", "npy", "parquet", "mmsa", "kaldi"])
@pytest.mark.parametrize("target", ["deep", "deep/notes.txt", "absent"])
def test_export_changes_nothing_of_somebody_else(tmp_path, theirs, form, target):
    make_store(tmp_path)
    link(tmp_path / "out", theirs / target)
    before = contents(theirs)
    result = mer("export", tmp_path / "feats.h5", tmp_path / "out", "--to", form)
    assert contents(theirs) == before and "exists already" in one_line(result)


@pytest.mark.parametrize("place", ["run/.hold", "run"])
def test_train_changes_nothing_of_somebody_else(tmp_path, theirs, place):
    make_store(tmp_path)
    link(tmp_path / place, theirs / ("deep" if place == "run" else "deep/.hold"))
    before = contents(theirs)
    result = mer(
        "train",
        "--features",
        tmp_path / "feats.h5",
        "--model",
        "audio",
        "--set",
        "train.epochs=1",
        "--out",
        tmp_path / "run",
    )
    assert contents(theirs) == before
    assert str(tmp_path / "run") in one_line(result)


@pytest.mark.parametrize("target", ["deep", "deep/notes.txt", "absent"])
def test_prepare_changes_nothing_of_somebody_else(tmp_path, theirs, target):
    (tmp_path / "t.csv").write_text("id,text,label\na,hello,x\nb,there,y\nc,now,x\n")
    link(tmp_path / "m.parquet", theirs / target)
    before = contents(theirs)
    asked = ("prepare", "table", "--from", tmp_path / "t.csv", "--out", tmp_path / "m.parquet")
    result = mer(*asked, "--split", "none")
    assert contents(theirs) == before
    assert result.exit_code == 0 and (tmp_path / "m.parquet").is_file(), result.stderr
    assert not (tmp_path / "m.parquet").is_symlink()


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with feats.h5 and a finished, evaluated run."""
    folder = tmp_path_factory.mktemp("trained")
    stores.make_store(folder, n=40)
    settings = ("--model", "concat", "--set", "train.epochs=1", "--set", "model_args.hidden=8")
    result = mer("train", "--features", folder / "feats.h5", *settings, "--out", folder / "run")
    assert result.exit_code == 0, result.stderr
    return folder


WRITTEN = {
    "report": ["r.html"],
    "evaluate": ["run/metrics.json", "run/predictions.parquet", "run/test_log.jsonl", "p.parquet"],
    "figures": ["figures/curves-seed-0.png", "figures/confusion.png", "figures/confusion.svg"],
}


@pytest.mark.parametrize("target", ["deep", "deep/notes.txt", "absent"])
@pytest.mark.parametrize(
    ("command", "place"), [(c, place) for c, places in WRITTEN.items() for place in places]
)
def test_what_reads_a_run_changes_nothing_of_somebody_else(
    trained, tmp_path, theirs, command, place, target
):
    folder = shutil.copytree(trained, tmp_path / "x")
    link(folder / place, theirs / target)
    before = contents(theirs)
    asked = {
        "report": ("report", folder / "run", "--out", folder / "r.html"),
        "evaluate": (
            *("evaluate", folder / "run", "--features", folder / "feats.h5"),
            *("--predictions", folder / "p.parquet"),
        ),
        "figures": (
            *("evaluate", folder / "run", "--features", folder / "feats.h5"),
            *("--figures", folder / "figures"),
        ),
    }[command]
    result = mer(*asked)
    assert contents(theirs) == before
    if result.exit_code:
        assert place.rpartition("/")[2] in one_line(result)


def test_reading_goes_through_links(tmp_path):
    """What only reads may be led: data sets are kept so."""
    make_store(tmp_path / "kept")
    (tmp_path / "feats.h5").symlink_to(tmp_path / "kept" / "feats.h5")
    assert mer("verify", tmp_path / "feats.h5").exit_code == 0
    assert mer("inspect", tmp_path / "feats.h5").exit_code == 0


# --- a hold in the place of another file


@pytest.mark.parametrize("kind", ["link", "dangling", "pipe", "folder", "hard link"])
def test_a_hold_is_a_file_of_our_own(tmp_path, kind):
    from mer.pipeline.errors import DataError
    from mer.pipeline.runtime.hold import held, hold

    victim, place = tmp_path / "victim", tmp_path / ".hold"
    victim.write_text("keep me")
    if kind == "link":
        place.symlink_to(victim)
    elif kind == "dangling":
        place.symlink_to(tmp_path / "absent")
    elif kind == "pipe":
        os.mkfifo(place)
    elif kind == "folder":
        place.mkdir()
    else:
        os.link(victim, place)
    with (
        pytest.raises(
            DataError,
            match=r"\.hold: not a file of mer's own .*; remove it, or choose another --out",
        ),
        hold(place),
    ):
        pass
    assert not held(place)
    assert victim.read_text() == "keep me" and not (tmp_path / "absent").exists()


# --- what a killed writer leaves


def dead() -> int:
    """The number of a process that is no more."""
    import subprocess

    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_the_next_call_clears_what_a_kill_has_left(undisturbed, tmp_path, monkeypatch):
    """Of any file and by any call, also one that finds nothing to do; what others call so stays."""
    from tests.crash.runs import again

    made, _ = undisturbed
    folder = shutil.copytree(made, tmp_path / "x")
    pid = dead()
    left = [
        f"feats.shards/.shard-00042-01234567.h5.tmp-{pid}",
        f"feats.shards/.failures.jsonl.tmp-{pid}",
        f".feats.h5.tmp-{pid}",
    ]
    others = [
        "feats.shards/.notes.tmp-mine",
        f".other.tmp-{pid}",
        f"feats.shards/.shard-1.h5.tmp-{os.getppid()}",
    ]
    for name in [*left, *others]:
        (folder / name).write_text("half")
    assert again(folder).action == "nothing"
    assert not [name for name in left if (folder / name).exists()]
    assert [name for name in others if (folder / name).exists()] == others


def test_a_late_plan_beside_a_finished_store_is_cleared(undisturbed, tmp_path):
    """As a share leaves it that began when the others were about to end; also one that an earlier
    mer has written.
    """
    from tests.crash.runs import again

    made, _ = undisturbed
    folder = shutil.copytree(made, tmp_path / "x")
    with FeatureStore(folder / "feats.h5") as store:
        key = store.header.fingerprint
    work = folder / "feats.shards" / ".work"
    work.mkdir()
    (work / "plan.json").write_text(f'{{"fingerprint": "{key}"}}')
    assert again(folder).action == "nothing"
    assert not work.exists()


def test_the_synthetic_corpus_clears_half_a_clip(tmp_path):
    from mer.pipeline.datasets import prepare

    prepare("synthetic", tmp_path, size=12)
    clip = next(tmp_path.rglob("*.wav"))
    half = clip.with_name(f".{clip.name}.tmp-{dead()}")
    half.write_bytes(b"RIFF")
    prepare("synthetic", tmp_path, size=12)
    assert not half.exists()


def test_the_synthetic_corpus_looks_through_its_folder_once(tmp_path, monkeypatch):
    """Not for every clip, which would take time by the square of their number."""
    from mer.pipeline.datasets import prepare
    from mer.pipeline.runtime import files

    looked, leftovers = [], files.leftovers
    monkeypatch.setattr(files, "leftovers", lambda *of: looked.append(of) or leftovers(*of))
    prepare("synthetic", tmp_path, size=12)
    assert len(looked) == 1 and len(list(tmp_path.rglob("*.wav"))) == 12


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_modes_follow_the_umask(undisturbed, tmp_path, umask, mode):
    from tests.crash.runs import again, fresh

    made, _ = undisturbed
    folder = fresh(made, tmp_path / "x")
    before = os.umask(umask)
    try:
        again(folder)
    finally:
        os.umask(before)
    files = [
        folder / "feats.h5",
        folder / ".mer-files.parquet",
        *(p for p in (folder / "feats.shards").rglob("*") if p.is_file()),
    ]
    assert {oct(path.stat().st_mode & 0o777) for path in files} == {oct(mode)}
    assert (folder / "feats.shards").stat().st_mode & 0o777 == 0o777 & ~umask
