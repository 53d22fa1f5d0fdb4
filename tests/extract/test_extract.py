"""From manifest to store: what is computed, what is reused, what is refused, and what is told."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from mer.pipeline.encoders.bert import TextEncoder
from mer.pipeline.encoders.loading import resolve
from mer.pipeline.encoders.modality import States
from mer.pipeline.encoders.wav2vec2 import AudioEncoder
from mer.pipeline.errors import DataError, EncoderError, FailuresError, KeyMismatchError, StoreError
from mer.pipeline.extraction import extract, repair
from mer.pipeline.extraction.parts import stored
from mer.pipeline.extraction.plan import ShardPlan
from mer.pipeline.manifest import Manifest, Utterance
from mer.pipeline.runtime.progress import Lines
from mer.pipeline.store import FeatureStore
from mer.pipeline.store.schema import HALF_MAX

from tests.extract import corpus


def changed(found: list[States], change) -> list[States]:
    """What an encoder gave, with `change` applied to the frames."""
    return [dataclasses.replace(states, frames=change(states.frames)) for states in found]


def names(folder) -> set[str]:
    return {path.name for path in (folder / "feats.shards").iterdir()}


def test_features_are_those_of_the_encoders_one_clip_at_a_time(made):
    """The oracle: every clip alone through the encoder, as a user would write it in ten lines."""
    audio = AudioEncoder(resolve("audio", "builtin:tiny-wav2vec2"), device="cpu")
    text = TextEncoder(resolve("text", "builtin:tiny-roberta"), device="cpu")
    manifest = Manifest.read(made / "manifest.parquet")
    with FeatureStore(made / "feats.h5") as store:
        assert [r["id"] for r in store.table().select(["id"]).to_pylist()] == [
            u.id for u in manifest.rows
        ]
        for row, u in enumerate(manifest.rows):
            waveform, _ = soundfile.read(made / u.audio, dtype="float32")
            expected = audio.encode([audio.prepare(waveform)])[0].frames
            # float16
            np.testing.assert_allclose(store.features("audio", row), expected, rtol=1e-3, atol=2e-3)
            expected = text.encode(text.tokens([u.text])[0])[0].frames
            np.testing.assert_allclose(store.features("text", row), expected, rtol=1e-3, atol=2e-3)


def test_the_corpus_is_large_enough_to_mean_something(made):
    store = FeatureStore(made / "feats.h5")
    plan = store.header.provenance["extract"]["plan"]
    assert len(store.shards) >= 3 and plan["batches"]["audio"] >= 6 and plan["batches"]["text"] >= 3
    store.verify()


@pytest.mark.parametrize("changes", [{"threads": 1}, {"threads": 3}, {"decoders": 2}])
def test_threads_and_decoders_do_not_change_a_byte(made, again, changes):
    import torch

    before, threads = corpus.digests(made / "feats.shards"), torch.get_num_threads()
    for path in [made / "feats.h5", *(made / "feats.shards").glob("shard-*.h5")]:
        path.unlink()
    assert again(**{"threads": 2, **changes}).extracted == 24
    assert corpus.digests(made / "feats.shards") == before and torch.get_num_threads() == threads


def test_header(made):
    header = FeatureStore(made / "feats.h5").header
    assert list(header.modalities) == ["audio", "text"]
    audio, text = header.modalities.values()
    assert (audio.frame_rate, audio.layer, audio.dtype, audio.trained, text.frame_rate) == (
        50.0,
        "last",
        "float16",
        False,
        None,
    )
    assert header.fingerprint and header.recipe["audio"]["channel"] == "auto"
    assert all(
        result["passed"] and result["items"] >= 2
        for result in header.provenance["extract"]["self_test"].values()
    )


def test_nothing_is_left_lying_about(made):
    assert {name for name in names(made) if not name.startswith("shard-")} <= {".hold"}
    assert (made / "feats.shards" / ".hold").stat().st_size == 0


def test_again_does_nothing(made, again):
    before = {path: path.stat().st_mtime_ns for path in made.rglob("*.h5")}
    report = again()
    assert (report.action, report.reused, report.extracted) == ("nothing", 24, 0)
    assert {path: path.stat().st_mtime_ns for path in made.rglob("*.h5")} == before


def test_again_on_a_read_only_mount_writes_nothing(made, again, monkeypatch):
    """Root may write anywhere, so a forbidden open stands for the mount."""
    monkeypatch.setattr(
        "mer.pipeline.extraction.steps.hold", lambda path, **_: pytest.fail("took a hold")
    )
    monkeypatch.setattr("mer.pipeline.store.arrays.write", lambda *a, **k: pytest.fail("wrote"))
    assert again().action == "nothing"


CHANGES = [
    {"audio_layer": "1"},
    {"pool": 4},
    {"channel": "mix"},
    {"max_seconds": 30.0},
    {"dtype": "float32"},
    {"precision": "fp32"},
    {"text_encoder": "none"},
    {"audio_encoder": "none"},
]
WORDS = [
    "audio layer: last there, 1 now",
    "audio pool: 1 there, 4 now",
    "channel",
    "max-seconds",
    "dtype: float16 there, float32 now",
    "precision: auto there, fp32 now",
    "text features: there, not asked for now",
    "audio features: there, not asked for now",
]


@pytest.mark.parametrize(("change", "words"), list(zip(CHANGES, WORDS, strict=True)))
def test_any_other_recipe_is_refused_by_name(again, made, change, words):
    before = corpus.digests(made / "feats.shards")
    with pytest.raises(KeyMismatchError, match="another recipe .*" + words) as error:
        again(**change)
    assert error.value.exit_code == 4
    assert corpus.digests(made / "feats.shards") == before


def test_other_weights_are_refused(again, made, monkeypatch):
    monkeypatch.setattr("mer.pipeline.encoders.tiny.VERSION", 999)
    with pytest.raises(
        KeyMismatchError, match="audio encoder: builtin:tiny-wav2vec2 with other files"
    ):
        again()


def test_force_replaces(again, made):
    report = again(pool=2, force=True)
    assert (report.action, report.extracted) == ("extracted", 24)
    store = FeatureStore(made / "feats.h5")
    assert store.header.modalities["audio"].frame_rate == 25.0
    assert names(made) == {record.path.name for record in store.shards} | {".hold"}


@pytest.mark.parametrize(
    "change",
    [{"budget_seconds": 5.0}, {"device": "cpu"}, {"shard_bytes": 10**9}, {"max_failures": 3}],
)
def test_what_is_no_recipe_changes_nothing(again, change):
    assert again(**change).action == "nothing"


def test_pooling_is_the_mean_of_true_frames(made, again):
    store = FeatureStore(made / "feats.h5")
    # the last mean is over fewer
    row = next(row for row, n in enumerate(store.lengths("audio")) if n > 8 and n % 4)
    whole = store.features("audio", row)
    again(pool=4, force=True, dtype="float32")
    pooled = FeatureStore(made / "feats.h5").features("audio", row)
    assert len(pooled) == -(-len(whole) // 4)
    expected = np.stack([whole[i : i + 4].mean(0) for i in range(0, len(whole), 4)])
    np.testing.assert_allclose(pooled, expected, atol=5e-3)


def test_labels_and_splits_change_the_head_only(made, again):
    before = corpus.digests(made / "feats.shards")
    report = again(
        rows=lambda rows: [
            dataclasses.replace(u, label="b", split="train", speaker="s") for u in rows
        ]
    )
    assert (report.action, report.reused) == ("head", 24)
    assert corpus.digests(made / "feats.shards") == before
    table = FeatureStore(made / "feats.h5").table()
    assert set(table["label"].to_pylist()) == {"b"} and set(table["split"].to_pylist()) == {"train"}
    assert again().action == "nothing"


def test_changed_clips_and_texts_redo_only_themselves(made, again):
    """Three of 24 change; the other rows are copied bit by bit, shards without a change are not
    even opened for writing.
    """
    old = FeatureStore(made / "feats.h5")
    before = {
        u: old.features("audio", i, "stored").copy()
        for i, u in enumerate(old.table()["id"].to_pylist())
    }
    shards = corpus.digests(made / "feats.shards")
    for i in (3, 4):
        corpus.write_clip(made / f"clip{i}.wav", 0.7, seed=1000 + i)
    report = again(
        rows=lambda rows: [
            dataclasses.replace(u, text="something new") if u.id == "u002" else u for u in rows
        ]
    )
    assert (report.action, report.extracted, report.reused) == ("extracted", 3, 21)
    store = FeatureStore(made / "feats.h5")
    store.verify()
    changed = {"u003", "u004"}
    for i, u in enumerate(store.table()["id"].to_pylist()):
        same = np.array_equal(store.features("audio", i, "stored"), before[u])
        assert same == (u not in changed) or u == "u002"
    assert len(corpus.digests(made / "feats.shards").items() & shards.items()) >= len(shards) - 2
    assert again().action == "nothing"


def test_rows_added_removed_and_renamed(made, again):
    corpus.write_clip(made / "new.wav", 1.0, seed=77)
    new = Utterance("new", "new.wav", "a new one", "train", "a")
    report = again(
        rows=lambda rows: [
            new,
            *rows[2:10],
            dataclasses.replace(rows[10], id="renamed"),
            *rows[11:],
        ]
    )
    assert (report.extracted, report.reused, report.utterances) == (1, 22, 23)
    store = FeatureStore(made / "feats.h5")
    store.verify()
    assert (
        store.table()["id"].to_pylist()[0] == "new" and "renamed" in store.table()["id"].to_pylist()
    )


def test_a_moved_folder_stays_valid(made, again, tmp_path):
    moved = shutil.move(made, tmp_path / "moved 文件夹 'x'")
    manifest = Manifest.read(moved / "manifest.parquet")
    report = extract(
        manifest, moved / "feats.h5", corpus.options(), source=moved / "manifest.parquet"
    )
    assert report.action == "nothing"
    FeatureStore(moved / "feats.h5").verify()


def test_a_missing_shard_is_made_again(made, again):
    victim = sorted((made / "feats.shards").glob("shard-*.h5"))[1]
    before = FeatureStore(made / "feats.h5").packed("audio")[0].copy()
    victim.unlink()
    report = again()
    assert report.action == "extracted" and 0 < report.extracted < 24
    np.testing.assert_allclose(
        FeatureStore(made / "feats.h5").packed("audio")[0], before, atol=4e-3
    )


@pytest.mark.parametrize("damage", ["flip", "truncate", "swap", "remove"])
def test_repair_redoes_only_what_is_damaged(made, damage):
    shards = sorted((made / "feats.shards").glob("shard-*.h5"))
    before, features = (
        corpus.digests(made / "feats.shards"),
        FeatureStore(made / "feats.h5").packed("text")[0].copy(),
    )
    content = bytearray(shards[1].read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 4
    shards[1].write_bytes(
        {"truncate": content[:-100], "swap": shards[0].read_bytes()}.get(damage, content)
    )
    if damage == "remove":
        shards[1].unlink()
    with pytest.raises(StoreError):
        FeatureStore(made / "feats.h5").verify()
    report = repair(made / "feats.h5", decoders=0)
    assert 0 < report.extracted < 24
    store = FeatureStore(made / "feats.h5")
    store.verify()
    after = corpus.digests(made / "feats.shards")
    assert after.keys() == before.keys() and {n for n in after if after[n] != before[n]} <= {
        shards[1].name
    }
    np.testing.assert_allclose(store.packed("text")[0], features, atol=4e-3)


def test_repair_finds_media_elsewhere(made, tmp_path):
    media = tmp_path / "media"
    media.mkdir()
    for clip in made.glob("clip*.wav"):
        shutil.move(clip, media)
    sorted((made / "feats.shards").glob("shard-*.h5"))[0].unlink()
    assert repair(made / "feats.h5", root=media, decoders=0).extracted > 0


def test_replaced_shards_go_whatever_their_number(made, again):
    """Six digits from 100,000 on: what no head names is deleted there as below; other files in the
    folder stay.
    """
    old = sorted((made / "feats.shards").glob("shard-*.h5"))[0]
    for number in (99_999, 100_000, 1_234_567):
        shutil.copy(old, made / "feats.shards" / ShardPlan(number, [], "0123abcd" * 8).name)
    (made / "feats.shards" / "shard-mine.h5").write_text("mine")
    again(pool=2, force=True)
    assert names(made) == {
        record.path.name for record in FeatureStore(made / "feats.h5").shards
    } | {".hold", "shard-mine.h5"}


def test_a_foreign_file_is_not_overwritten(made, again):
    (made / "feats.h5").write_text("my thesis")
    with pytest.raises(StoreError, match="or name another file"):
        again()
    assert (made / "feats.h5").read_text() == "my thesis"
    with pytest.raises(DataError, match="is a directory"):
        extract(Manifest.read(made / "manifest.parquet"), made, corpus.options())


# --- clips that cannot be read, and odd ones


def bad_corpus(root):
    """Six clips, of which only two are fine."""
    manifest, file = corpus.make(root, 6)
    (root / "clip1.wav").unlink()
    (root / "clip2.wav").write_text("this is no audio")
    (root / "clip3.wav").write_bytes(b"")
    rows = list(manifest.rows)
    rows[3] = dataclasses.replace(rows[3], known_bad="empty in the release")
    rows[4] = dataclasses.replace(rows[4], audio=None, text=None)
    manifest = dataclasses.replace(manifest, rows=tuple(rows))
    manifest.write(file)
    return manifest, file


@pytest.mark.parametrize("decoders", [0, 2])
def test_failures_are_counted_and_the_rest_is_written(tmp_path, decoders):
    manifest, file = bad_corpus(tmp_path)
    with pytest.raises(
        FailuresError, match=r"3 utterances failed .*u001 \(open.*the other 2"
    ) as error:
        extract(manifest, tmp_path / "feats.h5", corpus.options(decoders=decoders), source=file)
    assert error.value.exit_code == 3
    report = error.value.report
    assert [(f.id, f.stage, f.known) for f in report.failures] == [
        ("u001", "open", False),
        ("u002", "open", False),
        ("u003", "empty", True),
        ("u004", "empty", False),
    ]
    lines = [
        json.loads(line)
        for line in (tmp_path / "feats.shards" / "failures.jsonl").read_text().splitlines()
    ]
    assert [line["id"] for line in lines] == ["u001", "u002", "u003", "u004"]
    assert set(lines[0]) == {"id", "path", "stage", "reason", "known"}
    store = FeatureStore(tmp_path / "feats.h5")
    assert store.table()["id"].to_pylist() == ["u000", "u005"]
    # asked again: nothing is computed, and the failures are told again
    with pytest.raises(FailuresError):
        extract(manifest, tmp_path / "feats.h5", corpus.options(), source=file)
    report = extract(manifest, tmp_path / "feats.h5", corpus.options(max_failures=3), source=file)
    assert report.action == "nothing" and report.unexpected == 3


def test_a_repaired_clip_is_taken_in(tmp_path):
    manifest, file = bad_corpus(tmp_path)
    extract(manifest, tmp_path / "feats.h5", corpus.options(max_failures=9), source=file)
    corpus.write_clip(tmp_path / "clip1.wav", 0.5, 1)
    report = extract(manifest, tmp_path / "feats.h5", corpus.options(max_failures=9), source=file)
    assert (report.extracted, report.reused, report.unexpected) == (1, 2, 2)


def test_nothing_readable_is_an_error(tmp_path):
    manifest, file = corpus.make(tmp_path, 2)
    for clip in tmp_path.glob("*.wav"):
        clip.write_text("x")
    with pytest.raises(DataError, match="none of 2 utterances can be read"):
        extract(manifest, tmp_path / "feats.h5", corpus.options(), source=file)
    assert not (tmp_path / "feats.h5").exists()


def test_short_and_long_clips_are_counted(tmp_path):
    """One under a receptive field, one over --max-seconds; frames are as many as the arithmetic
    says, whatever the pieces.
    """
    manifest, file = corpus.make(tmp_path, 3)
    corpus.write_clip(tmp_path / "clip0.wav", 0.004, 0)
    corpus.write_clip(tmp_path / "clip1.wav", 11.3, 1)
    report = extract(manifest, tmp_path / "feats.h5", corpus.options(max_seconds=4.0), source=file)
    assert report.counts == {"short": 1, "chunked": 1} and report.flagged == {
        "short": ["u000"],
        "chunked": ["u001"],
    }
    assert (
        "counted: 1 short (shorter than the encoder's first frame, padded with zeros): u000"
        in report.lines()
    )
    again = extract(manifest, tmp_path / "feats.h5", corpus.options(max_seconds=4.0), source=file)
    assert (again.action, again.counts, again.flagged) == ("nothing", report.counts, report.flagged)
    store = FeatureStore(tmp_path / "feats.h5")
    assert store.lengths("audio").tolist()[:2] == [1, (round(11.3 * 16000) - 400) // 320 + 1]


def test_pieces_pool_like_the_whole(tmp_path):
    """On layer 0, where a frame does not depend on where its piece was cut."""
    manifest, file = corpus.make(tmp_path, 1)
    corpus.write_clip(tmp_path / "clip0.wav", 11.3, 1)
    lengths = {}
    for pool in (1, 3):
        options = corpus.options(max_seconds=4.0, pool=pool, dtype="float32", audio_layer="0")
        extract(manifest, tmp_path / f"feats{pool}.h5", options, source=file)
        store = FeatureStore(tmp_path / f"feats{pool}.h5")
        lengths[pool] = store.features("audio", 0)
    whole = lengths[1]
    np.testing.assert_allclose(
        lengths[3], np.stack([whole[i : i + 3].mean(0) for i in range(0, len(whole), 3)]), atol=1e-4
    )


def test_spans_of_one_file(tmp_path):
    manifest, file = corpus.make(tmp_path, 1)
    corpus.write_clip(tmp_path / "clip0.wav", 3.0, 1)
    spans = [(None, None), (0.0, 1.0), (1.0, 2.5), (2.9, 9.0)]
    rows = [Utterance(f"u{i}", "clip0.wav", None, start=a, end=b) for i, (a, b) in enumerate(spans)]
    manifest = dataclasses.replace(manifest, rows=tuple(rows))
    extract(manifest, tmp_path / "feats.h5", corpus.options(text_encoder="none"), source=None)
    store = FeatureStore(tmp_path / "feats.h5")
    np.testing.assert_allclose(
        store.table()["duration"].to_numpy(), [3.0, 1.0, 1.5, 0.1], atol=1e-6
    )
    assert store.lengths("audio").tolist() == [149, 49, 74, 4]


def test_the_first_row_may_have_no_audio(tmp_path):
    manifest, _ = corpus.make(tmp_path, 3)
    rows = (dataclasses.replace(manifest.rows[0], audio=None), *manifest.rows[1:])
    extract(dataclasses.replace(manifest, rows=rows), tmp_path / "feats.h5", corpus.options())
    store = FeatureStore(tmp_path / "feats.h5")
    assert [n > 0 for n in store.lengths("audio")] == [False, True, True]


def test_one_modality_may_be_missing(tmp_path):
    manifest, file = corpus.make(tmp_path, 4)
    rows = list(manifest.rows)
    rows[1] = dataclasses.replace(rows[1], audio=None)
    rows[2] = dataclasses.replace(rows[2], text=None)
    rows[3] = dataclasses.replace(rows[3], text="")
    extract(
        dataclasses.replace(manifest, rows=tuple(rows)), tmp_path / "feats.h5", corpus.options()
    )
    store = FeatureStore(tmp_path / "feats.h5")
    assert [n > 0 for n in store.lengths("audio")] == [True, False, True, True]
    assert [n > 0 for n in store.lengths("text")] == [True, True, False, False]


def test_a_clip_that_changes_during_the_run_stops_it(made, again, monkeypatch):
    """Its hash was taken before; features of other bytes must not get under that key."""
    corpus.write_clip(made / "clip3.wav", 0.7, seed=5)
    from mer.pipeline.encoders.audio import Audio

    original = Audio.read

    def meddle(*args, **kwargs):
        os.utime(made / "clip3.wav", (1, 1))
        return original(*args, **kwargs)

    monkeypatch.setattr(Audio, "read", meddle)
    with pytest.raises(
        DataError,
        match="clip3.wav: changed while it was being extracted; run the same command again",
    ):
        again()


def test_memory_that_runs_out_splits_the_batch(made, again, monkeypatch):
    import torch

    before = FeatureStore(made / "feats.h5").packed("audio")[0].copy()
    forward = AudioEncoder.forward

    def small(self, batch, **keywords):
        if len(batch[2]) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory (made up)")
        return forward(self, batch, **keywords)

    monkeypatch.setattr("mer.pipeline.extraction.settle.self_test", lambda *args: {})
    monkeypatch.setattr(AudioEncoder, "forward", small)
    for path in (made / "feats.shards").glob("shard-*.h5"):
        path.unlink()
    report = again()
    assert report.oom_splits > 3 and not report.failures
    np.testing.assert_allclose(
        FeatureStore(made / "feats.h5").packed("audio")[0], before, atol=4e-3
    )


def test_a_clip_that_fits_no_memory_is_a_failure(tmp_path, monkeypatch):
    manifest, file = corpus.make(tmp_path, 5)
    corpus.write_clip(tmp_path / "clip2.wav", 2.0, 1)
    forward = AudioEncoder.forward

    def small(self, batch, **keywords):
        if max(batch[2]) > 31_000:
            raise RuntimeError(
                "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: "
                "you tried to"
            )
        return forward(self, batch, **keywords)

    monkeypatch.setattr("mer.pipeline.extraction.settle.self_test", lambda *args: {})
    monkeypatch.setattr(AudioEncoder, "forward", small)
    report = extract(manifest, tmp_path / "feats.h5", corpus.options(max_failures=1), source=file)
    assert [(f.id, f.stage) for f in report.failures] == [
        ("u002", "oom")
    ] and report.utterances == 4


def test_other_errors_are_not_taken_for_memory(tmp_path, monkeypatch):
    manifest, file = corpus.make(tmp_path, 2)

    def broken(self, batch, **keywords):
        raise RuntimeError("shape mismatch")

    monkeypatch.setattr("mer.pipeline.extraction.settle.self_test", lambda *args: {})
    monkeypatch.setattr(AudioEncoder, "forward", broken)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        extract(manifest, tmp_path / "feats.h5", corpus.options(), source=file)


def test_half_precision_that_overflows_is_computed_again(tmp_path, monkeypatch):
    manifest, file = corpus.make(tmp_path, 3)
    forward = AudioEncoder.forward

    def overflowing(self, batch, *, precision=None):
        found = forward(self, batch, precision=precision)
        return found if precision == "fp32" else changed(found, lambda x: x * np.float32("inf"))

    monkeypatch.setattr("mer.pipeline.extraction.settle.self_test", lambda *args: {})
    monkeypatch.setattr(AudioEncoder, "forward", overflowing)
    report = extract(manifest, tmp_path / "feats.h5", corpus.options(precision="bf16"), source=file)
    assert report.fp32_batches >= 1 and report.utterances == 3


def test_half_precision_that_is_wrong_is_refused(tmp_path, monkeypatch):
    manifest, file = corpus.make(tmp_path, 3)
    forward = AudioEncoder.forward

    def wrong(self, batch, *, precision=None):
        found = forward(self, batch, precision="fp32")
        return found if precision == "fp32" else changed(found, lambda x: x * np.float32(1.5))

    monkeypatch.setattr(AudioEncoder, "forward", wrong)
    with pytest.raises(
        EncoderError,
        match="audio encoder .*: 50% off in bf16, which is no rounding; use --precision fp32",
    ):
        extract(manifest, tmp_path / "feats.h5", corpus.options(precision="bf16"), source=file)
    assert not (tmp_path / "feats.h5").exists()


def test_rows_are_rounded_as_numpy_rounds():
    """Every float16 and what lies between two of them; more than float16 holds stays float32."""
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    halves = np.unique(halves[np.isfinite(halves)].astype(np.float32))
    x = np.concatenate(
        [
            halves,
            (halves[1:] + halves[:-1]) / 2,
            np.nextafter(halves, np.float32(0)),
            [65519.0, 1e-9, -1e-40],
        ]
    )
    x = x.astype(np.float32)[: len(x) // 4 * 4].reshape(-1, 4)
    inside = x[(np.abs(x) <= HALF_MAX).all(1)]
    assert (
        stored(inside, "float16").dtype == np.float16
        and (stored(inside, "float16") == inside.astype(np.float16)).all()
    )
    assert (
        stored(x * 2, "float16").dtype == np.float32
        and stored(inside, "float32").dtype == np.float32
    )


def test_an_encoder_that_fails_the_self_test_runs_one_by_one(tmp_path, monkeypatch):
    manifest, file = corpus.make(tmp_path, 6)
    forward, sizes = AudioEncoder.forward, []

    def leaky(self, batch, **keywords):
        sizes.append(len(batch[2]))
        return changed(forward(self, batch, **keywords), lambda x: x + 0.01 * len(batch[2]))

    monkeypatch.setattr(AudioEncoder, "forward", leaky)
    report = extract(manifest, tmp_path / "feats.h5", corpus.options(), source=file)
    assert not report.self_test["audio"]["passed"] and report.self_test["text"]["passed"]
    assert set(sizes[-6:]) == {1}
    assert FeatureStore(tmp_path / "feats.h5").header.provenance["extract"]["plan"][
        "one_by_one"
    ] == ["audio"]


def test_values_beyond_half_are_stored_in_full(tmp_path, monkeypatch):
    manifest, file = corpus.make(tmp_path, 3)
    forward = AudioEncoder.forward
    monkeypatch.setattr(
        AudioEncoder,
        "forward",
        lambda self, batch, **k: changed(forward(self, batch, **k), lambda x: x * 1e5),
    )
    extract(manifest, tmp_path / "feats.h5", corpus.options(), source=file)
    store = FeatureStore(tmp_path / "feats.h5")
    assert (
        store.header.modalities["audio"].dtype == "float32"
        and np.abs(store.features("audio", 0)).max() > 65_504
    )


def test_dry_run_writes_nothing(tmp_path):
    manifest, file = corpus.make(tmp_path)
    report = extract(manifest, tmp_path / "feats.h5", corpus.options(), source=file, dry_run=True)
    assert (report.action, report.utterances, report.extracted) == ("dry-run", 24, 24)
    assert report.bytes > 0 and report.padding["audio"] >= 1 and report.batches["audio"] > 5
    assert not (tmp_path / "feats.h5").exists() and not (tmp_path / "feats.shards").exists()


def test_dry_run_knows_the_size(made, again):
    """Bytes of the plan against bytes on disk: what is beyond is each shard's index."""
    shards = sorted((made / "feats.shards").glob("shard-*.h5"))
    actual = sum(path.stat().st_size for path in shards)
    planned = again(dry_run=True, pool=1, force=True).bytes
    assert planned <= actual  # nothing to do: the store's own size
    for path in [made / "feats.h5", *shards]:
        path.unlink()
    planned = again(dry_run=True).bytes
    assert planned < actual < planned + 12_000 * len(shards)


