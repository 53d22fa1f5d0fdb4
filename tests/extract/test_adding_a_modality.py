"""One encoder more than a store was made with: its modality is added, and what the store has of the
others is taken over, to the byte.
"""

from __future__ import annotations

import dataclasses
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from mer.pipeline.encoders.bert import TextEncoder
from mer.pipeline.encoders.wav2vec2 import AudioEncoder
from mer.pipeline.errors import DataError, KeyMismatchError
from mer.pipeline.extraction import Share, Workers, extract
from mer.pipeline.extraction.plan import Settings
from mer.pipeline.extraction.recipes import differences, keeping
from mer.pipeline.manifest import Manifest
from mer.pipeline.runtime.progress import Silent
from mer.pipeline.store import FeatureStore, build_index

from tests.encoders import checkpoints
from tests.extract import corpus

ONE = {"audio": {"text_encoder": "none"}, "text": {"audio_encoder": "none"}}
ENCODERS = {"audio": AudioEncoder, "text": TextEncoder}
OTHER = {"audio": "text", "text": "audio"}


class Noted(Silent):
    """Remembers what it is told."""

    def __init__(self):
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture(scope="module")
def stores(tmp_path_factory) -> Path:
    """The corpus with a store of both modalities (`both.h5`) and one of each (`audio.h5`)."""
    folder = tmp_path_factory.mktemp("stores")
    manifest, file = corpus.make(folder)
    extract(manifest, folder / "both.h5", corpus.options(), source=file)
    for name, only in ONE.items():
        extract(manifest, folder / f"{name}.h5", corpus.options(**only), source=file)
    return folder


@pytest.fixture
def folder(stores, tmp_path) -> Path:
    return shutil.copytree(stores, tmp_path / "x")


def add(folder: Path, out: str, *, where=None, progress=None, rows=None, **changes):
    """Both modalities into the store that is there."""
    file = folder / "manifest.parquet"
    manifest = Manifest.read(file)
    if rows is not None:
        manifest = dataclasses.replace(manifest, rows=tuple(map(rows, manifest.rows)))
    given = {} if where is None else {"where": where}
    options = corpus.options(**changes)
    return extract(manifest, folder / out, options, source=file, progress=progress, **given)


def stored(head: Path, modality: str) -> dict[str, bytes]:
    with FeatureStore(head) as store:
        store.verify()
        ids = store.table()["id"].to_pylist()
        return {id: store.features(modality, i, "stored").tobytes() for i, id in enumerate(ids)}


def same_shards(folder: Path, one: str, other: str) -> bool:
    found = [corpus.digests(folder / f"{name}.shards") for name in (one, other)]
    return found[0] == found[1] and bool(found[0])


@pytest.mark.parametrize("there", ["audio", "text"])
def test_what_is_there_is_not_computed_again(folder, there, monkeypatch):
    before = stored(folder / f"{there}.h5", there)
    monkeypatch.setattr(ENCODERS[there], "forward", lambda *a, **k: pytest.fail("computed"))
    noted = Noted()
    done = add(folder, f"{there}.h5", progress=noted)
    assert (done.action, done.extracted, done.reused) == ("extracted", 24, 0)
    assert done.taken_over == {there: 24} and f"{there} of 24 taken over" in done.lines()[0]
    assert any(f"adding {OTHER[there]}" in note for note in noted.notes)
    assert stored(folder / f"{there}.h5", there) == before
    assert same_shards(folder, there, "both")
    assert add(folder, f"{there}.h5").action == "nothing"


def test_what_the_head_says_of_the_old_modality_stays(folder):
    """What it was computed with is not what this machine would compute it with."""
    before = FeatureStore(folder / "audio.h5").header
    info = before.modalities["audio"]
    add(folder, "audio.h5")
    header = FeatureStore(folder / "audio.h5").header
    assert header.modalities["audio"] == info and list(header.modalities) == ["audio", "text"]
    tests = header.provenance["extract"]["self_test"]
    assert tests["audio"] == before.provenance["extract"]["self_test"]["audio"]
    assert tests["text"]["passed"]
    assert header.fingerprint == FeatureStore(folder / "both.h5").header.fingerprint


