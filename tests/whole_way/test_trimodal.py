"""Voice, words and face, from films to a prediction, through the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mer.pipeline.datasets import prepare
from mer.pipeline.store import FeatureStore

from tests.datasets.trees import write_meld_csv
from tests.extract.corpus import write_film
from tests.media import films
from tests.whole_way.mer import TINY, mer, refused

MODELS = ("concat", "drkf", "dmd", "dhmd")
SHORT = ("--set", "train.epochs=1", "--device", "cpu")


@pytest.fixture(scope="module")
def desk(tmp_path_factory) -> Path:
    """A folder with the synthetic corpus, faces drawn, and a store of all three modalities."""
    folder = tmp_path_factory.mktemp("trimodal")
    manifest, _ = prepare("synthetic", folder / "corpus", size=24, vision=True)
    manifest.write(folder / "corpus" / "manifest.parquet")
    mer(
        "extract", "--manifest", "corpus/manifest.parquet", "--vision-encoder", "builtin:tiny-vit",
        "--out", "feats.h5", cwd=folder,
    )  # fmt: skip
    return folder


def test_the_store_has_all_three_of_every_utterance(desk):
    with FeatureStore(desk / "feats.h5") as store:
        assert list(store.header.modalities) == ["audio", "text", "vision"]
        for row in range(len(store)):
            for modality in store.header.modalities:
                assert len(store.features(modality, row))


@pytest.mark.parametrize("model", MODELS)
def test_a_model_trains_on_all_three_and_predicts_a_clip(desk, model):
    mer("train", "--features", "feats.h5", "--model", model, "--out", model, *SHORT, cwd=desk)
    told = json.loads((desk / model / "run.json").read_text())
    assert sorted(told["spec"]["modalities"]) == ["audio", "text", "vision"]
    manifest, _ = prepare("synthetic", desk / "corpus", size=24, vision=True)
    u = manifest.rows[0]
    sound, film = desk / "corpus" / u.audio, desk / "corpus" / u.video
    answer = mer("predict", model, sound, "--video", film, "--text", u.text, "--json", cwd=desk)
    assert json.loads(answer.out)["pred"] in manifest.labels


def test_one_file_with_sound_and_picture_is_enough(desk, tmp_path):
    if not (desk / "concat").exists():
        mer(
            "train",
            "--features",
            "feats.h5",
            "--model",
            "concat",
            "--out",
            "concat",
            *SHORT,
            cwd=desk,
        )
    write_film(tmp_path / "clip.mp4", 1.5, seed=3)
    run = desk / "concat"
    answer = mer("predict", run, tmp_path / "clip.mp4", "--text", "So there you are.", "--json")
    assert json.loads(answer.out)["pred"]
    sound = next((desk / "corpus").rglob("*.wav"))
    asked = ("predict", run, "--text", "So there you are.")
    said = refused(*asked, sound, says=["none of 1 clip has a picture", "with --video FILE"])
    assert "--vision-encoder none" not in said and "column" not in said
    refused(
        *asked, sound, "--vision-boxes", "b.csv", says=["--vision-boxes: the run does not look"]
    )
    mute = films.mute(tmp_path / "mute.mp4")
    refused(*asked, mute, says=["mute.mp4: no audio stream", "with --audio FILE"])
    refused(*asked, "--video", mute, says=["give it audio too (--audio FILE)"])
    gone = tmp_path / "gone.mp4"
    said = refused(*asked, sound, "--video", gone, says=["--video", "gone.mp4: no such file"])
    assert sound.name not in said
    (tmp_path / "torn.mp4").write_bytes(mute.read_bytes()[:400])
    said = refused(*asked, sound, "--video", tmp_path / "torn.mp4", says=["torn.mp4"])
    assert sound.name not in said


def test_an_encoder_that_sees_nothing_is_refused(desk, tmp_path):
    folder = tmp_path / "text"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "bert", "vocab_size": 9, "hidden_size": 4}')
    (folder / "model.safetensors").write_bytes(b"weights")
    refused(
        "extract", "--manifest", desk / "corpus" / "manifest.parquet", "--vision-encoder", folder,
        "--out", tmp_path / "x.h5", says=["is no image model"],
    )  # fmt: skip


def test_a_meld_shaped_root_of_films_goes_in_in_one_command(tmp_path):
    root, lines = tmp_path / "MELD.Raw", {}
    for split, folder in (
        ("train", "train_splits"), ("dev", "dev_splits_complete"),
        ("test", "output_repeated_splits_test"),
    ):  # fmt: skip
        (root / folder).mkdir(parents=True)
        lines[split] = []
        for number, emotion in enumerate(("neutral", "joy", "anger")):
            write_film(root / folder / f"dia0_utt{number}.mp4", 0.8 + number / 2, seed=number)
            feeling = {"joy": "positive", "anger": "negative"}.get(emotion, "neutral")
            lines[split].append((f"line {number}", "Joey", emotion, feeling, 0, number))
        write_meld_csv(root / f"{split}_sent_emo.csv", lines[split])
    mer(
        "extract", "--dataset", "meld", "--root", root, *TINY,
        "--vision-encoder", "builtin:tiny-vit", "--vision-crop", "centre",
        "--out", tmp_path / "feats.h5",
    )  # fmt: skip
    with FeatureStore(tmp_path / "feats.h5") as store:
        store.verify()
        assert len(store) == 9 and list(store.header.modalities) == ["audio", "text", "vision"]
        assert store.header.recipe["vision"]["crop"] == "centre"
        counts = [len(store.features("vision", row)) for row in range(9)]
        # 0.8, 1.3 and 1.8 s at 10 frames a second; the middles of quarters that lie within
        assert counts == [3, 5, 7] * 3


def test_a_run_on_faces_predicts_with_boxes_of_the_new_clip(tmp_path):
    lines, boxes = ["id,audio,text,label,split"], ["id,time,x,y,w,h"]
    for number in range(8):
        write_film(tmp_path / f"{number}.mkv", 0.8, seed=number)
        split, label = ("train", "dev", "train", "test")[number % 4], "ab"[number // 4]
        lines.append(f"{number},{number}.mkv,words {number},{label},{split}")
        boxes += [f"{number},0.2,10,10,16,16", f"{number},0.6,12,10,16,16"]
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "boxes.csv").write_text("\n".join(boxes) + "\n")
    faces = ("--vision-encoder", "builtin:tiny-vit", "--vision-crop", "faces")
    mer("prepare", "table", "--from", "t.csv", "--out", "m.parquet", cwd=tmp_path)
    asked = ("extract", "--manifest", "m.parquet", *TINY, *faces)
    refused(*asked, says=["say where the faces are"], cwd=tmp_path)
    mer(*asked, "--vision-boxes", "boxes.csv", cwd=tmp_path)
    mer(
        "train", "--features", "feats.h5", "--model", "concat", "--out", "run", *SHORT, cwd=tmp_path
    )
    one = ("predict", "run", "0.mkv", "--text", "words")
    refused(*one, says=["say where the faces are"], cwd=tmp_path)
    answer = mer(*one, "--vision-boxes", "boxes.csv", "--json", cwd=tmp_path)
    assert json.loads(answer.out)["pred"] in ("a", "b")
