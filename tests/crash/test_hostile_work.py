"""Work folders, shards and heads of extractions that say something else, their checksums made to
fit: `extract` and `repair` end in a store or in one line, and never in other features.

All of it in the slow tests, every `MER_EACH`-th change otherwise.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from mer.pipeline.errors import MerError
from mer.pipeline.extraction.plan import Settings, _checksum
from mer.pipeline.runtime import limits
from mer.pipeline.store import FeatureStore, Shard, ShardWriter

from tests.crash.runs import again, fresh
from tests.crash.test_bit_flips import ALONE, refused_or_same, values
from tests.extract import corpus
from tests.fuzz import reseal
from tests.fuzz.jsons import wrong_values

EACH = [int(os.environ.get("MER_EACH", "25")), pytest.param(1, marks=pytest.mark.slow)]


@pytest.fixture(scope="module")
def killed(run, tmp_path_factory) -> tuple[Path, dict]:
    """An update that was killed among its parts, some of its shards being copied, and the features
    that it will have.
    """
    folder = tmp_path_factory.mktemp("hostile") / "killed"
    corpus.make(folder, 12)
    assert run(folder, **ALONE)[0] == 0
    for clip in (2, 9):
        corpus.write_clip(folder / f"clip{clip}.wav", 0.4, 700 + clip)
    whole = shutil.copytree(folder, folder.with_name("whole"))
    again(whole, **ALONE)
    # just before its first shard is published, all of its parts are there
    for moment in range(2, 20):
        copy = shutil.copytree(folder, folder.with_name(f"killed-{moment}"))
        assert run(copy, moment, **ALONE)[0] == -9
        work = copy / "feats.shards" / ".work"
        if len(list(work.glob("*.h5"))) == 2 and (work / "plan.json").exists():
            return copy, values(whole)
    raise AssertionError("never killed between the parts and the shards")


def try_all(
    folder: Path,
    tmp: Path,
    changes: Iterator[tuple[object, Callable[[Path], None]]],
    expected: dict,
    each: int,
) -> None:
    """Extract after each of the changes.

    A MerError or OSError of one line, or the right features.
    """
    tried = 0
    for number, (what, change) in enumerate(changes):
        if number % each:
            continue
        copy = shutil.copytree(folder, tmp / f"{number}")
        change(copy)
        try:
            again(copy, **ALONE)
            assert refused_or_same(copy, expected), what
        except (MerError, OSError) as error:
            assert "\n" not in str(error) and len(str(error)) < 600, what
        except AssertionError:
            raise
        except Exception as error:
            raise AssertionError(f"{what}: {error!r}") from error
        tried += 1
        shutil.rmtree(copy)
    assert tried


def plans(folder: Path) -> Iterator[tuple[object, Callable[[Path], None]]]:
    raw = json.loads((folder / "feats.shards" / ".work" / "plan.json").read_text())
    raw.pop("checksum")
    raw["left_out"] = raw["left_out"] or {"11": ["decode", "no reason"]}
    raw["kept"] = raw["kept"] or ["shard-00000-01234567.h5"]
    for place, wrong in wrong_values(raw):

        def change(copy: Path, wrong: dict = wrong) -> None:
            sealed = {**wrong, "checksum": _checksum(wrong)}
            (copy / "feats.shards" / ".work" / "plan.json").write_text(json.dumps(sealed))

        yield ("plan.json", place), change


@pytest.mark.parametrize("each", EACH)
def test_a_plan_that_says_something_else(killed, tmp_path, each):
    folder, expected = killed

    assert json.loads((folder / "feats.shards" / ".work" / "plan.json").read_text())["reused"]
    tried = 0
    for number, (what, change) in enumerate(plans(folder)):
        if number % each:
            continue
        copy = shutil.copytree(folder, tmp_path / f"{number}")
        change(copy)
        try:
            again(copy, **ALONE)
            with FeatureStore(copy / "feats.h5") as store:
                store.verify()
            found = values(copy)
            assert all(
                np.array_equal(found[id][m], x) for id in found for m, x in expected[id].items()
            ), what
        except (MerError, OSError) as error:
            assert "\n" not in str(error) and len(str(error)) < 600, what
        tried += 1
        shutil.rmtree(copy)
    assert tried


@pytest.mark.parametrize("each", EACH)
@pytest.mark.parametrize("pattern", [".work/*.h5", "shard-*.h5"])
def test_a_part_or_shard_that_says_something_else(killed, tmp_path, each, pattern):
    folder, expected = killed
    paths = sorted((folder / "feats.shards").glob(pattern))
    assert paths, pattern

    def changes() -> Iterator[tuple[object, Callable[[Path], None]]]:
        name = paths[0].relative_to(folder)
        said = reseal.described(folder / name)
        said["meta"]["failures"] = said["meta"].get("failures") or []
        for place, wrong in wrong_values(said):
            yield (name, place), lambda copy, wrong=wrong: reseal.describe_as(copy / name, wrong)
        yield (
            (name, "a failure"),
            lambda copy: reseal.describe_as(
                copy / name, {**said, "meta": {**said["meta"], "failures": [[1, 2]]}}
            ),
        )
        for key in ("crc32", "duration", "flags", "ids/x", "ids/offsets"):
            yield (
                (name, key),
                lambda copy, key=key: reseal.change(copy / name, key, lambda array: array[:-1]),
            )

    try_all(folder, tmp_path, changes(), expected, max(1, each // 2))


@pytest.mark.parametrize("each", EACH)
def test_a_head_that_says_something_else(killed, tmp_path, each):
    folder, expected = killed
    said = reseal.described(folder / "feats.h5")
    said["provenance"]["extract"]["failures"] = [
        {"id": "u999", "path": None, "stage": "decode", "reason": "none", "known": True}
    ]

    def changes() -> Iterator[tuple[object, Callable[[Path], None]]]:
        for place, wrong in wrong_values(said):
            yield place, lambda copy, wrong=wrong: reseal.describe_as(copy / "feats.h5", wrong)

    try_all(folder, tmp_path, changes(), expected, 4 * each)


@pytest.mark.parametrize("each", EACH)
def test_a_finished_head_that_says_something_else(run, tmp_path, each):
    """`extract` again, which finds nothing to do or does everything."""
    folder = tmp_path / "made"
    corpus.make(folder, 8)
    again(folder, **ALONE)
    expected = values(folder)
    said = reseal.described(folder / "feats.h5")

    def changes() -> Iterator[tuple[object, Callable[[Path], None]]]:
        for place, wrong in wrong_values(said):
            yield place, lambda copy, wrong=wrong: reseal.describe_as(copy / "feats.h5", wrong)

    try_all(folder, tmp_path, changes(), expected, 4 * each)


@pytest.mark.parametrize(
    "content", [b"[" * 100_000, b'{"fingerprint": NaN}', b"\xff", b"null", b'"x"', b"9" * 5000]
)
@pytest.mark.parametrize("name", ["plan.json", ".hold", ".turn"])
def test_json_of_a_work_folder_is_bounded(killed, tmp_path, name, content):
    folder, expected = killed
    copy = shutil.copytree(folder, tmp_path / "x")
    place = copy / "feats.shards" / (".work/plan.json" if name == "plan.json" else name)
    place.write_bytes(content)
    again(copy, **ALONE)
    assert refused_or_same(copy, expected)


def test_a_plan_beyond_the_bound_is_made_again(killed, tmp_path):
    """A file with holes: nothing is read of it."""
    folder, expected = killed
    copy = shutil.copytree(folder, tmp_path / "x")
    plan = copy / "feats.shards" / ".work" / "plan.json"
    os.truncate(plan, limits.PLAN_BYTES + 1)
    assert (
        Settings.read(
            plan,
            json.loads((folder / "feats.shards" / ".work" / "plan.json").read_text())[
                "fingerprint"
            ],
        )
        is None
    )
    again(copy, **ALONE)
    assert refused_or_same(copy, expected)


@pytest.mark.parametrize("name", [".work/plan.json", ".hold", ".mer-files.parquet", "part"])
def test_a_pipe_in_a_work_folder_does_not_hang(killed, tmp_path, name):
    folder, expected = killed
    copy = shutil.copytree(folder, tmp_path / "x")
    part = sorted((copy / "feats.shards" / ".work").glob("*.h5"))[0]
    place = part if name == "part" else copy / "feats.shards" / name
    place.unlink(missing_ok=True)
    os.mkfifo(place)
    try:
        again(copy, **ALONE)
        assert refused_or_same(copy, expected)
    except MerError as error:
        assert str(place) in str(error)


def test_a_part_without_an_item_is_computed_again(killed, tmp_path):
    """With the plan's own key: only that one of its items is not there tells it."""
    folder, expected = killed
    copy = shutil.copytree(folder, tmp_path / "x")
    part = sorted((copy / "feats.shards" / ".work").glob("*.h5"))[0]
    shard = Shard(part)
    modality, kind = next(iter(shard.modalities.items()))
    with ShardWriter(part, {modality: kind["dim"]}, meta=shard.meta, key=shard.key) as writer:
        for at, id in enumerate(shard.ids[:-1]):
            writer.add(
                id, {modality: shard.frames(modality, at, at + 1)}, flags=int(shard.flags[at])
            )
    again(copy, **ALONE)
    assert refused_or_same(copy, expected)


def test_an_interrupted_first_run_starts_with_what_is_sound(run, tmp_path):
    folder = tmp_path / "x"
    corpus.make(folder, 8)
    whole = fresh(folder, tmp_path / "whole")
    again(whole, **ALONE)
    assert run(folder, 4, **ALONE)[0] == -9
    for part in (folder / "feats.shards" / ".work").glob("*.h5"):
        part.write_bytes(part.read_bytes()[:-1])
    again(folder, **ALONE)
    assert refused_or_same(folder, values(whole))