def test_confirmation_comes_before_anything_is_written(tmp_path):
    manifest, file = corpus.make(tmp_path, 4)

    def refuse(size):
        assert size > 10_000
        raise DataError("too large")

    with pytest.raises(DataError, match="too large"):
        extract(manifest, tmp_path / "feats.h5", corpus.options(), source=file, confirm=refuse)
    assert not list(tmp_path.rglob("*.h5"))


def test_the_plan_counts_every_transcript_once(made):
    """24 rows, five of them with the same words: 20 distinct transcripts."""
    manifest = Manifest.read(made / "manifest.parquet")
    assert len({u.text for u in manifest.rows}) == 20
    rows = [i for i, u in enumerate(manifest.rows) if u.text == "again and again"]
    store = FeatureStore(made / "feats.h5")
    assert all(
        np.array_equal(
            store.features("text", rows[0], "stored"), store.features("text", r, "stored")
        )
        for r in rows
    )


def test_windows_give_the_same_features(made, again):
    whole = FeatureStore(made / "feats.h5").packed("audio")[0].copy()
    for path in (made / "feats.shards").glob("shard-*.h5"):
        path.unlink()
    again(window=6)
    np.testing.assert_allclose(FeatureStore(made / "feats.h5").packed("audio")[0], whole, atol=4e-3)