def test_a_clip_that_has_changed_is_encoded_and_the_others_are_not(folder, monkeypatch):
    corpus.write_clip(folder / "clip3.wav", 0.7, seed=99)
    before = stored(folder / "audio.h5", "audio")
    encoded = []
    collate = AudioEncoder.collate

    def counted(self, waveforms, *args):
        encoded.append(len(waveforms))
        return collate(self, waveforms, *args)

    monkeypatch.setattr(AudioEncoder, "collate", counted)
    done = add(folder, "audio.h5")
    assert done.taken_over == {"audio": 23} and set(encoded) == {1}
    after = stored(folder / "audio.h5", "audio")
    assert {id for id in after if after[id] != before[id]} == {"u003"}
    add(folder, "new.h5")
    assert stored(folder / "new.h5", "text") == stored(folder / "audio.h5", "text")


def test_a_changed_transcript_leaves_the_audio_alone(folder, monkeypatch):
    """The store has no text yet: what it is made from cannot have changed."""
    monkeypatch.setattr(AudioEncoder, "forward", lambda *a, **k: pytest.fail("computed"))
    done = add(folder, "audio.h5", rows=lambda u: dataclasses.replace(u, text=f"{u.text} new"))
    assert done.taken_over == {"audio": 24}


def test_rows_that_only_the_new_modality_has_come_in(folder):
    """A row without a clip was no row of the audio store."""
    quiet = {"u001", "u004"}
    rows = lambda u: dataclasses.replace(u, audio=None) if u.id in quiet else u  # noqa: E731
    assert add(folder, "few.h5", rows=rows, text_encoder="none", max_failures=2).utterances == 22
    done = add(folder, "few.h5", rows=rows)
    assert (done.utterances, done.taken_over) == (24, {"audio": 22})
    with FeatureStore(folder / "few.h5") as store:
        store.verify()
        assert [store.lengths("audio")[row] for row in (1, 4)] == [0, 0]


def test_without_the_media_it_says_so_and_the_store_stays(folder):
    """Whether they have changed is told by their bytes, so they have to be there."""
    before = stored(folder / "audio.h5", "audio")
    for clip in folder.glob("*.wav"):
        clip.unlink()
    with pytest.raises(DataError, match=r"none of 24 utterances can be read, first u000 \(open"):
        add(folder, "audio.h5")
    assert stored(folder / "audio.h5", "audio") == before


def test_a_damaged_shard_of_the_old_store_is_computed_again(folder):
    shard = sorted((folder / "audio.shards").glob("shard-*.h5"))[0]
    content = bytearray(shard.read_bytes())
    content[-100] ^= 1
    shard.write_bytes(content)
    noted = Noted()
    done = add(folder, "audio.h5", progress=noted)
    assert 0 < done.taken_over["audio"] < 24
    assert any(shard.name in note and "again" in note for note in noted.notes)
    with FeatureStore(folder / "audio.h5") as one, FeatureStore(folder / "both.h5") as both:
        for row in range(24):  # in other batches: rounded otherwise in the last bit
            new, old = one.features("audio", row), both.features("audio", row)
            np.testing.assert_allclose(new, old, rtol=1e-3, atol=1e-3)


def test_what_an_unfinished_store_of_fewer_modalities_has_is_taken_over(folder, monkeypatch):
    """No head file says so: the shards themselves do."""
    (folder / "audio.h5").unlink()
    monkeypatch.setattr(AudioEncoder, "forward", lambda *a, **k: pytest.fail("computed"))
    assert add(folder, "audio.h5").taken_over == {"audio": 24}
    assert same_shards(folder, "audio", "both")


@pytest.mark.parametrize("at", ["encoded", "assembled", "head"])
def test_stopped_it_goes_on_and_the_old_store_is_read_meanwhile(folder, monkeypatch, at):
    before = stored(folder / "audio.h5", "audio")
    where = {
        "encoded": "mer.pipeline.extraction.runner.assemble_shard",
        "assembled": "mer.pipeline.extraction.publish.write_failures",
        "head": "mer.pipeline.extraction.publish.write_head",
    }[at]

    def killed(*args, **keywords):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(where, killed)
        with pytest.raises(KeyboardInterrupt):
            add(folder, "audio.h5")
    assert stored(folder / "audio.h5", "audio") == before
    assert add(folder, "audio.h5", text_encoder="none").action == "nothing"
    monkeypatch.setattr(AudioEncoder, "forward", lambda *a, **k: pytest.fail("computed"))
    assert add(folder, "audio.h5").taken_over == {"audio": 24}
    assert same_shards(folder, "audio", "both")
    assert not (folder / "audio.shards" / ".work").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
