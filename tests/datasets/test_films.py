"""Where corpora and tables say that the picture is, and the drawn faces of the synthetic one."""

from __future__ import annotations

import numpy as np
import pytest

from mer.pipeline.datasets import drawnface, prepare, synthetic
from mer.pipeline.errors import DataError
from mer.pipeline.manifest import Manifest
from mer.pipeline.media import pictures

from tests.datasets.test_mosi import ROWS, cmu_tree
from tests.datasets.trees import write_clip, write_iemocap, write_mmsa

SIZE = 24


# --- tables


def table(folder, *lines: str):
    source = folder / "t.csv"
    source.write_text("\n".join(lines) + "\n")
    return prepare("table", source=source, split="none")


def test_a_table_may_name_films(tmp_path):
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / name).write_bytes(b"\0\0\0\x18ftypisom")
    manifest, report = table(
        tmp_path, "id,text,video,video_start,video_end", "1,x,a,1.5,2", "2,y,b.mp4,,", "3,z,,,"
    )
    told = [(u.video, u.video_start, u.video_end) for u in manifest.rows]
    assert told == [("a.mp4", 1.5, 2.0), ("b.mp4", None, None), (None, None, None)]
    manifest.write(tmp_path / "m.parquet")
    assert Manifest.read(tmp_path / "m.parquet").rows == manifest.rows
    manifest, report = table(tmp_path, "id,video", "1,a", "2,gone.mp4")
    assert report.missing == ["2"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("1,../a.mp4,,", "has video '../a.mp4', which is not a file within"),
        ("1,a,soon,", "has video_start 'soon', expected a number"),
        ("1,,1,", "and no video"),
        ("1,a,2,1", "has a video that ends at 1 s"),
    ],
)
def test_films_that_cannot_be(tmp_path, line, said):
    (tmp_path / "a.mp4").write_bytes(b"\0\0\0\x18ftypisom")
    with pytest.raises(DataError, match=said):
        table(tmp_path, "id,video,video_start,video_end", line)


# --- corpora


def test_iemocap_names_the_dialogues_film_the_span_and_the_half(tmp_path):
    root = write_iemocap(tmp_path / "IEMOCAP_full_release")
    plain = prepare("iemocap", root)[0]
    manifest, _ = prepare("iemocap", root, vision=True)
    assert plain.hash != manifest.hash and not any(u.video for u in plain.rows)
    rows = {u.id: u for u in manifest.rows}
    spans = (root / "Session1/dialog/EmoEvaluation/Ses01F_impro01.txt").read_text()
    woman, man = rows["Ses01F_impro01_F000"], rows["Ses01F_impro01_M012"]
    assert woman.video == "Session1/dialog/avi/DivX/Ses01F_impro01.avi" == man.video
    assert f"[{woman.video_start:.4f} - {woman.video_end:.4f}]\t{woman.id}" in spans
    assert woman.start is None and woman.audio.endswith("F000.wav")
    # in Ses01F it is she who wears the markers, in Ses02M it is he
    assert woman.tags == ("improvised", "left") and man.tags == ("improvised", "right")
    assert "right" in rows["Ses02M_script01_1_F000"].tags
    other = {u.id: u for u in prepare("iemocap", root, vision=True, left="unmarked")[0].rows}
    assert "right" in other[woman.id].tags and "left" in other[man.id].tags


def test_mosi_names_films_that_are_not_the_sounds_own_file(tmp_path):
    root = cmu_tree(tmp_path / "cmu")
    assert not any(u.video for u in prepare("mosi", root)[0].rows)
    write_clip(root / "Video" / "Segmented" / "2iD-tVS8NPw_1.mp4")
    write_clip(root / "Video" / "Full" / "2iD-tVS8NPw.mp4")
    manifest, report = prepare("mosi", root, vision=True)
    rows = {u.id: u for u in manifest.rows}
    first, second = rows["2iD-tVS8NPw_1"], rows["2iD-tVS8NPw_2"]
    assert (first.video, first.video_start) == ("Video/Segmented/2iD-tVS8NPw_1.mp4", 0.0)
    assert (second.video, second.video_start) == ("Video/Full/2iD-tVS8NPw.mp4", 5.0)
    assert (second.video_end, second.start, second.end) == (6.0, 5.0, 6.0)
    assert any(line.startswith("1 segment has no film: c5xsKMxpXnc_1") for line in report.warnings)
    # MMSA's clips hold sound and picture
    manifest, _ = prepare("mosi", write_mmsa(tmp_path / "mmsa", ROWS), vision=True)
    assert not any(u.video for u in manifest.rows)