def test_progress_lines(made, capsys):
    manifest = Manifest.read(made / "manifest.parquet")
    extract(
        manifest,
        made / "other.h5",
        corpus.options(),
        source=made / "manifest.parquet",
        progress=Lines(every=0),
    )
    err = capsys.readouterr().err
    assert (
        "of 18.8 seconds of audio" in err
        and "× real time, 0:00:0" in err
        and "left" in err
        and "untrained" in err
    )


def test_a_short_run_says_how_fast_it_was_and_a_resumed_one_counts_only_its_own_work(
    made, capsys, monkeypatch
):
    """Nothing between start and end is what a run of under ten seconds had said."""
    manifest, clock = Manifest.read(made / "manifest.parquet"), iter(range(1000, 10**6))
    monkeypatch.setattr(
        "mer.pipeline.runtime.progress.time", SimpleNamespace(monotonic=lambda: next(clock))
    )
    with Lines(every=1e9).task("extracting", 7200, "s") as advance:
        advance(3600, fresh=False)
        advance(1800)
    assert (
        capsys.readouterr().err
        == "extracting: 1.5 of 2.0 hours of audio, 600 × real time, 0:00:03 left\n"
    )
    extract(
        manifest,
        made / "other.h5",
        corpus.options(),
        source=made / "manifest.parquet",
        progress=Lines(every=1e9),
    )
    lines = [
        line for line in capsys.readouterr().err.splitlines() if line.startswith("extracting: ")
    ]
    assert (
        len(lines) == 1 and "18.8 of 18.8 seconds of audio" in lines[0] and "left" not in lines[0]
    )
    shards = sorted((made / "other.shards").glob("shard-*.h5"))
    shards[0].unlink()
    extract(
        manifest,
        made / "other.h5",
        corpus.options(),
        source=made / "manifest.parquet",
        progress=Lines(every=1e9),
    )
    assert "extracting: " in capsys.readouterr().err