def test_workers_add_with_the_same_bytes(folder):
    assert add(folder, "audio.h5", where=Workers(2)).taken_over == {"audio": 24}
    assert same_shards(folder, "audio", "both")


def test_two_shares_add_with_the_same_bytes(folder):
    before = stored(folder / "text.h5", "text")
    assert add(folder, "text.h5", where=Share(1, 2)).action == "part"
    assert stored(folder / "text.h5", "text") == before
    assert add(folder, "text.h5", where=Share(2, 2)).action == "extracted"
    assert same_shards(folder, "text", "both")


def test_dry_run_says_what_is_taken_over(folder):
    manifest = Manifest.read(folder / "manifest.parquet")
    before = corpus.digests(folder / "audio.shards")
    done = extract(manifest, folder / "audio.h5", corpus.options(), dry_run=True)
    assert (done.action, done.extracted, done.taken_over) == ("dry-run", 24, {"audio": 24})
    assert done.batches["text"] and "audio" not in done.batches
    assert corpus.digests(folder / "audio.shards") == before


REFUSED = [
    # (options, what the line must say)
    (ONE["audio"], ["text features: there, not asked", "--text-encoder builtin:tiny-roberta"]),
    (ONE["text"], ["audio features: there, not", "--audio-encoder builtin:tiny-wav2vec2 keeps it"]),
    ({"audio_layer": "1"}, ["audio layer: last there, 1 now", "--audio-layer last keeps it"]),
    ({"pool": 3, "precision": "fp32"}, ["--pool 1 --precision auto keeps it"]),
    ({"max_seconds": 9.5}, ["--max-seconds 60 keeps it"]),
    ({"audio_track": "1"}, ["--audio-track auto keeps it"]),
    ({"dtype": "float32"}, ["--dtype float16 keeps it"]),
]


@pytest.mark.parametrize(("changes", "says"), REFUSED)
def test_another_recipe_is_refused_with_what_keeps_the_old_one(folder, changes, says):
    before = stored(folder / "both.h5", "audio")
    with pytest.raises(KeyMismatchError) as error:
        add(folder, "both.h5", **changes)
    line = str(error.value)
    for words in [*says, "--force replaces it", "another --out"]:
        assert words in line
    assert error.value.exit_code == 4 and len(line.replace(str(folder), "")) <= 300
    assert stored(folder / "both.h5", "audio") == before


def test_a_changed_modality_is_refused_also_where_another_would_be_added(folder):
    with pytest.raises(KeyMismatchError, match="audio pool: 1 there, 2 now; text features: no"):
        add(folder, "audio.h5", pool=2)


def test_a_manifest_without_the_modality_says_so(folder):
    """No option brings it back."""
    with pytest.raises(KeyMismatchError, match="this manifest has no text"):
        add(folder, "both.h5", rows=lambda u: dataclasses.replace(u, text=None))


def test_a_plan_that_holds_what_nobody_has_is_made_again(tmp_path):
    plan = Settings("f", {"audio": 1}, 1, 1, {"audio": 1}, holds={"shard-00000-00000000.h5": ["x"]})
    assert not plan.fits(1, ["audio"])
    plan.write(tmp_path / "plan.json")
    assert Settings.read(tmp_path / "plan.json", "f") == plan
    for holds in ({"shard-00000-00000000.h5": "audio"}, {"../x.h5": ["audio"]}, []):
        dataclasses.replace(plan, holds=holds).write(tmp_path / "plan.json")
        noted = Noted()
        assert Settings.read(tmp_path / "plan.json", "f", noted.note) is None and noted.notes


def test_the_features_of_the_new_modality_are_those_of_the_encoder(folder):
    add(folder, "audio.h5")
    with FeatureStore(folder / "audio.h5") as one, FeatureStore(folder / "both.h5") as both:
        for row in range(len(both)):
            np.testing.assert_array_equal(one.features("text", row), both.features("text", row))


