"""A third modality in one file: registered here, it goes from the manifest to the store, through a
resume, local workers, an export and a training, and no line elsewhere knows of it.

`pulse` is how loud a clip is, every tenth of a second: (T, 2) of mean and largest magnitude, by an
untrained "encoder" that is two lines of arithmetic. It reads the same media files as `audio`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import soundfile

from mer.fusion import config
from mer.fusion.training import experiment
from mer.pipeline.encoders import MODALITIES
from mer.pipeline.encoders.loading import Checkpoint
from mer.pipeline.encoders.modality import (
    Described,
    Family,
    Item,
    Lengths,
    Modality,
    ReadItem,
    States,
)
from mer.pipeline.extraction import ExtractOptions, Workers, extract
from mer.pipeline.extraction.fingerprint import fingerprint
from mer.pipeline.extraction.plan import Settings
from mer.pipeline.interchange.export import export
from mer.pipeline.media.stages import Problem, Stage
from mer.pipeline.media.workers import Job
from mer.pipeline.store import FeatureStore

from tests.extract import corpus

RATE, STEP = 16_000, 1_600  # samples per second and per step


class Loudness:
    """The encoder: clips of whole steps (n,) → (n / 1600, 2)."""

    dim, width, layer_count = 2, 2, 0
    precision, device = "fp32", SimpleNamespace(type="cpu")

    def __init__(self, checkpoint: Checkpoint):
        self.checkpoint = checkpoint

    def collate(self, items, kept=None):
        return tuple(items)

    def forward(self, batch, *, precision=None):
        steps = [np.abs(x).reshape(-1, STEP) for x in batch]
        both = [np.stack([x.mean(1), x.max(1)], axis=1) for x in steps]
        return [States(x.astype(np.float32)) for x in both]

    def encode(self, items, kept=None, *, precision=None):
        return self.forward(self.collate(items), precision=precision)


def load(checkpoint, modality, device, precision) -> Loudness:
    return Loudness(checkpoint)


@dataclass(frozen=True)
class PulseOptions(ExtractOptions):
    pulse_encoder: str = "builtin:loudness"


@dataclass(frozen=True)
class Pulse(Modality):
    name: ClassVar[str] = "pulse"
    unit: ClassVar[str] = "steps"
    per_unit: ClassVar[int] = STEP
    fixed_budget: ClassVar[dict] = {"cpu": 40}
    candidate_budgets: ClassVar[dict] = {"cpu": (20, 40)}
    families: ClassVar[tuple[Family, ...]] = (Family("loudness", __name__),)
    sound: ClassVar[bool] = True

    @classmethod
    def of(cls, options: Any) -> Pulse:
        encoder = getattr(options, "pulse_encoder", "")
        return cls(encoder=encoder, budget=20, part=60)

    def has(self, u) -> bool:
        return bool(u.audio)

    def file(self, u) -> str | None:
        return u.audio

    def content(self, u, digest: str) -> tuple[str, ...]:
        return ("pulse", digest)

    def resolve(self, encoder, *, offline=False, sha256=None) -> Checkpoint:
        return Checkpoint(self.name, encoder, "", None, {}, {}, True, "loudness of version 1")

    def recipe(self, checkpoint: Checkpoint) -> dict:
        return {"encoder": checkpoint.hash, "step": STEP}

    def probe_job(self, row, rows) -> Job:
        path = str(rows.root / rows.utterances[row].audio)
        return Job("probe", path, "auto", None, None, rows.seen.get(path))

    def measure(self, rows, probed: Sequence[int], encoder) -> Lengths:
        from mer.pipeline.media.stages import Flag

        lengths = tuple(samples // STEP * STEP for samples in probed)
        steps = tuple(length // STEP for length in lengths)
        return Lengths(lengths, steps, (Flag(0),) * len(lengths))

    def items(self, chosen, rows, lengths, checkpoint) -> list[Item]:
        return [Item(row, n, 0, 0, n) for row in chosen if (n := lengths.lengths[row])]

    def read(self, items: Iterable[Item], rows, lengths, encoder, decoders) -> Iterator[ReadItem]:
        items = list(items)
        paths = [str(rows.root / rows.utterances[item.row].audio) for item in items]
        jobs = (Job("load", path, "auto", None, None, rows.seen.get(path)) for path in paths)
        for item, clip in zip(items, decoders.run(jobs), strict=True):
            if clip.stage is not None:
                yield ReadItem(problem=Problem(Stage(clip.stage), clip.reason))
            else:
                yield ReadItem(clip.waveform[: item.length])

    def describe(self, checkpoint: Checkpoint) -> Described:
        return Described(RATE / STEP, "last", {"step": STEP})


def options(**changes) -> PulseOptions:
    given = {**vars(corpus.options()), **changes}
    return PulseOptions(**given)


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setitem(MODALITIES, "pulse", Pulse)


@pytest.fixture
def made(tmp_path, registered):
    manifest, file = corpus.make(tmp_path, 18)
    done = extract(manifest, tmp_path / "feats.h5", options(), source=file)
    assert (done.utterances, done.untrained) == (18, ["audio", "text", "pulse"])
    return manifest, file, tmp_path / "feats.h5"


def expected(path: Path) -> np.ndarray:
    """By hand, from the file."""
    wave = soundfile.read(path, dtype="float32")[0]
    blocks = [np.abs(wave[i : i + STEP]) for i in range(0, len(wave) - STEP + 1, STEP)]
    return np.array([[block.mean(), block.max()] for block in blocks], np.float32).reshape(-1, 2)


def test_from_manifest_to_store(made):
    manifest, _, out = made
    with FeatureStore(out) as store:
        store.verify()
        assert list(store.header.modalities) == ["audio", "text", "pulse"]
        assert store.header.modalities["pulse"].frame_rate == 10.0
        assert store.header.recipe["pulse"] == {"encoder": "loudness of version 1", "step": STEP}
        assert "pulse" in store.header.provenance["extract"]["self_test"]
        for row, u in enumerate(manifest.rows):
            np.testing.assert_allclose(
                store.features("pulse", row), expected(manifest.root / u.audio), rtol=2e-3
            )


def test_again_there_is_nothing_to_do_and_another_clip_is_encoded_again(made):
    manifest, file, out = made
    assert extract(manifest, out, options(), source=file).action == "nothing"
    corpus.write_clip(manifest.root / "clip3.wav", 0.7, seed=99)
    assert extract(manifest, out, options(), source=file).extracted == 1


def test_without_it_the_keys_are_as_before_it_was_there(tmp_path, monkeypatch):
    manifest, _ = corpus.make(tmp_path, 3)
    before = fingerprint(manifest, corpus.options())
    monkeypatch.setitem(MODALITIES, "pulse", Pulse)
    assert fingerprint(manifest, corpus.options()) == before
    assert fingerprint(manifest, options()) != before


def test_a_killed_run_goes_on_with_the_same_bytes(made, tmp_path, monkeypatch):
    manifest, file, out = made
    other = tmp_path / "other.h5"

    def killed(*args, **keywords):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("mer.pipeline.extraction.runner.assemble_shard", killed)
        with pytest.raises(KeyboardInterrupt):
            extract(manifest, other, options(), source=file)
    parts = {path.name for path in (tmp_path / "other.shards" / ".work").glob("pulse-*.h5")}
    settings = Settings.read(
        tmp_path / "other.shards" / ".work" / "plan.json", fingerprint(manifest, options())
    )
    assert parts and settings.budgets["pulse"] == 20 * STEP
    extract(manifest, other, options(), source=file)
    assert corpus.digests(tmp_path / "other.shards") == corpus.digests(tmp_path / "feats.shards")


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
def test_local_workers_make_the_same_bytes(made, tmp_path, monkeypatch):
    # under the name by which a worker can import it
    from tests.extract import test_third_modality as here

    monkeypatch.setitem(MODALITIES, "pulse", here.Pulse)
    manifest, file, out = made
    extract(manifest, tmp_path / "w.h5", here.options(), source=file, where=Workers(1))
    assert corpus.digests(tmp_path / "w.shards") == corpus.digests(tmp_path / "feats.shards")


def test_export_and_training(made, tmp_path):
    manifest, _, out = made
    with FeatureStore(out) as store:
        assert export(store, "npy", tmp_path / "npy")[0] == 18
        settings = config.load(model="concat", sets=["train.epochs=1", "data.modalities=pulse"])
        run = experiment.train(store, settings, tmp_path / "run", note=lambda line: None)
    assert list((tmp_path / "npy").rglob("*pulse*"))
    told = json.loads((run.path / "run.json").read_text())
    assert list(told["spec"]["modalities"]) == ["pulse"]


def test_it_is_added_to_a_store_of_the_other_two(made, tmp_path, monkeypatch):
    """The bytes are those of a store that was made with all three."""
    manifest, file, out = made
    two = tmp_path / "two.h5"
    extract(manifest, two, corpus.options(), source=file)
    for encoder in ("wav2vec2.AudioEncoder", "bert.TextEncoder"):
        name = f"mer.pipeline.encoders.{encoder}.forward"
        monkeypatch.setattr(name, lambda *a, **k: pytest.fail("computed again"))
    done = extract(manifest, two, options(), source=file)
    assert done.taken_over == {"audio": 18, "text": 18}
    assert corpus.digests(tmp_path / "two.shards") == corpus.digests(tmp_path / "feats.shards")
