"""Pictures through the whole of extraction: store, resume, workers, shares, what goes wrong."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from mer.pipeline.errors import DataError
from mer.pipeline.extraction import Share, TooManyFailures, Workers, extract, repair
from mer.pipeline.manifest import Manifest, Utterance
from mer.pipeline.media import pictures
from mer.pipeline.media.stages import Flag
from mer.pipeline.store import FeatureStore

from tests.encoders.test_vision import load
from tests.extract import corpus
from tests.media import films

SEEN = {"vision_encoder": "builtin:tiny-vit"}
MUTE = {"audio_encoder": "none", "text_encoder": "none"}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with films, their manifest, and a store of all three modalities."""
    folder = tmp_path_factory.mktemp("films")
    manifest, file = corpus.make(folder, 12, films=True)
    report = extract(manifest, folder / "feats.h5", corpus.options(**SEEN), source=file)
    assert (report.extracted, report.failures) == (12, [])
    return folder


def again(folder: Path, out: Path, where=None, **changes):
    manifest = Manifest.read(folder / "manifest.parquet")
    given = {} if where is None else {"where": where}
    options = corpus.options(**SEEN, **changes)
    return extract(manifest, out, options, source=folder / "manifest.parquet", **given)


def test_the_store_has_what_the_encoder_gives_of_each_picture(made):
    encoder = load("builtin:tiny-vit", layer_means=True)
    with FeatureStore(made / "feats.h5") as store:
        store.verify()
        assert list(store.header.modalities) == ["audio", "text", "vision"]
        info = store.header.modalities["vision"]
        assert (info.frame_rate, info.dim, info.layers, info.trained) == (4.0, 96, 3, False)
        recipe = store.header.recipe["vision"]
        assert (recipe["fps"], recipe["pool"], recipe["crop"]) == (4.0, "cls", "none")
        for row in (0, 3, 7):
            film = made / f"clip{row}.mkv"
            seen = [encoder.processor(one.pixels) for one in pictures.load(film, fps=4.0)]
            states = encoder.encode([np.stack(seen)])[0]
            found = store.features("vision", row)
            assert len(found) == pictures.probe(film, fps=4.0).count
            np.testing.assert_allclose(found, states.frames, atol=2e-3)
            means = store.layer_means("vision", [row])[0]
            np.testing.assert_allclose(means, states.layer_means, atol=5e-3)


def test_again_there_is_nothing_to_do_and_another_film_is_seen_again(made, tmp_path):
    folder = shutil.copytree(made, tmp_path / "copy")
    assert again(folder, folder / "feats.h5").action == "nothing"
    corpus.write_film(folder / "clip3.mkv", 0.7, seed=99)
    assert again(folder, folder / "feats.h5").extracted == 1


def test_a_killed_run_goes_on_with_the_same_bytes(made, tmp_path, monkeypatch):
    def killed(*args, **keywords):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("mer.pipeline.extraction.runner.assemble_shard", killed)
        with pytest.raises(KeyboardInterrupt):
            again(made, tmp_path / "x.h5")
    assert list((tmp_path / "x.shards" / ".work").glob("vision-*.h5"))
    again(made, tmp_path / "x.h5")
    assert corpus.digests(tmp_path / "x.shards") == corpus.digests(made / "feats.shards")


def test_decoding_processes_make_the_same_bytes(made, tmp_path):
    again(made, tmp_path / "x.h5", decoders=2)
    assert corpus.digests(tmp_path / "x.shards") == corpus.digests(made / "feats.shards")


@pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
def test_two_workers_and_two_shares_make_the_same_bytes(made, tmp_path):
    again(made, tmp_path / "w.h5", Workers(2))
    assert corpus.digests(tmp_path / "w.shards") == corpus.digests(made / "feats.shards")
    assert again(made, tmp_path / "s.h5", Share(2, 2)).action == "part"
    assert again(made, tmp_path / "s.h5", Share(1, 2)).action == "extracted"
    assert corpus.digests(tmp_path / "s.shards") == corpus.digests(made / "feats.shards")


