"""A store against a model of it, whatever happens to its files in whatever order.

The model remembers the bytes of every file when the head was written, and the arrays that went in.
At any time: `verify` names exactly the shards whose bytes are other ones now; opening fails exactly
when one is missing or of another length; every utterance of a sound shard reads as written, its
layer means included.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mer.pipeline.errors import StoreError
from mer.pipeline.store import FeatureStore, ShardWriter, build_index, verify_shards

from tests.store.build import DIMS, arrays

LAYERS = {"audio": 3}  # layer means of an utterance; the other modalities have none
PLACE = st.integers(0, 1_000_000)  # a shard, or a byte of a file, modulo how many there are


class Store(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="mer-model-"))
        self.head = self.folder / "feats.h5"
        self.written = 0
        # shards that the head names, and their bytes when it was written
        self.listed: dict[str, bytes] = {}
        self.data: dict[str, dict[str, dict[str, np.ndarray]]] = {}  # shard → id → arrays
        self.means: dict[str, np.ndarray] = {}  # id → layer means of `audio`
        self.write(3)

    def teardown(self):
        shutil.rmtree(self.folder)

    def path(self, name: str) -> Path:
        return self.folder / "feats.shards" / name

    def pick(self, place: int) -> str:
        return sorted(self.listed)[place % len(self.listed)]

    def sound(self) -> set[str]:
        return {
            name
            for name, raw in self.listed.items()
            if self.path(name).exists() and self.path(name).read_bytes() == raw
        }

    def build(self, names: list[str]) -> None:
        rows = [{"id": id, "split": "train"} for name in names for id in self.data[name]]
        build_index(
            self.head,
            [self.path(name) for name in names],
            rows,
            dataset="model",
            task="single",
            labels=(),
        )
        self.listed = {name: self.path(name).read_bytes() for name in names}

    @precondition(lambda self: self.sound() == self.listed.keys())
    @rule(count=st.integers(1, 5))
    def write(self, count: int) -> None:
        """Another shard, and a head that names it, too."""
        name = f"shard-{self.written:05d}.h5"
        made = arrays(count, seed=self.written)
        self.data[name] = {f"{self.written}.{i}": x for i, x in enumerate(made)}
        random = np.random.default_rng(self.written)
        for id in self.data[name]:
            means = random.standard_normal((LAYERS["audio"], DIMS["audio"]))
            self.means[id] = means.astype(np.float16)
        self.fill(name)
        self.written += 1
        self.build([*self.listed, name])

    def fill(self, name: str) -> None:
        with ShardWriter(self.path(name), DIMS, layers=LAYERS) as writer:
            for id, x in self.data[name].items():
                there = {"audio": self.means[id]} if "audio" in x and x["audio"].size else {}
                writer.add(id, x, layer_means=there)

    @precondition(lambda self: len(self.sound()) > 1)
    @rule(place=PLACE)
    def leave_out(self, place: int) -> None:
        """A head over the sound shards without one of them."""
        names = sorted(self.sound())
        del names[place % len(names)]
        self.build(names)

    @rule(place=PLACE)
    def remove(self, place: int) -> None:
        self.path(self.pick(place)).unlink(missing_ok=True)

    @rule(place=PLACE, at=PLACE, bit=st.integers(0, 7))
    def flip(self, place: int, at: int, bit: int) -> None:
        path = self.path(self.pick(place))
        if path.exists() and path.stat().st_size:
            raw = bytearray(path.read_bytes())
            raw[at % len(raw)] ^= 1 << bit
            path.write_bytes(raw)

    @rule(place=PLACE, keep=PLACE)
    def truncate(self, place: int, keep: int) -> None:
        path = self.path(self.pick(place))
        if path.exists() and path.stat().st_size:
            raw = path.read_bytes()
            path.write_bytes(raw[: keep % len(raw)])

    @rule(first=PLACE, second=PLACE)
    def swap(self, first: int, second: int) -> None:
        a, b = self.path(self.pick(first)), self.path(self.pick(second))
        if a.exists() and b.exists() and a != b:
            a.rename(self.folder / "between")
            b.rename(a)
            (self.folder / "between").rename(b)

    @rule(place=PLACE)
    def repair(self, place: int) -> None:
        """The shard written again from the same arrays: the same bytes."""
        name = self.pick(place)
        self.fill(name)
        assert name in self.sound()

    @invariant()
    def verify_names_the_damaged_and_no_other(self):
        damaged = {Path(found.path).name for found in verify_shards(self.head)}
        assert damaged == self.listed.keys() - self.sound()

    @invariant()
    def what_is_sound_reads_as_written(self):
        lengths = {
            name: self.path(name).stat().st_size if self.path(name).exists() else -1
            for name in self.listed
        }
        if any(lengths[name] != len(raw) for name, raw in self.listed.items()):
            with pytest.raises(
                StoreError, match=r"shard-\d{5}\.h5: shard (is missing|has [\d,]+ bytes?)"
            ):
                FeatureStore(self.head)
        store = FeatureStore(self.head, check=False)
        names, sound = sorted(self.listed), self.sound()
        row = {id: i for i, id in enumerate(store.table()["id"].to_pylist())}
        assert row.keys() == {id for name in names for id in self.data[name]}
        for name in sound:
            for id, expected in self.data[name].items():
                for m in DIMS:
                    np.testing.assert_array_equal(
                        store.features(m, row[id]), expected[m].reshape(-1, DIMS[m])
                    )
                means = self.means[id] if expected["audio"].size else np.zeros_like(self.means[id])
                np.testing.assert_array_equal(store.layer_means("audio", [row[id]])[0], means)


TestStore = pytest.mark.slow(Store.TestCase)
TestStore.settings = settings(
    max_examples=20, stateful_step_count=20, deadline=None, derandomize=True
)
