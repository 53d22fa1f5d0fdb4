"""The mean of every layer, on its way through batches, pieces, parts, kills, copies and repairs.

The oracle is what `--audio-layer K` stores, averaged here.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from mer.pipeline.datasets.newclips import of_manifest
from mer.pipeline.encoders.modality import States
from mer.pipeline.encoders.wav2vec2 import AudioEncoder
from mer.pipeline.errors import DataError, KeyMismatchError, StoreError
from mer.pipeline.extraction import ExtractOptions, extract, repair, steps
from mer.pipeline.extraction.clips import extract_clips
from mer.pipeline.extraction.options import as_recorded, with_defaults
from mer.pipeline.extraction.parts import Begun, Source, compute
from mer.pipeline.manifest import Manifest
from mer.pipeline.store import FeatureStore

from tests.extract import corpus

LAYERS, WIDTH = 3, 96  # of the tiny encoders: two blocks, and what enters the first
VERSIONS = Path(__file__).parent / "versions"
LONG = 6.3  # seconds of a clip that is cut into pieces of at most PIECE
PIECE = 3.0


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    """Eight clips, one of them long, and their manifest."""
    folder = tmp_path_factory.mktemp("clips")
    manifest, file = corpus.make(folder, 8)
    corpus.write_clip(folder / "clip5.wav", LONG, seed=5)
    return folder


def made(folder: Path, out: Path, **changes) -> FeatureStore:
    file = folder / "manifest.parquet"
    options = corpus.options(max_seconds=PIECE, dtype="float32", **changes)
    extract(Manifest.read(file), out, options, source=file)
    return FeatureStore(out)


@pytest.fixture(scope="module")
def whole(clips) -> FeatureStore:
    return made(clips, clips / "whole.h5")


def means_of(store: FeatureStore, modality: str) -> np.ndarray:
    """(rows, width): the mean of what is stored as steps."""
    rows = [store.features(modality, row) for row in range(len(store))]
    return np.stack([steps.mean(axis=0, dtype=np.float64) for steps in rows])


@pytest.mark.parametrize("modality", ["audio", "text"])
@pytest.mark.parametrize("layer", range(LAYERS))
def test_layer_k_is_the_mean_of_what_layer_k_stores(clips, whole, tmp_path, modality, layer):
    """A clip that was cut into pieces, too: each counts by the steps that are kept of it."""
    found = whole.layer_means(modality)
    assert found.shape == (8, LAYERS, WIDTH) and whole.header.modalities[modality].layers == LAYERS
    one = made(clips, tmp_path / "one.h5", **{f"{modality}_layer": str(layer)}, layer_means=False)
    assert one.header.modalities[modality].layers == 0
    np.testing.assert_allclose(found[:, layer], means_of(one, modality), rtol=0, atol=2e-5)


def test_the_long_clip_was_cut(whole):
    assert whole.header.provenance["extract"]["counts"]["chunked"] == 1


def test_pooling_does_not_change_them(clips, whole, tmp_path):
    """They are over the steps before pooling: the last pooled step stands for fewer."""
    pooled = made(clips, tmp_path / "pooled.h5", pool=4)
    short = [row for row in range(8) if row != 5]  # the long one is cut at other places then
    np.testing.assert_allclose(
        pooled.layer_means("audio", short), whole.layer_means("audio", short), rtol=0, atol=2e-5
    )
    steps = pooled.features("audio", 5)
    frames = int(whole.lengths("audio")[5])
    weights = [4] * (frames // 4) + [frames % 4] * (frames % 4 > 0)
    expected = np.average(steps, axis=0, weights=weights)
    np.testing.assert_allclose(pooled.layer_means("audio")[5, -1], expected, rtol=0, atol=2e-5)


def test_a_stack_has_its_layers_side_by_side(clips, tmp_path):
    stacked = made(clips, tmp_path / "stack.h5", audio_layer="stack:0-2:2", text_layer="stack:0-1")
    infos = stacked.header.modalities
    assert (infos["audio"].dim, infos["audio"].stack) == (2 * WIDTH, (0, 2))
    assert (infos["text"].dim, infos["text"].stack) == (2 * WIDTH, (0, 1))
    assert stacked.header.recipe["audio"]["layer"] == "stack:0-last:2"
    for half, layer in ((slice(None, WIDTH), "0"), (slice(WIDTH, None), "2")):
        one = made(clips, tmp_path / f"{layer}.h5", audio_layer=layer)
        for row in range(8):
            left = stacked.features("audio", row)[:, half]
            np.testing.assert_allclose(left, one.features("audio", row), rtol=0, atol=2e-5)
    assert stacked.layer_means("audio").shape == (8, LAYERS, WIDTH)


def test_rows_with_one_transcript_have_the_same(whole):
    """Rows 0 and 5 share their words."""
    text = whole.layer_means("text")
    np.testing.assert_array_equal(text[0], text[5])
    assert np.abs(text[0] - text[1]).max() > 0.1


def test_they_are_stored_in_half_precision(clips, whole, tmp_path):
    file = clips / "manifest.parquet"
    options = corpus.options(max_seconds=PIECE)
    extract(Manifest.read(file), tmp_path / "half.h5", options, source=file)
    half = FeatureStore(tmp_path / "half.h5")
    assert half.header.modalities["audio"].layer_dtype == "float16"
    expected = whole.layer_means("audio").astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(half.layer_means("audio"), expected)


def test_what_does_not_fit_float16_stays_float32(clips, tmp_path, monkeypatch):
    forward = AudioEncoder.forward

    def loud(self, batch, **keywords):
        found = forward(self, batch, **keywords)
        return [States(x.frames, x.layer_means * 1e6) for x in found]

    monkeypatch.setattr(AudioEncoder, "forward", loud)
    file = clips / "manifest.parquet"
    options = corpus.options(shard_bytes=10**9)
    extract(Manifest.read(file), tmp_path / "x.h5", options, source=file)
    infos = FeatureStore(tmp_path / "x.h5").header.modalities
    assert (infos["audio"].layer_dtype, infos["audio"].dtype) == ("float32", "float16")
    assert infos["text"].layer_dtype == "float16"
    assert np.abs(FeatureStore(tmp_path / "x.h5").layer_means("audio")).max() > 1e5


def test_a_changed_clip_leaves_the_others_as_they_are(clips, tmp_path):
    folder = shutil.copytree(clips, tmp_path / "x")
    before = FeatureStore(folder / "whole.h5").layer_means("audio")
    corpus.write_clip(folder / "clip3.wav", 0.9, seed=77)
    store = made(folder, folder / "whole.h5")
    differ = np.abs(store.layer_means("audio") - before).max(axis=(1, 2)) > 0
    assert np.flatnonzero(differ).tolist() == [3]
    store.verify()


def test_damaged_means_are_found_and_repaired(clips, tmp_path):
    folder = shutil.copytree(clips, tmp_path / "x")
    store = made(folder, folder / "whole.h5")
    expected, path = store.layer_means("audio"), store.shards[0].path
    before = path.read_bytes()
    at = before.find(expected[0, 1].tobytes())
    assert at > 0
    path.write_bytes(before[:at] + bytes([before[at] ^ 1]) + before[at + 1 :])
    with pytest.raises(StoreError, match="layer means of audio"):
        FeatureStore(folder / "whole.h5").verify()
    repair(folder / "whole.h5")
    again = FeatureStore(folder / "whole.h5")
    again.verify()
    np.testing.assert_allclose(again.layer_means("audio"), expected, rtol=0, atol=2e-5)


def entry(store: FeatureStore, without: str = "") -> dict:
    """What a run says of the store it was trained on, with no layer means of one modality."""
    header = store.header
    recipe = json.loads(json.dumps(header.recipe))
    if without:
        del recipe[without]["layer_means"]
    return {
        "dataset": "toy",
        "task": "single",
        "labels": ["a", "b"],
        "language": "en",
        "modalities": {m: info.to_dict() for m, info in header.modalities.items()},
        "recipe": recipe,
    }


def test_a_run_may_have_them_of_one_modality_only(clips, whole, tmp_path):
    """As of two stores that were joined; what is beyond them does no harm."""
    rows = of_manifest(Manifest.read(clips / "manifest.parquet")).clips[:2]
    store, _ = extract_clips(rows, entry(whole, "text"), tmp_path / "new.h5", device="cpu")
    assert store.layer_means("audio").shape == (2, LAYERS, WIDTH)


def test_new_clips_have_the_means_of_the_store(clips, whole, tmp_path):
    """What `mer predict` gives a model that reads them."""
    rows = of_manifest(Manifest.read(clips / "manifest.parquet")).clips[3:6]
    store, failures = extract_clips(rows, entry(whole), tmp_path / "new.h5", device="cpu")
    assert not failures
    for modality in ("audio", "text"):
        np.testing.assert_allclose(
            store.layer_means(modality), whole.layer_means(modality)[3:6], rtol=0, atol=2e-5
        )


def test_a_part_taken_up_again_has_them(clips, tmp_path, monkeypatch):
    """What a run that was asked to end has left of a part keeps them in float32."""
    seen = []
    read = Begun.read.__func__

    def spied(cls, part, folder):
        found = read(cls, part, folder)
        if found is not None:
            seen.extend(found.rows)
        return found

    file = clips / "manifest.parquet"
    manifest, options = Manifest.read(file), corpus.options(part_seconds=100, part_tokens=1000)
    extract(manifest, tmp_path / "plain.h5", options, source=file)
    from mer.pipeline.extraction import parts

    encode, count = parts._encode, []

    def stopping(batch, source, dtype, stop):
        count.append(1)
        if len(count) == 6:
            stop.asked = True
        return encode(batch, source, dtype, stop)

    with monkeypatch.context() as patch:
        patch.setattr(parts, "_encode", stopping)
        with pytest.raises(KeyboardInterrupt):
            extract(manifest, tmp_path / "x.h5", options, source=file)
    assert list((tmp_path / "x.shards" / ".work").glob("*.begun"))
    monkeypatch.setattr(Begun, "read", classmethod(spied))
    extract(manifest, tmp_path / "x.h5", options, source=file)
    assert seen and all(row.layer_means.dtype == np.float32 for row in seen)
    assert corpus.digests(tmp_path / "x.shards") == corpus.digests(tmp_path / "plain.shards")


class Cramped:
    """An encoder that has room for one item, and whose one layer mean tells what was kept."""

    dim = width = layer_count = 1
    precision = "fp32"

    def collate(self, items, kept=None):
        return items, kept

    def forward(self, batch, *, precision=None):
        return self.encode(*batch, precision=precision)

    def encode(self, items, kept=None, *, precision=None):
        if len(items) > 1:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        (x,), ((first, steps),) = items, kept
        mean = np.full((1, 1), x[first : first + steps].mean(), np.float32)
        return [States(x[:, None], mean)]


def test_halved_batches_keep_what_they_were_told(clips):
    items = [np.arange(4, dtype=np.float32), np.full(5, 7.0, np.float32), np.arange(3.0)]
    kept = [(1, 2), (0, 5), (2, 1)]
    encoder = Cramped()
    found, tally = compute(Source(encoder, iter), items, encoder.collate(items, kept), kept)
    assert [float(x.layer_means[0, 0]) for x in found] == [1.5, 7.0, 2.0]
    assert tally.oom_splits == 2


def test_what_is_not_finite_is_a_failure_of_its_clip():
    class Broken(Cramped):
        def encode(self, items, kept=None, *, precision=None):
            return [States(x[:, None], np.array([[np.inf]], np.float32)) for x in items]

    found, _ = compute(Source(Broken(), iter), [np.zeros(2, np.float32)], None, [None])
    assert found[0].stage == "nan"


def test_a_dry_run_counts_their_bytes(clips):
    """By hand: steps in float16, means over the steps in float32, three layer means in float16."""
    file = clips / "manifest.parquet"
    sizes = {}
    for kept in (True, False):
        options = corpus.options(layer_means=kept, audio_layer="stack:0-1")
        done = extract(Manifest.read(file), clips / "n.h5", options, source=file, dry_run=True)
        sizes[kept] = done.bytes
    assert sizes[True] - sizes[False] == 8 * 2 * LAYERS * WIDTH * 2
    options = corpus.options(layer_means=False)
    one = extract(Manifest.read(file), clips / "n.h5", options, source=file, dry_run=True)
    frames = sum(FeatureStore(clips / "whole.h5").lengths("audio"))
    assert sizes[False] - one.bytes == WIDTH * (2 * frames + 4 * 8)


# --- stores made before there were layer means, by the code of that time (`versions/v1`)


@pytest.fixture
def old(tmp_path) -> Path:
    """Six clips, and the stores of them that the first version of the format has: `both.h5`, and
    `audio.h5` of their sound alone.
    """
    corpus.make(tmp_path / "old", 6)
    return shutil.copytree(VERSIONS / "v1", tmp_path / "old", dirs_exist_ok=True)


def over(folder: Path, name: str = "both.h5", **changes):
    file = folder / "manifest.parquet"
    options = corpus.options(shard_bytes=30_000, **changes)
    return extract(Manifest.read(file), folder / name, options, source=file)


def test_an_old_store_says_that_it_has_none_and_what_to_do(old):
    before = corpus.digests(old / "both.shards")
    with pytest.raises(KeyMismatchError) as error:
        over(old)
    line = str(error.value).replace(str(old), "")
    assert "has no layer means of audio and text" in line and len(line) <= 300
    assert "--no-layer-means leaves it as it is, --force makes them" in line
    assert corpus.digests(old / "both.shards") == before


def test_an_old_store_is_left_as_it_is(old):
    """The same fingerprint as the code of then gave it."""
    told = FeatureStore(old / "both.h5").header
    assert told.version == 1
    done = over(old, layer_means=False)
    assert (done.action, done.fingerprint, done.reused) == ("nothing", told.fingerprint, 6)
    with pytest.raises(DataError, match="keeps no layer means of audio.*--force"):
        FeatureStore(old / "both.h5").layer_means("audio")


def test_an_old_store_is_made_again_with_them(old):
    features = [FeatureStore(old / "both.h5").features("audio", row) for row in range(6)]
    done = over(old, force=True)
    assert (done.action, done.extracted) == ("extracted", 6)
    store = FeatureStore(old / "both.h5")
    store.verify()
    assert store.layer_means("audio").shape == (6, LAYERS, WIDTH) and store.header.version == 2
    for row, expected in enumerate(features):
        np.testing.assert_allclose(store.features("audio", row), expected, rtol=1e-3, atol=1e-3)


def test_a_modality_is_added_to_an_old_store(old, monkeypatch):
    before = [FeatureStore(old / "audio.h5").features("audio", row, "stored") for row in range(6)]
    monkeypatch.setattr(AudioEncoder, "forward", lambda *a, **k: pytest.fail("computed"))
    assert over(old, "audio.h5", layer_means=False).taken_over == {"audio": 6}
    store = FeatureStore(old / "audio.h5")
    store.verify()
    for row, expected in enumerate(before):
        np.testing.assert_array_equal(store.features("audio", row, "stored"), expected)
    with pytest.raises(KeyMismatchError, match="no layer means of audio"):
        over(old, "audio.h5")


def test_a_changed_clip_of_an_old_store_is_computed_alone(old):
    """Its shard is then of the present format, beside others of the first."""
    corpus.write_clip(old / "clip1.wav", 0.6, seed=40)
    done = over(old, layer_means=False)
    assert (done.extracted, done.reused) == (1, 5)
    FeatureStore(old / "both.h5").verify()


def test_an_old_store_is_repaired_as_it_was(old, monkeypatch):
    """What it says of its making does not name the option."""
    head = FeatureStore(old / "both.h5")
    path, made = head.shards[0].path, head.header.provenance["extract"]
    assert "layer_means" not in made["options"]
    assert as_recorded(made["options"]).layer_means is False
    expected = [head.features("audio", row) for row in range(6)]
    content = bytearray(path.read_bytes())
    content[-40] ^= 4
    path.write_bytes(content)
    manifest = Manifest.read(old / "manifest.parquet")  # which was elsewhere then
    monkeypatch.setattr(steps.Manifest, "read", lambda path: manifest)
    assert repair(old / "both.h5").extracted > 0
    store = FeatureStore(old / "both.h5")
    store.verify()
    assert not store.header.modalities["audio"].layers
    for row, frames in enumerate(expected):
        np.testing.assert_allclose(store.features("audio", row), frames, rtol=1e-3, atol=1e-3)


# --- defaults


def test_a_layer_goes_with_its_encoder(tmp_path):
    manifest, _ = corpus.make(tmp_path, 2)
    meld = dataclasses.replace(manifest, dataset="meld")
    found = with_defaults(meld, {})
    assert found["audio_encoder"] == "facebook/wav2vec2-large-robust"
    assert found["audio_layer"] == "12" and "text_layer" not in found
    named = with_defaults(meld, {"audio_encoder": "facebook/wav2vec2-large-960h-lv60-self"})
    assert "audio_layer" not in named  # the last
    assert with_defaults(meld, {"audio_layer": "3"})["audio_layer"] == "3"
    assert with_defaults(manifest, {}) == found  # an English corpus that names none
    synthetic = dataclasses.replace(manifest, dataset="synthetic")
    assert with_defaults(synthetic, {}).keys() == {"audio_encoder", "text_encoder"}
    assert ExtractOptions(**found).layer_means
    assert json.dumps(found)
