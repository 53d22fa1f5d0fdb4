"""Corpora that are read by the names of their files, in the layout of their releases.

`RULES` makes the names of a whole release, where its size follows from its design; the counts that
they must give are the sources' own, in the TOMLs.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import numpy as np

from tests.datasets.trees import write_wav

FILM_HEAD = b"\0\0\0\x18ftypmp42" + b"\0" * 64  # what the first look takes for an mp4
FILMS = (".mp4", ".avi")


@dataclass(frozen=True)
class Tree:
    """Some files of a release and the tables beside them, and what must be read of them:
    id -> (label, speaker, text).
    """

    files: tuple[str, ...]
    rows: dict[str, tuple[str | None, str | None, str | None]]
    tables: dict[str, str | bytes] = field(default_factory=dict)
    labels: str | None = None
    split: dict[str, str] = field(default_factory=dict)  # id -> split, of those that have one


def write_tree(
    root: Path, files: Iterable[str], tables: dict[str, str | bytes] | None = None
) -> Path:
    """Short clips under these names; all wavs are one file with many names."""
    root.mkdir(parents=True, exist_ok=True)
    sound = write_wav(root.parent / f"{root.name}-sound.wav", samples=800)
    film = root.parent / f"{root.name}-film.mp4"
    film.write_bytes(FILM_HEAD)
    for folder in {os.path.dirname(name) for name in files}:
        (root / folder).mkdir(parents=True, exist_ok=True)
    for name in files:
        os.link(film if name.endswith(FILMS) else sound, root / name)
    for name, content in (tables or {}).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        raw = content if isinstance(content, bytes) else content.encode()
        (root / name).write_bytes(raw)
    return root


KIDS, DOGS = "Kids are talking by the door.", "Dogs are sitting by the door."
MER = "name,discrete,valence\n"
TREES: dict[str, list[Tree]] = {
    "ravdess": [
        Tree(
            files=(
                "Audio_Speech_Actors_01-24/Actor_12/03-01-06-01-02-01-12.wav",
                "Video_Speech_Actor_12/Actor_12/01-01-06-01-02-01-12.mp4",
                "Video_Speech_Actor_12/Actor_12/02-01-06-01-02-01-12.mp4",
                "Audio_Song_Actors_01-24/Actor_01/03-02-02-02-01-02-01.wav",
                "Actor_03/03-01-08-01-01-01-03.wav",
            ),
            rows={
                "01-06-01-02-01-12": ("fearful", "12", DOGS),
                "01-08-01-01-01-03": ("surprised", "03", KIDS),
            },
        ),
        Tree(
            files=(
                "Audio_Song_Actors_01-24/Actor_01/03-02-02-02-01-02-01.wav",
                "Actor_03/03-01-08-01-01-01-03.wav",
            ),
            rows={"02-02-02-01-02-01": ("calm", "01", KIDS)},
            labels="song",
        ),
    ],
    "cremad": [
        Tree(
            files=(
                "AudioWAV/1001_DFA_ANG_XX.wav",
                "AudioMP3/1001_DFA_ANG_XX.mp3",
                "AudioWAV/1091_IEO_NEU_XX.wav",
                "AudioWAV/1040_ITH_SAD_X.wav",
                "AudioWAV/1002_IEO_HAP_HI.wav",
            ),
            rows={
                "1001_DFA_ANG_XX": ("angry", "1001", None),
                "1091_IEO_NEU_XX": ("neutral", "1091", None),
                "1040_ITH_SAD_X": ("sad", "1040", None),
                "1002_IEO_HAP_HI": ("happy", "1002", None),
            },
        )
    ],
    "emodb": [
        Tree(
            files=("wav/03a01Fa.wav", "wav/16b10Wb.wav", "wav/09a07Ta.wav", "wav/08b02Na.wav"),
            rows={
                "03a01Fa": ("happiness", "03", None),
                "16b10Wb": ("anger", "16", None),
                "09a07Ta": ("sadness", "09", None),
                "08b02Na": ("neutral", "08", None),
            },
        )
    ],
    "nemo": [
        Tree(
            files=("samples/EB0_anger_15.wav", "samples/SB0_surprised_3.wav"),
            tables={
                "data.tsv": "file_id\temotion\traw_text\tnormalized_text\tspeaker_id\tgender\tage\n"
                "EB0_anger_15.wav\tanger\tRacja!\tracja\tEB0\tfemale\t27\n"
                "SB0_surprised_3.wav\tsurprised\tAch, tak.\tach tak\tSB0\tmale\t30\n"
            },
            rows={
                "EB0_anger_15": ("anger", "EB0", "Racja!"),
                "SB0_surprised_3": ("surprised", "SB0", "Ach, tak."),
            },
        ),
        Tree(
            files=("samples/EB0_anger_15.wav",),
            rows={"EB0_anger_15": ("anger", "EB0", None)},
        ),
    ],
    "tess": [
        Tree(
            files=(
                "OAF_angry/OAF_back_angry.wav",
                "YAF_pleasant_surprised/YAF_youth_ps.wav",
                "OAF_neutral/OA_bite_neutral.wav",
            ),
            rows={
                "OAF_back_angry": ("angry", "OAF", "Say the word back."),
                "YAF_youth_ps": ("surprise", "YAF", "Say the word youth."),
                "OA_bite_neutral": ("neutral", "OAF", "Say the word bite."),
            },
        )
    ],
    "savee": [
        Tree(
            files=("AudioData/DC/a01.wav", "AudioData/KL/su15.wav", "AudioData/JE/sa03.wav"),
            rows={
                "DC_a01": ("anger", "DC", None),
                "KL_su15": ("surprise", "KL", None),
                "JE_sa03": ("sadness", "JE", None),
            },
        ),
        Tree(  # as it is passed on in one folder
            files=("ALL/DC_a01.wav", "ALL/JK_n30.wav"),
            rows={"DC_a01": ("anger", "DC", None), "JK_n30": ("neutral", "JK", None)},
        ),
    ],
    "emovo": [
        Tree(
            files=("f1/dis-f1-b1.wav", "m3/tri-m3-n5.wav", "f2/gio-f2-l4.wav"),
            rows={
                "dis-f1-b1": ("disgust", "f1", None),
                "tri-m3-n5": ("sadness", "m3", None),
                "gio-f2-l4": ("joy", "f2", None),
            },
        )
    ],
    "esd": [
        Tree(
            files=(
                "0011/Angry/0011_000351.wav",
                "0020/Surprise/0020_001750.wav",
                "0001/Happy/0001_000701.wav",
            ),
            rows={
                "0011_000351": ("angry", "0011", None),
                "0020_001750": ("surprise", "0020", None),
            },
        ),
        Tree(  # as it is published for voice conversion
            files=(
                "0001/Happy/train/0001_000721.wav",
                "0001/Happy/evaluation/0001_000701.wav",
                "0011/Sad/test/0011_001071.wav",
            ),
            rows={"0001_000721": ("happy", "0001", None), "0001_000701": ("happy", "0001", None)},
            labels="mandarin",
            split={"0001_000721": "train", "0001_000701": "dev"},
        ),
    ],
    "msp_improv": [
        Tree(
            files=(
                "Audio/session1/S01A/S/MSP-IMPROV-S01A-F01-S-FM01.wav",
                "Audio/session1/S01A/P/MSP-IMPROV-S01A-M01-P-FM02.wav",
                "Audio/session6/S20H/R/MSP-IMPROV-S20H-F06-R-MF07.wav",
            ),
            tables={
                "Evalution.txt": "UTD-IMPROV-S01A-F01-S-FM01.avi; N; A:3.000000; V:3.5; D:2; N:4;\n"
                "  WORKER00000001; Neutral; Neutral; A:3; V:3; D:3; N:4;\n\n"
                "UTD-IMPROV-S01A-M01-P-FM02.avi; X; A:2.0; V:3.0; D:2.5; N:4.0;\n"
                "UTD-IMPROV-S20H-F06-R-MF07.avi; H; A:2.0; V:4.5; D:2.5; N:NaN;\n"
            },
            rows={
                "MSP-IMPROV-S01A-F01-S-FM01": ("neutral", "F01", None),
                "MSP-IMPROV-S20H-F06-R-MF07": ("happy", "F06", None),
            },
        )
    ],
    "msp_podcast": [
        Tree(
            files=(
                "Audios/MSP-PODCAST_0001_0008.wav",
                "Audios/MSP-PODCAST_0002_0033_0001.wav",
                "Audios/MSP-PODCAST_0003_0001.wav",
                "Audios/MSP-PODCAST_0004_0001.wav",
            ),
            tables={
                "Labels/labels_consensus.csv": "FileName,EmoClass,EmoAct,EmoVal,EmoDom,SpkrID,"
                "Gender,Split_Set\n"
                "MSP-PODCAST_0001_0008.wav,N,4.2,3.8,4.0,127,Male,Train\n"
                "MSP-PODCAST_0002_0033_0001.wav,H,4.2,5.8,4.0,Unknown,Unknown,Development\n"
                "MSP-PODCAST_0003_0001.wav,X,4.2,3.8,4.0,12,Female,Test1\n"
                "MSP-PODCAST_0004_0001.wav,U,4.2,3.8,4.0,12,Female,Test2\n",
                "Transcripts/MSP-PODCAST_0001_0008.txt": "Well,\nyes.\n",
            },
            rows={
                "MSP-PODCAST_0001_0008": ("neutral", "127", "Well, yes."),
                "MSP-PODCAST_0002_0033_0001": ("happy", None, None),
                "MSP-PODCAST_0004_0001": ("surprise", "12", None),
            },
            split={"MSP-PODCAST_0001_0008": "train", "MSP-PODCAST_0002_0033_0001": "dev"},
        ),
        Tree(  # as release 1.8 spells its table and its splits
            files=("Audios/MSP-PODCAST_0001_0008.wav",),
            tables={
                "Labels/labels_concensus.csv": "FileName,EmoClass,EmoAct,EmoVal,EmoDom,SpkrID,"
                "Gender,Split_Set\nMSP-PODCAST_0001_0008.wav,S,4.2,3.8,4.0,127,Male,Validation\n"
            },
            rows={"MSP-PODCAST_0001_0008": ("sad", "127", None)},
            split={"MSP-PODCAST_0001_0008": "dev"},
        ),
    ],
    "ch_sims": [
        Tree(
            files=("Raw/video_0001/0001.mp4", "Raw/video_0001/0002.mp4", "Raw/video_0002/0010.mp4"),
            tables={
                "label.csv": "video_id,clip_id,text,label,label_T,label_A,label_V,annotation,mode\n"
                "video_0001,0001,我不想嫁给李茶,-1.0,-0.8,-0.8,-1.0,Negative,train\n"
                "video_0001,0002,你好,0.0,0.2,0.0,0.0,Neutral,valid\n"
                "video_0002,0010,好,0.8,0.6,0.2,1.0,Positive,test\n"
            },
            rows={
                "video_0001/0001": (None, None, "我不想嫁给李茶"),
                "video_0001/0002": (None, None, "你好"),
                "video_0002/0010": (None, None, "好"),
            },
            split={
                "video_0001/0001": "train",
                "video_0001/0002": "dev",
                "video_0002/0010": "test",
            },
        ),
        Tree(  # as most copies have it, without a header
            files=("Raw/video_0001/0001.mp4", "Raw/video_0001/0002.mp4"),
            tables={
                "label.csv": "video_0001,0001,我不想嫁给李茶,-1.0,-0.8,-0.8,-1.0,Negative,train\n"
                "video_0001,0002,你好,0.0,0.2,0.0,0.0,Neutral,valid\n"
            },
            rows={
                "video_0001/0001": (None, None, "我不想嫁给李茶"),
                "video_0001/0002": (None, None, "你好"),
            },
            split={"video_0001/0001": "train", "video_0001/0002": "dev"},
        ),
    ],
    "ch_sims_v2": [
        Tree(  # numbers that went through a program that drops zeros
            files=("ch-simsv2s/Raw/aqgy3/0001.mp4", "ch-simsv2s/Raw/aqgy3/0012.mp4"),
            tables={
                "ch-simsv2s/meta.csv": "video_id,clip_id,text,label,label_T,label_A,label_V,"
                "annotation,mode\naqgy3,1,早,0.4,0.2,0.0,0.4,Positive,train\n"
                "aqgy3,12,不,-0.4,0.2,0.0,0.4,Negative,test\n"
            },
            rows={"aqgy3/0001": (None, None, "早"), "aqgy3/0012": (None, None, "不")},
            split={"aqgy3/0001": "train", "aqgy3/0012": "test"},
        )
    ],
    "mer2023": [
        Tree(
            files=(
                "mer2023train/train/sample_00000001.avi",
                "test1/sample_00003374.avi",
                "test2/sample_00004000.mp4",
            ),
            tables={
                "mer2023train/train-label.csv": f"{MER}sample_00000001,happy,2.1\n",
                "test-labels/test1-label.csv": f"{MER}sample_00003374,worried,-2\n",
                "test-labels/test2-label.csv": f"{MER}sample_00004000,sad,-2\n",
            },
            rows={
                "sample_00000001": ("happy", None, None),
                "sample_00003374": ("worried", None, None),
                "sample_00004000": ("sad", None, None),
            },
            split={"sample_00000001": "train", "sample_00003374": "test"},
        )
    ],
    "mer2024": [
        Tree(
            files=(
                "video-labeled/sample_00000000.mp4",
                "audio-labeled_16k/sample_00000000.wav",
                "video-labeled/samplenew3_00000001.mp4",
            ),
            tables={
                "label-disdim.csv": "name,discrete\nsample_00000000,angry\n"
                "samplenew3_00000001,neutral\n"
            },
            rows={
                "sample_00000000": ("angry", None, None),
                "samplenew3_00000001": ("neutral", None, None),
            },
            split={"sample_00000000": "train", "samplenew3_00000001": "train"},
        )
    ],
    "ur_funny": [
        Tree(
            files=("urfunny2_videos/1.mp4", "urfunny2_videos/23.mp4"),
            tables={
                "humor_label_sdk.pkl": pickle.dumps({1: 1, 23: np.int64(0)}),
                "language_sdk.pkl": pickle.dumps(
                    {
                        1: {"punchline_sentence": "they fly", "context_sentences": ["a", "b"]},
                        23: {"punchline_sentence": "so it is", "context_sentences": []},
                    }
                ),
                "data_folds.pkl": pickle.dumps({"train": [1], "dev": [], "test": [23]}),
            },
            rows={"1": ("humorous", None, "they fly"), "23": ("serious", None, "so it is")},
            split={"1": "train", "23": "test"},
        )
    ],
    "mustard": [
        Tree(
            files=("mmsd_raw_data/utterances_final/1_60.mp4", "utterances_final/2_99.mp4"),
            tables={
                "data/sarcasm_data.json": '{"1_60": {"utterance": "It\'s just a privilege.", '
                '"speaker": "SHELDON", "context": ["a", "b"], "context_speakers": ["X"], '
                '"show": "BBT", "sarcasm": true}, "2_99": {"utterance": "No.", "speaker": '
                '"CHANDLER", "context": [], "context_speakers": [], "show": "FRIENDS", '
                '"sarcasm": false}}'
            },
            rows={
                "1_60": ("sarcastic", "BBT/SHELDON", "It's just a privilege."),
                "2_99": ("sincere", "FRIENDS/CHANDLER", "No."),
            },
        )
    ],
    "aesdd": [
        Tree(
            files=(
                "anger/a03 (3).wav",
                "sadness/s01 (5)a.wav",
                "happiness/h20 (6).wav",
                "fear/f10 (01).wav",  # the same actor as (1)
            ),
            rows={
                "a03 (3)": ("anger", "speaker3", None),
                "s01 (5)a": ("sadness", "speaker5", None),
                "h20 (6)": ("happiness", "speaker6", None),
                "f10 (01)": ("fear", "speaker1", None),
            },
        )
    ],
}


def ravdess() -> list[str]:
    """60 spoken and 44 sung clips of each actor; actor 18 did not sing."""
    names = []
    for actor, channel, emotion in product(range(1, 25), (1, 2), range(1, 9)):
        if channel == 2 and (actor == 18 or emotion > 6):
            continue
        levels = (1,) if emotion == 1 else (1, 2)
        for level, statement, take in product(levels, (1, 2), (1, 2)):
            parts = (3, channel, emotion, level, statement, take, actor)
            stem = "-".join(f"{part:02}" for part in parts)
            names.append(f"Actor_{actor:02}/{stem}.wav")
    return names


def tess() -> list[str]:
    emotions = ("neutral", "angry", "disgust", "fear", "happy", "ps", "sad")
    return [
        f"{actress}_{emotion}/{actress}_word{number}_{emotion}.wav"
        for actress, emotion, number in product(("OAF", "YAF"), emotions, range(200))
    ]


def savee() -> list[str]:
    numbers = dict.fromkeys(("a", "d", "f", "h", "sa", "su"), 15) | {"n": 30}
    return [
        f"AudioData/{speaker}/{emotion}{number + 1:02}.wav"
        for speaker, emotion in product(("DC", "JE", "JK", "KL"), numbers)
        for number in range(numbers[emotion])
    ]


def emovo() -> list[str]:
    emotions = ("neu", "dis", "gio", "pau", "rab", "sor", "tri")
    sentences = ("b1", "b2", "b3", "l1", "l2", "l3", "l4", "n1", "n2", "n3", "n4", "n5", "d1", "d2")
    return [
        f"{speaker}/{emotion}-{speaker}-{sentence}.wav"
        for speaker, emotion, sentence in product(
            ("f1", "f2", "f3", "m1", "m2", "m3"), emotions, sentences
        )
    ]


def esd() -> list[str]:
    emotions = ("Neutral", "Angry", "Happy", "Sad", "Surprise")
    return [
        f"{speaker:04}/{emotion}/{speaker:04}_{350 * place + number:06}.wav"
        for speaker in range(1, 21)
        for place, emotion in enumerate(emotions)
        for number in range(1, 351)
    ]


WHOLE: dict[str, Callable[[], list[str]]] = {
    "ravdess": ravdess,
    "tess": tess,
    "savee": savee,
    "emovo": emovo,
    "esd": esd,
}
