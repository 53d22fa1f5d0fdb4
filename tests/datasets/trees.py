"""Corpora in their real shape, with media made on the spot."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import h5py
import numpy as np
import soundfile

from tests.media.clips import surround, write_aac

MELD_COLUMNS = [
    "Sr No.",
    "Utterance",
    "Speaker",
    "Emotion",
    "Sentiment",
    "Dialogue_ID",
    "Utterance_ID",
    "Season",
    "Episode",
    "StartTime",
    "EndTime",
]


def write_meld_csv(path: Path, rows: list[tuple]) -> None:
    """`rows`: (text, speaker, emotion, sentiment, dialogue, utterance[, start, end]); quoted, CRLF,
    as released.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(MELD_COLUMNS)
        for i, (text, speaker, emotion, sentiment, dialogue, utterance, *times) in enumerate(rows):
            start, end = times or (f"00:00:{i % 60:02d},000", f"0:00:{i % 60:02d},900")
            writer.writerow(
                [i + 1, text, speaker, emotion, sentiment, dialogue, utterance, 1, 2, start, end]
            )


def write_wav(path: Path, samples: int = 1600, rate: int = 16_000, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.random.default_rng(seed).uniform(-0.3, 0.3, samples), rate)
    return path


def write_clip(path: Path, samples: int = 4800) -> Path:
    """An mp4 with 5.1 AAC, the tone in the centre channel."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_aac(path, surround(samples))


def write_iemocap(root: Path) -> Path:
    """Five sessions in the release's shape.

    Utterance -> code; `M012` in a dialogue of Ses01F is the man.
    """
    dialogues = {
        "Ses01F_impro01": {
            "F000": ("neu", "Excuse me."),
            "M000": ("xxx", "Do you have your forms?"),
            "M012": ("ang", "[LAUGHTER]"),
        },
        "Ses01F_script01_1": {
            "F000": ("hap", "The sky is blue: always was."),
            "M000": ("exc", "Yes."),
        },
        "Ses02M_script01_1": {
            "F000": ("exc", "The sky is blue: always was."),
            "M001": ("sad", "Yes."),
        },
        "Ses03F_impro02": {"F000": ("fru", "No."), "M000": ("sur", "Oh.")},
        "Ses04M_impro03": {"M000": ("oth", "Well."), "F001": ("fea", "Help me now please.")},
        "Ses05M_impro03": {
            "F000": ("sad", "help me  now please."),
            "M000": ("dis", "Ugh."),
            "M001": ("neu", None),
        },
    }
    for dialogue, lines in dialogues.items():
        session = root / f"Session{dialogue[4]}"
        evaluation = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]", ""]
        transcript = ["M: a line without a time"]
        for i, (name, (code, text)) in enumerate(lines.items()):
            start, end = 6.2901 + 3 * i, 8.2357 + 3 * i
            ratings = f"[{1 + i:.4f}, 2.5000, 3.5000]"
            evaluation += [
                f"[{start:.4f} - {end:.4f}]\t{dialogue}_{name}\t{code}\t{ratings}",
                "C-E2:\tNeutral;\t()",
                "A-E3:\tval 3; act 2; dom  2;\t()",
                "",
            ]
            if text is not None:
                transcript.append(f"{dialogue}_{name} [{start:08.4f}-{end:08.4f}]: {text}")
            write_wav(session / "sentences" / "wav" / dialogue / f"{dialogue}_{name}.wav", seed=i)
        transcript += [
            f"{dialogue}_FXX0 [000.0000-001.0000]: one",
            f"{dialogue}_FXX0 [001.0000-002.0000]: another",
            f"{dialogue}_MXX1 [002.0000-003.0000]:",
        ]
        for folder, content in (("EmoEvaluation", evaluation), ("transcriptions", transcript)):
            path = session / "dialog" / folder / f"{dialogue}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("\n".join(content) + "\n")
        categorical = (
            session / "dialog" / "EmoEvaluation" / "Categorical" / f"{dialogue}_e1_cat.txt"
        )
        categorical.parent.mkdir(exist_ok=True)
        categorical.write_text(f"{dialogue}_F000 :Anger; ()\n")
        twin = bytes.fromhex("00051607")
        (session / "dialog" / "EmoEvaluation" / f"._{dialogue}.txt").write_bytes(twin)
        (session / "sentences" / "wav" / dialogue / f"._{dialogue}_F000.wav").write_bytes(twin)
    return root


def write_m3ed(root: Path) -> Path:
    """Four series; utterances out of order, a clip shorter than one frame, one missing, one without
    a row, a series in no list.
    """

    def line(speaker: str, text: str, main: str, several: str) -> dict:
        emotions = {f"EmoAnnotator{i}": main for i in (1, 2, 3)} | {
            "final_mul_emo": several,
            "final_main_emo": main,
        }
        return {
            "StartTime": "00:00:00:01",
            "EndTime": "00:00:01:03",
            "Text": text,
            "Speaker": speaker,
            "EmoAnnotation": emotions,
        }

    people = {
        side: {"Name": name, "Age": "mid", "Gender": "female", "OtherName": []}
        for side, name in (("A", "王"), ("B", "李"))
    }
    lines = {
        "shaonianpai": {
            "shaonianpai_1": {
                "shaonianpai_1_10": line("B", "好吧", "Sad", "Sad,Anger"),
                "shaonianpai_1_2": line("A", "我很高兴", "Happy", "Happy"),
                "shaonianpai_1_1": line("A", "钟点工阿姨", "Neutral", "Neutral"),
            }
        },
        "zhengyang": {"zhengyang_7": {"zhengyang_7_31": line("B", "嗯", "Fear", "Fear")}},
        "third": {"third_1": {"third_1_1": line("A", "我很高兴", "Anger", "Anger,Disgust")}},
        "unlisted": {"unlisted_1": {"unlisted_1_1": line("A", "谁", "Surprise", "Surprise")}},
    }
    data = {
        s: {d: {"SpeakerInfo": people, "Dialog": dialog} for d, dialog in dialogues.items()}
        for s, dialogues in lines.items()
    }
    root.mkdir(parents=True, exist_ok=True)
    (root / "annotation.json").write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
    (root / "splitInfo").mkdir()
    for split, series in (("train", "shaonianpai"), ("val", "zhengyang"), ("test", "third")):
        (root / "splitInfo" / f"movie_list_{split}.txt").write_text(f"{series}\n")
    for name, samples in (
        ("A_shaonianpai_1_1", 1600),
        ("B_shaonianpai_1_10", 1600),
        ("B_zhengyang_7_31", 112),
        ("A_third_1_1", 1600),
        ("A_nobody_1_1", 1600),
    ):
        write_wav(root / "modality_speech" / f"{name}.wav", samples)
    (root / "modality_speech" / "._A_third_1_1.wav").write_bytes(bytes.fromhex("00051607"))
    return root


def write_csd(path: Path, name: str, videos: dict[str, list[tuple]]) -> None:
    """`videos`: id -> [(start, end, *values)], as CMU-MultimodalSDK stores a label sequence."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for video, rows in videos.items():
            entry = file.create_group(f"{name}/data/{video}")
            entry["intervals"] = np.array([row[:2] for row in rows], dtype=np.float32)
            entry["features"] = np.array([row[2:] for row in rows], dtype=np.float32)


def write_folds(path: Path, train: list[str], dev: list[str], test: list[str]) -> None:
    path.write_text(
        f"standard_train_fold={train}\nstandard_valid_fold={dev}\nstandard_test_fold={test}\n"
    )


def write_mmsa(root: Path, rows: list[tuple]) -> Path:
    """`rows`: (video, clip, text, label, mode); MMSA's label.csv and Raw/<video>/<clip>.mp4."""
    root.mkdir(parents=True, exist_ok=True)
    with (root / "label.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            [
                "video_id",
                "clip_id",
                "text",
                "label",
                "label_T",
                "label_A",
                "label_V",
                "annotation",
                "mode",
            ]
        )
        for video, clip, text, label, mode in rows:
            writer.writerow([video, clip, text, label, "", "", "", "Positive", mode])
            write_clip(root / "Raw" / video / f"{clip}.mp4")
    return root
