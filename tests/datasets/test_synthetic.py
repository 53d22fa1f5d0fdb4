"""The synthetic corpus: its stated rule, its splits, its bytes; and that untrained encoders can
tell its emotions (slow).
"""

from __future__ import annotations

import hashlib
from collections import Counter

import numpy as np
import pytest
import soundfile

from mer.pipeline.datasets import corpora, prepare, synthetic
from mer.pipeline.errors import DataError
from mer.pipeline.media import audio as media

SIZE = 60


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("synthetic")
    return root, *prepare("synthetic", root, size=SIZE)


def parts(u) -> tuple[str, str]:
    return u.tags[0].removeprefix("voice="), u.tags[1].removeprefix("words=")


@pytest.mark.parametrize(("size", "seed"), [(600, 0), (600, 1), (SIZE, 0), (12, 5), (1001, 2)])
def test_a_third_disagrees_and_the_stronger_emotion_is_the_label(size, seed):
    rows = synthetic.plan(size, seed)
    assert len(rows) == len({u.id for u in rows}) == size
    for u in rows:
        voice, words = parts(u)
        assert u.label == next(
            e for e in ("anger", "sadness", "joy", "neutral") if e in (voice, words)
        )
        assert ("inconsistent" in u.tags) == (voice != words)
        lexicon = {
            e: [w for words in synthetic.LEXICON[e] for w in words if w in u.text.lower()]
            for e in synthetic.EMOTIONS
        }
        assert lexicon[words]
    assert abs(sum("inconsistent" in u.tags for u in rows) / size - 1 / 3) < (
        0.01 if size >= 600 else 0.1
    )


@pytest.mark.parametrize("seed", [0, 1])
def test_neither_modality_alone_reaches_more_than_85_percent(seed):
    rows = synthetic.plan(600, seed)
    for part in (0, 1):
        table = Counter((parts(u)[part], u.label) for u in rows)
        best = sum(
            max(n for (seen, _), n in table.items() if seen == e) for e in synthetic.EMOTIONS
        )
        assert 0.80 <= best / len(rows) <= 0.85
    assert len({(parts(u), u.label) for u in rows}) == 16  # both together decide


def test_splits_are_by_dialogue_with_speakers_of_their_own_and_balanced_labels():
    rows = synthetic.plan(600, 0)
    for group in ("dialogue", "speaker"):
        where = {}
        for u in rows:
            assert where.setdefault(getattr(u, group), u.split) == u.split
    counts = Counter((u.split, u.label) for u in rows)
    assert {counts["train", e] for e in synthetic.EMOTIONS} == {90} and {
        counts["test", e] for e in synthetic.EMOTIONS
    } == {30}
    assert [u.position for u in rows if u.dialogue == "dia0003"] == list(range(10))


def test_files_are_16_khz_pcm_of_varied_length_and_free_of_clipping(made):
    root, manifest, report = made
    clips = [media.load(root / u.audio) for u in manifest.rows]
    lengths = np.array([c.seconds for c in clips])
    assert all((c.source_rate, c.channels, c.flags) == (16_000, 1, ()) for c in clips)
    assert lengths.min() >= 0.39 and lengths.max() <= 6.01 and lengths.std() > 0.5
    assert soundfile.info(root / manifest.rows[0].audio).subtype == "PCM_16"
    assert not report.warnings and not report.missing


def test_the_same_seed_gives_the_same_bytes_and_a_second_run_writes_nothing(made, tmp_path):
    root, manifest, _ = made
    before = {p: p.stat().st_mtime_ns for p in root.rglob("*.wav")}
    again, _ = prepare("synthetic", root, size=SIZE)
    other, _ = prepare("synthetic", tmp_path, size=SIZE)
    assert {p: p.stat().st_mtime_ns for p in root.rglob("*.wav")} == before
    assert again.hash == manifest.hash == other.hash
    for u in manifest.rows[:10]:
        assert (root / u.audio).read_bytes() == (tmp_path / u.audio).read_bytes()


def test_a_lost_file_is_written_again(made):
    root, manifest, _ = made
    path = root / manifest.rows[3].audio
    digest = hashlib.sha256(path.read_bytes()).digest()
    path.unlink()
    prepare("synthetic", root, size=SIZE)
    assert hashlib.sha256(path.read_bytes()).digest() == digest


def test_sizes_and_seeds_live_side_by_side(made):
    root, manifest, _ = made
    small, _ = prepare("synthetic", root, size=12, seed=1)
    assert {u.audio.split("/")[0] for u in small.rows}.isdisjoint(
        u.audio.split("/")[0] for u in manifest.rows
    )
    assert all((root / u.audio).exists() for u in (*manifest.rows, *small.rows))


def test_sentiment_labels(made):
    root, manifest, _ = made
    sentiment, _ = prepare("synthetic", root, labels="sentiment", size=SIZE)
    of = corpora.corpus("synthetic").label_set("sentiment").source
    assert [u.label for u in sentiment.rows] == [of[u.label] for u in manifest.rows]
    assert (
        sentiment.labels == ("neutral", "positive", "negative") and sentiment.hash != manifest.hash
    )


@pytest.mark.parametrize("options", [{"size": 3}, {"seed": -1}, {"length": 2}])
def test_options_that_make_no_sense(tmp_path, options):
    with pytest.raises(DataError):
        prepare("synthetic", tmp_path, **options)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot write the synthetic corpus here .*--root"):
        prepare("synthetic", tmp_path / "file", size=12)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_untrained_encoders_tell_voices_and_words_across_speakers(tmp_path, seed):
    """Voice from mean-pooled frames of a random Wav2Vec2 >= 0.9, words from a bag of random
    embeddings >= 0.95, both on dev.
    """
    import torch
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from mer.pipeline.encoders import tiny

    manifest, _ = prepare("synthetic", tmp_path, seed=seed)
    audio, text, tokenizer = (
        tiny.model("builtin:tiny-wav2vec2").eval(),
        tiny.model("builtin:tiny-roberta"),
        tiny.HashTokenizer(),
    )
    vectors = text.embeddings.word_embeddings.weight.detach().numpy()
    with torch.inference_mode():
        frames = [
            audio(
                torch.from_numpy(media.load(tmp_path / u.audio).waveform)[None]
            ).last_hidden_state[0]
            for u in manifest.rows
        ]
    features = {
        0: np.stack([f.mean(0).numpy() for f in frames]),
        1: np.stack([vectors[ids].mean(0) for ids in tokenizer([u.text for u in manifest.rows])]),
    }
    train, dev = (np.array([u.split == s for u in manifest.rows]) for s in ("train", "dev"))
    for part, floor in ((0, 0.90), (1, 0.95)):
        y = np.array([parts(u)[part] for u in manifest.rows])
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000)).fit(
            features[part][train], y[train]
        )
        assert probe.score(features[part][dev], y[dev]) >= floor
