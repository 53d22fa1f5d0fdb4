"""Corpora that are read by the names of their files, in the layout of their releases.

`RULES` makes the names of a whole release, where its size follows from its design; the counts that
they must give are the sources' own, in the TOMLs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

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
    tables: dict[str, str] = field(default_factory=dict)
    labels: str | None = None
    split: dict[str, str] = field(default_factory=dict)  # id -> split, of those that have one


def write_tree(root: Path, files: Iterable[str], tables: dict[str, str] | None = None) -> Path:
    """Short clips under these names; all wavs are one file with many names."""
    root.mkdir(parents=True, exist_ok=True)
    sound = write_wav(root.parent / f"{root.name}-sound.wav", samples=800)
    film = root.parent / f"{root.name}-film.mp4"
    film.write_bytes(FILM_HEAD)
    for folder in {os.path.dirname(name) for name in files}:
        (root / folder).mkdir(parents=True, exist_ok=True)
    for name in files:
        os.link(film if name.endswith(FILMS) else sound, root / name)
    for name, text in (tables or {}).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return root


KIDS, DOGS = "Kids are talking by the door.", "Dogs are sitting by the door."
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
    "aesdd": [
        Tree(
            files=("anger/a03 (3).wav", "sadness/s01 (5)a.wav", "happiness/h20 (6).wav"),
            rows={
                "a03 (3)": ("anger", "speaker3", None),
                "s01 (5)a": ("sadness", "speaker5", None),
                "h20 (6)": ("happiness", "speaker6", None),
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


WHOLE: dict[str, Callable[[], list[str]]] = {
    "ravdess": ravdess,
    "tess": tess,
    "savee": savee,
    "emovo": emovo,
}