def test_the_store_of_another_corpus_is_not_replaced(made, tmp_path):
    """Two corpora with the same encoders have one recipe."""
    head, before = made / "feats.h5", corpus.digests(made / "feats.shards")
    manifest = Manifest.read(made / "manifest.parquet")
    named = dataclasses.replace(manifest, dataset="other", rows=manifest.rows[:20])
    stranger = corpus.make(tmp_path / "more", 3, seed=9)[0]
    stranger = dataclasses.replace(
        stranger, rows=tuple(dataclasses.replace(u, id=f"x{u.id}") for u in stranger.rows)
    )
    for other, common in ((named, 20), (stranger, 0)):
        with pytest.raises(
            KeyMismatchError,
            match=f"holds 24 utterances of toy, .* of {other.dataset} has {common}; choose another "
            "--out",
        ):
            extract(other, head, corpus.options())
    assert corpus.digests(made / "feats.shards") == before
    extract(stranger, head, corpus.options(force=True))
    assert len(FeatureStore(head)) == 3


def test_what_leaves_the_store_is_counted(made, again, capsys):
    again(rows=lambda rows: rows[:10], progress=Lines())
    assert (
        "14 utterances of " in capsys.readouterr().err
        and len(FeatureStore(made / "feats.h5")) == 10
    )


def test_a_disk_that_will_be_full_is_told_beforehand(tmp_path, monkeypatch, capsys):
    manifest, _ = corpus.make(tmp_path, 3)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1))
    extract(manifest, tmp_path / "feats.h5", corpus.options(), progress=Lines())
    assert "0 MB free; when the disk is full" in capsys.readouterr().err