def given(line: str) -> dict[str, str | bool | int | float]:
    """The options that a refusal says keep the store, as fields."""
    words = re.split(r"\); ", line)[-1].partition(" keeps it")[0].split()
    found: dict = {}
    while words:
        name = words.pop(0).removeprefix("--")
        if words and not words[0].startswith("--"):
            value: str | float = words.pop(0).strip("'")
            kinds = {"pool": int, "max-seconds": float}
            found[name.replace("-", "_")] = kinds.get(name, str)(value)
        else:
            found[name.removeprefix("no-").replace("-", "_")] = not name.startswith("no-")
    return found


@pytest.fixture(scope="module")
def other(tmp_path_factory) -> str:
    """Another encoder, in a folder."""
    return str(checkpoints.audio(tmp_path_factory.mktemp("others") / "other", norm="layer"))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"audio_layer": "1", "layer_means": False},
        {"audio_encoder": "none"},
        {"text_encoder": "none", "pool": 2},
        {"text_layer": "stack:0-1", "channel": "mix", "precision": "fp32"},
    ],
)
def test_the_options_that_the_line_names_do_keep_the_store(folder, other, changes):
    """One who does as told finds nothing to do: also where the encoder is another."""
    asked = {"audio_encoder": other, "audio_layer": "2"} | changes
    with pytest.raises(KeyMismatchError) as error:
        add(folder, "both.h5", **asked)
    assert len(str(error.value).replace(str(folder), "")) <= 300
    assert add(folder, "both.h5", **asked | given(str(error.value))).action == "nothing"


def test_an_option_of_the_new_encoder_alone_is_taken_back(folder, tmp_path):
    """Whisper has windows, the encoder that was there has none."""
    asked = {"audio_encoder": str(checkpoints.whisper(tmp_path / "w")), "audio_window": "full"}
    with pytest.raises(KeyMismatchError, match="--audio-window '' keeps it") as error:
        add(folder, "both.h5", **asked)
    assert add(folder, "both.h5", **asked | given(str(error.value))).action == "nothing"


def test_a_store_of_the_default_before_is_refused_in_the_same_way():
    """The encoders of MELD then and now; what the line says beside the path fits into 300."""
    names = "facebook/wav2vec2-large-960h-lv60-self", "facebook/wav2vec2-large-robust"
    plain = {"pool": 1, "channel": "auto", "max_seconds": 60.0}
    old = {"extractor": 1, "dtype": "float16", "precision": "auto", "text": {"encoder": "t"}}
    now = old | {"text": {"encoder": "t", "layer_means": True}}
    old["audio"] = {"encoder": "a", "layer": "last", **plain}
    now["audio"] = {"encoder": "b", "layer": "12", "layer_means": True, **plain}
    what = "; ".join(differences(old, now, {"audio": names, "text": ("r", "r")}))
    assert what.startswith(f"audio encoder: {names[0]} there, {names[1]} now; no layer means of")
    asked = {"audio_layer": "12", "layer_means": True}
    sources = {"audio": names[0], "text": "roberta-large"}
    options = keeping(old, now, sources, asked, lambda name, settings: old[name])
    expected = [f"--audio-encoder {names[0]}", "--audio-layer last", "--no-layer-means"]
    assert options == expected


def test_what_meant_something_else_then_no_option_brings_back(folder):
    """The last block by its number was one without the final norm; today it is the last layer."""
    header = FeatureStore(folder / "both.h5").header
    recipe = header.recipe | {"audio": header.recipe["audio"] | {"layer": "2"}}
    shutil.copy(folder / "both.h5", folder / "then.h5")
    store = FeatureStore(folder / "both.h5")
    build_index(
        folder / "then.h5",
        [record.path for record in store.shards],
        store.table(),
        dataset=header.dataset,
        task=header.task,
        labels=header.labels,
        modalities=header.modalities,
        recipe=recipe,
        provenance=header.provenance,
    )
    with pytest.raises(KeyMismatchError, match="2 there, last now.; choose another --out, or"):
        add(folder, "then.h5")