def test_a_lost_shard_is_made_again(made, tmp_path):
    folder = shutil.copytree(made, tmp_path / "copy")
    lost = sorted((folder / "feats.shards").glob("shard-*.h5"))[0]
    lost.unlink()
    repair(folder / "feats.h5")
    with FeatureStore(made / "feats.h5") as one, FeatureStore(folder / "feats.h5") as other:
        other.verify()
        for row in range(12):  # in other batches, so they may differ by rounding
            np.testing.assert_allclose(
                one.features("vision", row), other.features("vision", row), atol=2e-3
            )


def test_vision_is_added_to_a_store_without_it(made, tmp_path):
    manifest = Manifest.read(made / "manifest.parquet")
    extract(manifest, tmp_path / "x.h5", corpus.options())
    report = extract(manifest, tmp_path / "x.h5", corpus.options(**SEEN))
    assert report.taken_over == {"audio": 12, "text": 12}
    with FeatureStore(made / "feats.h5") as one, FeatureStore(tmp_path / "x.h5") as other:
        for row in range(12):
            np.testing.assert_allclose(
                one.features("vision", row), other.features("vision", row), atol=2e-3
            )


def rows(*names: str, **changes) -> tuple[Utterance, ...]:
    found = []
    for name in names:
        found.append(Utterance(name, f"{name}", f"words of {name}", "train", "a", **changes))
    return tuple(found)


def run(root: Path, utterances: tuple[Utterance, ...], **changes):
    manifest = Manifest("toy", "single", ("a",), utterances, root)
    return extract(manifest, root / "x.h5", corpus.options(**{**SEEN, **changes}))


def test_a_clip_without_a_picture_keeps_the_rest_and_is_counted(tmp_path):
    corpus.write_film(tmp_path / "film.mkv", 1.0, seed=1)
    corpus.write_clip(tmp_path / "sound.wav", 1.0, seed=2)
    report = run(tmp_path, rows("film.mkv", "sound.wav"))
    assert report.failures == [] and report.counts["no_picture"] == 1
    with FeatureStore(tmp_path / "x.h5") as store:
        assert len(store.features("vision", 1)) == 0 and len(store.features("audio", 1)) == 49
        assert store.flags[1] & Flag.no_picture and not store.flags[0] & Flag.no_picture


def test_no_picture_anywhere_is_one_line(tmp_path):
    corpus.write_clip(tmp_path / "sound.wav", 1.0, seed=2)
    films.ffmpeg(*films.sound(), *films.AAC, tmp_path / "sound.m4a")
    with pytest.raises(DataError, match="none of 2 clips has a picture") as caught:
        run(tmp_path, rows("sound.wav", "sound.m4a"))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300
    with pytest.raises(
        DataError, match="none of 2 clips has a picture .*sound.wav.*`video` column"
    ):
        run(tmp_path, rows("sound.wav", "sound.m4a"), **MUTE)