# --- drawn faces


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    root = tmp_path_factory.mktemp("drawn")
    return root, prepare("synthetic", root, size=SIZE, vision=True)[0]


def test_voices_and_words_are_the_same_with_faces_and_without(drawn, tmp_path):
    root, manifest = drawn
    plain, _ = prepare("synthetic", tmp_path, size=SIZE)
    for seen, unseen in zip(manifest.rows, plain.rows, strict=True):
        assert (seen.id, seen.text, seen.label, seen.audio) == (
            unseen.id, unseen.text, unseen.label, unseen.audio,
        )  # fmt: skip
        assert seen.tags[: len(unseen.tags)] == unseen.tags
    assert (root / manifest.rows[0].audio).read_bytes() == (
        tmp_path / plain.rows[0].audio
    ).read_bytes()


def test_the_face_shows_the_voices_emotion_or_that_of_the_words(drawn):
    for u in drawn[1].rows:
        shows = u.tags[-1].removeprefix("face=")
        assert shows in {tag.partition("=")[2] for tag in u.tags[:2]}
    coins = []
    for index, u in enumerate(synthetic.plan(600, 0)):
        voice, words = (tag.partition("=")[2] for tag in u.tags[:2])
        if voice != words:
            coins.append(synthetic.face_of(u, 0, index) == voice)
    assert 0.4 < np.mean(coins) < 0.6


def test_films_are_as_long_as_the_sound_and_the_same_from_the_same_seed(drawn, tmp_path):
    root, manifest = drawn
    again, _ = prepare("synthetic", tmp_path, size=SIZE, vision=True)
    assert again.hash == manifest.hash
    for u in manifest.rows[:6]:
        assert (root / u.video).read_bytes() == (tmp_path / u.video).read_bytes()
        info = pictures.probe(root / u.video, fps=drawnface.FPS)
        sound = len((root / u.audio).read_bytes()) / 32_000
        assert 0 <= info.end - sound < 2 / drawnface.FPS


def test_emotions_look_different_and_a_film_is_lossless(tmp_path):
    """Pictures of one head differ between emotions where mouth and brows are, and nowhere else."""
    head = drawnface.Head.of(np.random.default_rng(3))
    faces = {}
    for emotion in drawnface.LOOKS:
        faces[emotion] = drawnface.draw(emotion, head, 1.0, np.random.default_rng(4))
    first = faces["neutral"].astype(int)
    for emotion in ("joy", "anger", "sadness"):
        changed = np.abs(faces[emotion] - first).max((0, 3)) > 40
        assert 20 < changed.sum() < 0.15 * changed.size
    drawnface.write(tmp_path / "film.mkv", faces["joy"])
    found = [one.pixels for one in pictures.load(tmp_path / "film.mkv", fps=drawnface.FPS)]
    assert np.array_equal(found, faces["joy"])


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_an_untrained_encoder_tells_faces_across_speakers(tmp_path):
    """What the face shows, from the mean of a random ViT's vectors, on other speakers: 80 % right
    of 100 with this seed and 87 % with the next, where the most frequent face is a third. With the
    faces of the training rows shuffled the same probe finds nothing.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from tests.encoders.test_vision import load

    manifest, _ = prepare("synthetic", tmp_path, size=240, seed=0, vision=True)
    encoder = load("builtin:tiny-vit")
    vectors = []
    for u in manifest.rows:
        seen = [encoder.processor(one.pixels) for one in pictures.load(tmp_path / u.video, fps=2.0)]
        vectors.append(encoder.encode([np.stack(seen)])[0].frames.mean(0))
    features = np.stack(vectors)
    shows = np.array([u.tags[-1] for u in manifest.rows])
    speakers = np.array([u.speaker for u in manifest.rows])
    train = np.array([u.split == "train" for u in manifest.rows])
    assert not set(speakers[train]) & set(speakers[~train])

    def right(faces: np.ndarray) -> float:
        """The share of the other speakers' faces that a probe fitted on `faces` tells."""
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000))
        return probe.fit(features[train], faces).score(features[~train], shows[~train])

    assert right(shows[train]) >= 0.65
    dice = np.random.default_rng(0)
    assert np.mean([right(dice.permutation(shows[train])) for _ in range(5)]) <= 0.4
