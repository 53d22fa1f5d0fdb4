"""Joined heads whose checksum is right and whose content is not: one line, nothing read outside."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mer.pipeline.errors import StoreError
from mer.pipeline.interchange.joining import join
from mer.pipeline.store import FeatureStore, verify_shards
from mer.pipeline.store.schema import pack_strings

from tests.fuzz import reseal
from tests.store.build import make_store


@pytest.fixture
def joined(tmp_path) -> Path:
    paths = [make_store(tmp_path, layers=True, name=name).path for name in ("audio", "text")]
    left_out = {"audio.h5:text": "", "text.h5:audio": ""}
    return join(paths, tmp_path / "joined.h5", renamed=left_out)[0].path


def said(value: str) -> Callable[[dict], None]:
    """JSON in the place of what is said of the members."""

    def change(data: dict) -> None:
        data["members/modalities"] = np.frombuffer(value.encode(), np.uint8)

    return change


def named(*names: str) -> Callable[[dict], None]:
    def change(data: dict) -> None:
        data["members/name/x"], data["members/name/offsets"] = pack_strings(names)

    return change


def rows(how: Callable[[np.ndarray], np.ndarray]) -> Callable[[dict], None]:
    def change(data: dict) -> None:
        data["members/rows"] = np.ascontiguousarray(how(data["members/rows"].copy()))

    return change


def with_row(value: int) -> Callable[[dict], None]:
    def how(x: np.ndarray) -> np.ndarray:
        x[0, 3] = value
        return x

    return rows(how)


def longer(data: dict) -> None:
    data["index/n_audio"][3] += 1


def all_longer(data: dict) -> None:
    data["index/n_audio"][:] = 1 << 40


def negative(data: dict) -> None:
    data["index/n_audio"][3] = -1


def other_content(data: dict) -> None:
    data["members/content"] = np.array(["0" * 64] * 2, "S64")


CHANGES = {
    "an empty list": said("[]"),
    "no list": said("{}"),
    "no objects": said("[1, 2]"),
    "three members": said('[{"audio":"audio"},{"text":"text"},{}]'),
    "a modality twice": said('[{"audio":"audio","text":"text"},{"text":"text"}]'),
    "a modality less": said('[{"audio":"audio"},{}]'),
    "no name": said('[{"audio":1},{"text":"text"}]'),
    "another's name": said('[{"audio":"text"},{"text":"text"}]'),
    "a name that is not there": said('[{"audio":"vision"},{"text":"text"}]'),
    "nested": said("[" * 100 + "]" * 100),
    "no JSON": said("[{"),
    "one name": named("audio.h5"),
    "itself": named("joined.h5", "text.h5"),
    "the other": named("text.h5", "text.h5"),
    "a folder": named("audio.shards", "text.h5"),
    "a shard": named("audio.shards/shard-00000.h5", "text.h5"),
    "a device": named("../../../../../../../../dev/zero", "text.h5"),
    "nothing": named("", "text.h5"),
    "a zero byte": named("audio\0.h5", "text.h5"),
    "a long name": named("a" * 5000, "text.h5"),
    "a row beyond": with_row(12),
    "a row far beyond": with_row(1 << 40),
    "a row below": with_row(-2),
    "another's row": with_row(0),
    "a row that is not there": with_row(-1),
    "fewer rows": rows(lambda x: x[:, :-1]),
    "fewer members": rows(lambda x: x[:1]),
    "shuffled": rows(lambda x: x[:, ::-1]),
    "a step more": longer,
    "steps without end": all_longer,
    "a negative length": negative,
    "other content": other_content,
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_head_that_lies_is_one_line(joined, change):
    attrs, data = reseal.load(joined)
    CHANGES[change](data)
    reseal.save(joined, attrs, data)
    with pytest.raises(StoreError) as refused:
        store = FeatureStore(joined)
        store.packed("audio")
    assert "\n" not in str(refused.value) and str(joined.parent) in str(refused.value)
    assert len(str(refused.value)) <= 300
    with pytest.raises(StoreError):
        store = FeatureStore(joined, check=False)
        assert verify_shards(store)
        store.verify()
    with pytest.raises(StoreError):
        FeatureStore(joined, check=False).packed("audio")


def test_members_of_members_are_refused(joined, tmp_path):
    """A joined store may not name a joined store, lest they name each other."""
    other = tmp_path / "other.h5"
    other.write_bytes(joined.read_bytes())
    attrs, data = reseal.load(joined)
    named("other.h5", "text.h5")(data)
    content = FeatureStore(other).content()
    data["members/content"] = np.array([content.encode(), data["members/content"][1]], "S64")
    reseal.save(joined, attrs, data)
    with pytest.raises(StoreError, match=r"other.h5: not what it was when .*joined.h5 was joined"):
        FeatureStore(joined)