def test_a_damaged_picture_is_a_named_failure_of_its_clip(tmp_path):
    corpus.write_film(tmp_path / "good.mkv", 1.0, seed=1)
    films.ffmpeg(*films.scene(), *films.sound(), *films.X264, *films.AAC, tmp_path / "bad.mkv")
    content = bytearray((tmp_path / "bad.mkv").read_bytes())
    for place in range(len(content) // 2, len(content) // 2 + 4000, 50):
        content[place] ^= 0xFF
    (tmp_path / "bad.mkv").write_bytes(content)
    with pytest.raises(TooManyFailures) as caught:
        run(tmp_path, rows("good.mkv", "bad.mkv"), audio_encoder="none")
    (failure,) = caught.value.report.failures
    assert failure.id == "bad.mkv" and str(tmp_path / "bad.mkv") in failure.reason
    assert len(FeatureStore(tmp_path / "x.h5")) == 1


def test_a_damaged_picture_among_rows_without_one_stops_nothing(tmp_path):
    """That no picture could be read is told of that clip, not of the whole corpus."""
    corpus.write_film(tmp_path / "bad.mkv", 1.0, seed=1)
    content = (tmp_path / "bad.mkv").read_bytes()
    (tmp_path / "bad.mkv").write_bytes(content[: len(content) // 2])
    words = Utterance("words", None, "only words", "train", "a")
    with pytest.raises(TooManyFailures) as caught:
        run(tmp_path, (words, *rows("bad.mkv")))
    assert [failure.id for failure in caught.value.report.failures] == ["bad.mkv"]
    assert len(FeatureStore(tmp_path / "x.h5")) == 1


def test_the_picture_may_be_in_another_file_with_another_span(tmp_path):
    corpus.write_film(tmp_path / "film.mkv", 4.0, seed=1)
    corpus.write_clip(tmp_path / "a.wav", 1.0, seed=2)
    spans = ((None, None), (1.0, 2.5))
    utterances = []
    for number, (start, end) in enumerate(spans):
        utterances.append(
            Utterance(
                f"u{number}", "a.wav", "words", "train", "a", video="film.mkv",
                video_start=start, video_end=end,
            )
        )  # fmt: skip
    run(tmp_path, tuple(utterances))
    with FeatureStore(tmp_path / "x.h5") as store:
        assert [len(store.features("vision", row)) for row in range(2)] == [16, 6]
        assert [len(store.features("audio", row)) for row in range(2)] == [49, 49]
        whole = store.features("vision", 0)
        # the middles of 1.125, 1.375, … s are moments 4 … 9 of the whole
        assert np.array_equal(store.features("vision", 1), whole[4:10])


def test_long_clips_are_seen_in_pieces(tmp_path, monkeypatch):
    corpus.write_film(tmp_path / "film.mkv", 5.0, seed=1)
    run(tmp_path, rows("film.mkv"), **MUTE)
    with FeatureStore(tmp_path / "x.h5") as store:
        whole, means = store.features("vision", 0), store.layer_means("vision", [0])
        assert store.flags[0] == 0
    monkeypatch.setattr("mer.pipeline.encoders.vision.PIECE_PICTURES", 7)
    shutil.rmtree(tmp_path / "x.shards")
    (tmp_path / "x.h5").unlink()
    run(tmp_path, rows("film.mkv"), **MUTE)
    with FeatureStore(tmp_path / "x.h5") as store:
        np.testing.assert_allclose(store.features("vision", 0), whole, atol=2e-3)
        np.testing.assert_allclose(store.layer_means("vision", [0]), means, atol=2e-3)


def test_faces_by_a_table(tmp_path):
    corpus.write_film(tmp_path / "film.mkv", 2.0, seed=1)
    table = tmp_path / "boxes.csv"
    table.write_text("id,time,x,y,w,h\nfilm.mkv,0.1,10,10,16,16\n")
    faces = {"vision_crop": "faces", "vision_boxes": str(table)}
    report = run(tmp_path, rows("film.mkv"), **faces)
    assert report.counts["no_face"] == 1  # none is near the second half
    with FeatureStore(tmp_path / "x.h5") as store:
        first = store.features("vision", 0)
    table.write_text("id,time,x,y,w,h\nfilm.mkv,0.1,20,10,16,16\n")
    assert run(tmp_path, rows("film.mkv"), **faces).extracted == 1  # other boxes, other content
    with FeatureStore(tmp_path / "x.h5") as store:
        second = store.features("vision", 0)
    assert not np.array_equal(first[:2], second[:2]) and np.array_equal(first[4:], second[4:])
    table.write_text("id,time,x,y,w,h\nfilm.mkv,0.1,200,10,16,16\n")
    corpus.write_film(tmp_path / "other.mkv", 1.0, seed=2)
    with pytest.raises(TooManyFailures) as caught:
        run(tmp_path, rows("film.mkv", "other.mkv"), **faces)
    (failure,) = caught.value.report.failures
    assert failure.stage == "face" and "outside the picture of 64 x 48" in failure.reason


def test_the_half_that_the_tags_name(tmp_path):
    corpus.write_film(tmp_path / "film.mkv", 1.0, seed=1)
    left, right = (
        Utterance(side, "film.mkv", "words", "train", "a", tags=("scripted", side))
        for side in ("left", "right")
    )
    run(tmp_path, (left, right), vision_crop="side")
    with FeatureStore(tmp_path / "x.h5") as store:
        assert not np.array_equal(store.features("vision", 0), store.features("vision", 1))
    with pytest.raises(DataError, match="neither the tag left nor right"):
        run(tmp_path, (*rows("film.mkv"),), vision_crop="side")


def ends(path: Path, picture: float, sound: float) -> Path:
    films.ffmpeg(*films.scene(picture), *films.sound(sound), *films.X264, *films.AAC, path)
    return path


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts", "avi"])
def test_a_picture_that_does_not_end_with_its_sound_is_counted(suffix, tmp_path):
    """Of rows without an end, too: 1 s of picture is 4 steps, 3 s are 12, whatever is heard."""
    wanted = {
        f"early.{suffix}": (1, 3, Flag.picture_short),
        f"longer.{suffix}": (3, 1, Flag.picture_long),
        f"even.{suffix}": (2, 2, Flag(0)),
    }
    for name, (picture, sound, _) in wanted.items():
        ends(tmp_path / name, picture, sound)
    report = run(tmp_path, rows(*wanted), **MUTE)
    assert (report.counts["picture_short"], report.counts["picture_long"]) == (1, 1)
    both = Flag.picture_short | Flag.picture_long
    with FeatureStore(tmp_path / "x.h5") as store:
        for row, (picture, _, flag) in enumerate(wanted.values()):
            assert len(store.features("vision", row)) == 4 * picture
            assert store.flags[row] & both == flag


def test_a_picture_beside_its_sound_and_one_with_an_end_are_not_held_against_it(tmp_path):
    ends(tmp_path / "longer.mkv", 3, 1)
    corpus.write_clip(tmp_path / "a.wav", 1.0, seed=2)
    beside = Utterance("u0", "a.wav", "words", "train", "a", video="longer.mkv")
    cut = Utterance("u1", "longer.mkv", "words", "train", "a", start=0.0, end=1.0)
    report = run(tmp_path, (beside, cut), **MUTE)
    assert not {"picture_short", "picture_long"} & {k for k, n in report.counts.items() if n}
    with FeatureStore(tmp_path / "x.h5") as store:
        assert [len(store.features("vision", row)) for row in range(2)] == [12, 4]


def test_where_every_box_is_outside_the_line_says_so(tmp_path):
    corpus.write_film(tmp_path / "film.mkv", 1.0, seed=1)
    table = tmp_path / "boxes.csv"
    table.write_text("id,time,x,y,w,h\nfilm.mkv,0.5,640,1,20,20\n")
    said = r"no utterance could be extracted, first film.mkv \(face: .* lies outside the picture"
    with pytest.raises(DataError, match=said) as caught:
        run(tmp_path, rows("film.mkv"), vision_crop="faces", vision_boxes=str(table))
    assert "\n" not in str(caught.value)


def test_a_table_of_boxes_of_another_corpus_is_refused(tmp_path):
    corpus.write_film(tmp_path / "film.mkv", 1.0, seed=1)
    table = tmp_path / "boxes.csv"
    faces = {"vision_crop": "faces", "vision_boxes": str(table)}
    table.write_text("id,time,x,y,w,h\nelsewhere,0.1,10,10,16,16\n")
    with pytest.raises(DataError, match=r"boxes.csv: has none of the 1 utterance.*film.mkv"):
        run(tmp_path, rows("film.mkv"), **faces)
    table.write_text("id,time,x,y,w,h\nfilm,0.1,10,10,16,16\n")  # named by its film
    assert run(tmp_path, rows("film.mkv"), **faces).extracted == 1
    folder = tmp_path / "openface"
    folder.mkdir()
    with pytest.raises(DataError, match="openface: has none of the 1 utterance"):
        run(tmp_path, rows("film.mkv"), vision_crop="faces", vision_boxes=str(folder))
