"""Flipping one random bit in any file of a store or a work folder never changes features with exit
0: it is refused, computed again, or without effect.

`MER_FLIPS` trials of each kind (default 500) in the slow test, from seed `MER_FLIP_SEED` (default
0); some tens by default.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mer.pipeline.extraction import repair
from mer.pipeline.manifest import Manifest
from mer.pipeline.store import FeatureStore

from tests.crash.damage import Trials, flips
from tests.crash.runs import again, fresh
from tests.extract import corpus

MANY = int(os.environ.get("MER_FLIPS", "500"))
SEED = int(os.environ.get("MER_FLIP_SEED", "0"))
FEW = 40
# Every clip and transcript a batch of its own: what is computed again, beside fewer others than
# before, is the same to the last bit.
ALONE = {"budget_seconds": 0.01, "budget_tokens": 1}
COUNTS = [FEW, pytest.param(MANY, marks=pytest.mark.slow)]


def values(folder: Path) -> dict[str, dict[str, np.ndarray]]:
    """Every feature of the store in `folder`, as training reads it."""
    with FeatureStore(folder / "feats.h5") as store:
        ids = store.table()["id"].to_pylist()
        found: dict[str, dict[str, np.ndarray]] = {id: {} for id in ids}
        for modality in store.header.modalities:
            packed, offsets = store.packed(modality, check=True)
            for row, id in enumerate(ids):
                found[id][modality] = packed[offsets[row] : offsets[row + 1]]
        return found


def same(folder: Path, expected: dict[str, dict[str, np.ndarray]]) -> bool:
    found = values(folder)
    if found.keys() != expected.keys():
        return False
    return all(
        np.array_equal(found[id][m], x) for id, those in expected.items() for m, x in those.items()
    )


def of_media(path: Path) -> bool:
    """What is no part of a store: the corpus itself."""
    return ".shards" not in str(path) and path.name != "feats.h5"


@pytest.fixture(scope="module")
def alone(run, tmp_path_factory) -> tuple[Path, int]:
    """A finished store, as `undisturbed`, computed clip by clip."""
    folder = tmp_path_factory.mktemp("alone")
    corpus.make(folder)
    status, count = run(folder, **ALONE)
    assert status == 0 and count > 10, (folder / "stderr").read_text()
    return folder, count


@pytest.mark.parametrize("count", COUNTS)
def test_a_store_reads_as_written_or_is_refused(alone, tmp_path, count):
    made, _ = alone
    expected, trials = values(made), Trials()
    folder = shutil.copytree(made, tmp_path / "x")
    for flip in flips(folder, count, SEED, without=of_media):
        before = (folder / flip.name).read_bytes()
        flip.apply()
        trials.record(flip, lambda: values(folder), lambda: same(folder, expected))
        (folder / flip.name).write_bytes(before)
    assert not trials.wrong, trials.wrong
    assert trials.counts["refused"] > count // 4, trials.counts


@pytest.mark.parametrize("count", [6, pytest.param(MANY // 5, marks=pytest.mark.slow)])
@pytest.mark.parametrize("call", ["extract", "repair"])
def test_a_store_is_mended_or_refused(alone, tmp_path, count, call):
    """The same command again, or `mer verify --repair`: what is there afterwards is what was there
    before the damage.
    """
    made, _ = alone
    expected, trials = values(made), Trials()
    for number, flip in enumerate(flips(made, count, SEED + 1, without=of_media)):
        folder = shutil.copytree(made, tmp_path / f"{number}")
        damaged = type(flip)(folder, flip.name, flip.at, flip.bit)
        damaged.apply()
        command: Callable[[], object] = (
            (lambda f=folder: again(f, **ALONE))
            if call == "extract"
            else (lambda f=folder: mended(f))
        )
        trials.record(damaged, command, lambda f=folder: refused_or_same(f, expected))
        shutil.rmtree(folder)
    assert not trials.wrong, trials.wrong


def mended(folder: Path) -> None:
    repair(folder / "feats.h5", decoders=0)
    FeatureStore(folder / "feats.h5").verify()


def refused_or_same(folder: Path, expected: dict[str, dict[str, np.ndarray]]) -> bool:
    """An `extract` that finds nothing to do reads no frame; whoever reads one then is told."""
    from mer.pipeline.errors import StoreError

    try:
        return same(folder, expected)
    except StoreError:
        return True


@pytest.fixture(scope="module")
def interrupted(run, alone, tmp_path_factory) -> Callable[[str], tuple[Path, Path]]:
    """`interrupted(kind)`: (a folder whose extraction was killed, the folder of the one that was
    not). In an update, an older store is there from which features are copied.
    """
    made, total = alone
    folders: dict[str, tuple[Path, Path]] = {}

    def make(kind: str) -> tuple[Path, Path]:
        if kind not in folders:
            root = tmp_path_factory.mktemp(kind)
            if kind == "first":
                folder = fresh(made, root / "killed")
                assert run(folder, 3 * total // 4, **ALONE)[0] == -9
                folders[kind] = folder, made
            else:
                folder = shutil.copytree(made, root / "killed")
                for clip in (2, 9, 16):
                    corpus.write_clip(folder / f"clip{clip}.wav", 0.4, 700 + clip)
                whole = shutil.copytree(folder, root / "whole")
                again(whole, **ALONE)
                published = run(shutil.copytree(folder, root / "counted"), **ALONE)[1]
                assert run(folder, published // 2, **ALONE)[0] == -9
                folders[kind] = folder, whole
        return folders[kind]

    return make


@pytest.mark.parametrize("count", [6, pytest.param(MANY // 5, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["first", "update"])
def test_a_resumed_extraction_gives_the_same_features(interrupted, tmp_path, kind, count):
    """Parts, plan, older shards, holds: any bit of what a killed run has left."""
    killed, whole = interrupted(kind)
    expected, trials = values(whole), Trials()
    for number, flip in enumerate(flips(killed, count, SEED + 2, without=of_media)):
        folder = shutil.copytree(killed, tmp_path / f"{number}")
        damaged = type(flip)(folder, flip.name, flip.at, flip.bit)
        damaged.apply()
        trials.record(
            damaged,
            lambda f=folder: again(f, **ALONE),
            lambda f=folder: refused_or_same(f, expected),
        )
        shutil.rmtree(folder)
    assert not trials.wrong, trials.wrong


def digit(raw: str, where: str) -> str:
    """`raw` with the first digit after `where` changed."""
    at = raw.index(where) + len(where)
    while not raw[at].isdigit():
        at += 1
    return f"{raw[:at]}{(int(raw[at]) + 1) % 10}{raw[at + 1 :]}"


@pytest.mark.parametrize("where", ['"reused"', '"budgets"', '"left_out"', '"shard_bytes"'])
def test_a_changed_digit_of_the_plan_is_noticed(interrupted, tmp_path, where, capsys):
    from mer.pipeline.runtime.progress import Lines

    killed, whole = interrupted("update")
    folder = shutil.copytree(killed, tmp_path / "x")
    plan = folder / "feats.shards" / ".work" / "plan.json"
    plan.write_text(digit(plan.read_text(), where))
    from mer.pipeline.extraction import extract

    manifest = Manifest.read(folder / "manifest.parquet")
    extract(
        manifest,
        folder / "feats.h5",
        corpus.options(**ALONE),
        source=folder / "manifest.parquet",
        progress=Lines(),
    )
    assert "plan.json: the plan of an unfinished run is damaged" in capsys.readouterr().err
    assert same(folder, values(whole))


def test_a_plan_without_a_checksum_starts_again_and_says_so(interrupted, tmp_path, capsys):
    import json

    from mer.pipeline.extraction import extract
    from mer.pipeline.runtime.progress import Lines

    killed, whole = interrupted("update")
    folder = shutil.copytree(killed, tmp_path / "x")
    plan = folder / "feats.shards" / ".work" / "plan.json"
    raw = json.loads(plan.read_text())
    del raw["checksum"]
    plan.write_text(json.dumps(raw))
    manifest = Manifest.read(folder / "manifest.parquet")
    extract(
        manifest,
        folder / "feats.h5",
        corpus.options(**ALONE),
        source=folder / "manifest.parquet",
        progress=Lines(),
    )
    assert "has no checksum, as mer made them before; starting again" in capsys.readouterr().err
    assert same(folder, values(whole))


def test_frames_damaged_after_planning_are_not_copied(interrupted, tmp_path, capsys):
    """Every frame of the older shards is damaged between the kill and the resume: all of it is
    computed again.
    """
    import h5py

    killed, whole = interrupted("update")
    folder = shutil.copytree(killed, tmp_path / "x")
    for shard in (folder / "feats.shards").glob("shard-*.h5"):
        with h5py.File(shard, "r") as file:
            place = file["audio/x"].id.get_offset()
        raw = bytearray(shard.read_bytes())
        raw[place] ^= 1
        shard.write_bytes(raw)
    again(folder, **ALONE)
    assert same(folder, values(whole))
