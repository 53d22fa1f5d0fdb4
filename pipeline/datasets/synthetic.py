"""A corpus made by code: voices and sentences whose emotions agree in two thirds of the utterances.

FROZEN before any model was tuned on it, and checked on a second seed.

Each utterance has a vocal and a textual emotion; they differ in one third of the utterances
("inconsistent"). The label is the stronger of the two by `DOMINANCE`: anger over sadness over joy
over neutral. Labels are balanced. Hence, with perfect ears, voice alone or words alone reach 83.3 %
(two thirds agree; of the rest each modality names the label half the time), and both together 100
%.

Voice: pulses at the glottal rate excite the resonances of one vowel per syllable; the emotion moves
level and range of F0, its contour, the spectral tilt, breathiness, energy, rate and roughness
(`VOICES`). Speakers differ in F0, vocal tract length, tilt and rate, and no speaker or dialogue is
in two splits. Words: templates filled from a lexicon per emotion (`LEXICON`) between neutral
filler.

Face, where it is asked for: it shows the vocal emotion or the textual one, by a coin, so that by
itself it reaches 83.3 %, too (`drawnface`). Voices and words are the same with it and without.

Everything follows from (VERSION, size, seed); a change in this file that moves one sample must
raise VERSION.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass, replace
from itertools import permutations
from pathlib import Path

import numpy as np
import soundfile

from mer.pipeline.datasets import drawnface
from mer.pipeline.datasets.corpora import CorpusInfo
from mer.pipeline.datasets.findings import Findings
from mer.pipeline.errors import DataError
from mer.pipeline.manifest import Manifest, Utterance
from mer.pipeline.runtime.files import publishing, sweep

VERSION = 1
RATE = 16_000  # Hz
EMOTIONS = ("neutral", "joy", "anger", "sadness")
DOMINANCE = ("anger", "sadness", "joy", "neutral")  # the stronger one first
SPLITS = {"train": 0.6, "dev": 0.2, "test": 0.2}  # share of the dialogues
SPEAKERS = {"train": 12, "dev": 4, "test": 4}
TURNS = 10  # utterances per dialogue, about
MINIMUM = 12
SECONDS = (0.4, 6.0)
LETTERS_PER_SYLLABLE = 4.5

# (tract, FFT size) -> frequency response of each vowel, (vowels, FFT size // 2 + 1) complex.
Resonances = dict[tuple[float, int], np.ndarray]


@dataclass(frozen=True)
class Voice:
    """How an emotion speaks.

    F0 as factors of the speaker's own; `range`, `contour` in octaves; `tilt` dB per octave above
    250 Hz.
    """

    level: float
    range: float
    contour: float  # rise (+) or fall (-) of F0 from the first to the last syllable
    tilt: float
    breath: float  # noise against pulses
    energy: float  # dB re full scale
    rate: float  # syllables per second
    rough: float  # irregularity of the pulses (jitter and shimmer), share of a period
    tract: float  # factor on the formants: a smile shortens the tract


VOICES = {  # wider apart than people's, so that untrained encoders can tell them
    "neutral": Voice(
        level=1.0,
        range=0.08,
        contour=-0.10,
        tilt=-14.0,
        breath=0.02,
        energy=-25.0,
        rate=4.8,
        rough=0.01,
        tract=1.0,
    ),
    "joy": Voice(
        level=2.2,
        range=0.25,
        contour=0.25,
        tilt=-3.0,
        breath=0.01,
        energy=-20.0,
        rate=5.8,
        rough=0.01,
        tract=1.25,
    ),
    "anger": Voice(
        level=1.15,
        range=0.15,
        contour=-0.05,
        tilt=3.0,
        breath=0.02,
        energy=-14.0,
        rate=5.2,
        rough=0.4,
        tract=1.0,
    ),
    "sadness": Voice(
        level=0.85,
        range=0.04,
        contour=-0.25,
        tilt=-8.0,
        breath=2.5,
        energy=-31.0,
        rate=3.6,
        rough=0.02,
        tract=0.94,
    ),
}
FORMANTS = {  # Hz, an adult male's; Peterson & Barney 1952, table II, F4 added
    "i": (270, 2290, 3010, 3600), "e": (530, 1840, 2480, 3500), "a": (730, 1090, 2440, 3400),
    "o": (570, 840, 2410, 3300), "u": (300, 870, 2240, 3200),
}  # fmt: skip
BANDWIDTHS = (70.0, 100.0, 140.0, 200.0)

LEXICON = {  # emotion -> (interjections, feelings, clauses)
    "neutral": (
        ("well", "okay", "right", "anyway"),
        ("ready", "busy", "organised", "awake", "prepared", "settled"),
        ("as planned", "at the usual hour", "like every week", "by the standard route"),
    ),
    "joy": (
        ("hooray", "wow", "yay", "fantastic"),
        ("happy", "delighted", "thrilled", "excited", "cheerful", "grateful"),
        ("what a lovely surprise", "simply wonderful", "let us celebrate", "best gift ever"),
    ),
    "anger": (
        ("damn", "enough", "rubbish", "outrageous"),
        ("furious", "angry", "annoyed", "mad", "irritated", "disgusted"),
        ("how dare they", "shut up", "stop lying", "a bloody insult"),
    ),
    "sadness": (
        ("alas", "sigh", "sorry", "unfortunately"),
        ("sad", "lonely", "miserable", "heartbroken", "hopeless", "tearful"),
        ("i could cry", "everything is lost", "nobody cares", "never meet again"),
    ),
}
TOPICS = (
    "the meeting",
    "the train",
    "my sister",
    "the neighbour",
    "this letter",
    "the garden",
    "our teacher",
    "the concert",
    "that phone call",
    "the old house",
    "our holiday",
    "the new camera",
)
TIMES = ("this morning", "last night", "on monday", "at noon", "after work", "two days ago")
FILLERS = ("you know", "i mean", "listen", "to be honest", "look", "by the way")


def prepare(
    root: Path,
    info: CorpusInfo,
    *,
    labels: str | None = None,
    size: int = 600,
    seed: int = 0,
    vision: bool = False,
) -> tuple[Manifest, Findings]:
    """Write what is missing of the corpus of this size and seed under `root`, in a folder of its
    own, and return its manifest; with `vision`, drawn faces, too.
    """
    if size < MINIMUM or seed < 0:
        raise DataError(
            f"synthetic: --size {size} --seed {seed}; a size of at least {MINIMUM} and a seed of "
            "at least 0 are needed"
        )
    chosen = info.label_set(labels)
    folder = f"v{VERSION}-size{size}-seed{seed}"
    lines = plan(size, seed)
    try:
        (root / folder).mkdir(parents=True, exist_ok=True)
        sweep(root / folder)
    except OSError as error:
        raise DataError(
            f"{root}: cannot write the synthetic corpus here ({error.strerror}); name another "
            "folder with --root"
        ) from None
    speakers = _speakers(seed)
    resonances: Resonances = {}
    rows = []
    for i, line in enumerate(lines):
        speaker, emotion = line.speaker or "", line.label or ""  # every line has both
        path = root / folder / f"{line.id}.wav"
        if not path.exists():
            _write(path, render(line, speakers[speaker], seed, i, resonances))
        row = replace(line, audio=f"{folder}/{path.name}", label=chosen.source[emotion])
        rows.append(_with_face(row, root / folder, speaker, seed, i) if vision else row)
    source = {"generator": VERSION, "size": size, "seed": seed, "labels": chosen.name}
    if vision:
        source["faces"] = drawnface.VERSION
    manifest = Manifest(
        "synthetic", chosen.task, chosen.labels, tuple(rows), root, info.language, source
    )
    return manifest, Findings("synthetic")


# --- who says what


def plan(size: int, seed: int) -> list[Utterance]:
    """The utterances without audio: emotions, words, speakers, dialogues, splits."""
    rng = np.random.default_rng([VERSION, seed])
    dialogues = max(len(SPLITS), round(size / TURNS))
    lengths = np.full(dialogues, size // dialogues) + (np.arange(dialogues) < size % dialogues)
    held_out = max(1, round(SPLITS["dev"] * dialogues))
    splits = np.array(
        ["train"] * (dialogues - 2 * held_out) + ["dev"] * held_out + ["test"] * held_out
    )
    rng.shuffle(splits)
    decks = {split: _emotions(int(lengths[splits == split].sum()), rng) for split in SPLITS}
    by_split: dict[str, list[str]] = {split: [] for split in SPLITS}
    for name in _speakers(seed):
        by_split[name.rstrip("0123456789")].append(name)
    used: set[str] = set()
    out = []
    for d, (split, turns) in enumerate(zip(splits, lengths, strict=True)):
        pair = rng.choice(by_split[split], size=2, replace=False)
        for t in range(turns):
            voice, words = decks[split].pop()
            label = min(voice, words, key=DOMINANCE.index)
            tags = [f"voice={voice}", f"words={words}"]
            if voice != words:
                tags.append("inconsistent")
            out.append(
                Utterance(
                    id=f"dia{d:04d}_utt{t:02d}",
                    text=_sentence(words, rng, used),
                    split=str(split),
                    label=label,
                    speaker=str(pair[t % 2]),
                    dialogue=f"dia{d:04d}",
                    position=t,
                    tags=tuple(tags),
                )
            )
    return out


def _emotions(n: int, rng: np.random.Generator) -> list[tuple[str, str]]:
    """`n` pairs (voice, words) in random order: a third of them differ, over all 12 ordered pairs,
    and the labels are balanced.
    """
    different = list(permutations(EMOTIONS, 2))
    pairs: list[tuple[str, str]] = []
    while len(pairs) < round(n / 3):
        rng.shuffle(different)
        pairs += [(voice, words) for voice, words in different]
    pairs = pairs[: round(n / 3)]
    counts = dict.fromkeys(EMOTIONS, 0)
    for pair in pairs:
        counts[min(pair, key=DOMINANCE.index)] += 1
    while len(pairs) < n:
        rarest = min(EMOTIONS, key=lambda emotion: counts[emotion])
        pairs.append((rarest, rarest))
        counts[rarest] += 1
    return [pairs[i] for i in rng.permutation(n)]


def _sentence(emotion: str, rng: np.random.Generator, used: set[str]) -> str:
    """One to three words or clauses of the emotion between neutral filler.

    A sentence is not used twice, unless the short forms run out.
    """
    for _ in range(20):
        interjections, feelings, clauses = (
            list(map(str, rng.permutation(words))) for words in LEXICON[emotion]
        )
        topic, time, filler = rng.choice(TOPICS), rng.choice(TIMES), rng.choice(FILLERS)
        match rng.choice(5, p=[0.06, 0.2, 0.26, 0.26, 0.22]):
            case 0:
                text = f"{interjections[0]}, {feelings[0]}"
            case 1:
                text = f"{interjections[0]}, {topic}, {feelings[0]}, {clauses[0]}"
            case 2:
                text = f"i am {feelings[0]} and {feelings[1]} about {topic}, {clauses[0]}"
            case 3:
                text = f"{interjections[0]}, {topic} {time}, {clauses[0]}, {clauses[1]}"
            case _:
                text = f"{filler}, {topic} {time}, so {feelings[0]} and {feelings[1]}, {clauses[0]}"
        if text not in used:
            break
    used.add(text)
    return text[0].upper() + text[1:] + rng.choice([".", "!", "?"], p=[0.7, 0.2, 0.1])


# --- how it sounds


@dataclass(frozen=True)
class Speaker:
    f0: float  # Hz
    tract: float  # factor on the formants: a shorter tract has higher ones
    tilt: float  # dB per octave, added
    rate: float  # factor


def _speakers(seed: int) -> dict[str, Speaker]:
    rng = np.random.default_rng([VERSION, seed, 1])
    speakers = {}
    for split, n in SPEAKERS.items():
        for k in range(n):
            high = k % 2 == 0  # as many high voices as low ones in each split
            speakers[f"{split}{k:02d}"] = Speaker(
                f0=rng.uniform(175, 215) if high else rng.uniform(105, 140),
                tract=rng.uniform(1.06, 1.10) if high else rng.uniform(0.98, 1.02),
                tilt=rng.uniform(-0.5, 0.5),
                rate=rng.uniform(0.92, 1.08),
            )
    return speakers


def render(
    line: Utterance, speaker: Speaker, seed: int, index: int, cache: Resonances
) -> np.ndarray:
    """The waveform of an utterance, float32 (n,) at 16 kHz.

    Only `voice=…` of its tags is heard; of its text, only the length. `cache` keeps the resonances
    of each vocal tract and FFT size.
    """
    rng = np.random.default_rng([VERSION, seed, 2, index])
    voice = VOICES[line.tags[0].removeprefix("voice=")]
    letters = len("".join((line.text or "").split()))
    syllables = max(2, round(letters / LETTERS_PER_SYLLABLE))
    beats = rng.lognormal(0.0, 0.22, syllables) / (
        voice.rate * speaker.rate
    )  # seconds per syllable
    pause = rng.uniform(0.04, 0.12, 2)
    scale = np.clip(beats.sum(), SECONDS[0] - pause.sum(), SECONDS[1] - pause.sum()) / beats.sum()
    edges = pause[0] + np.concatenate([[0.0], np.cumsum(beats * scale)])
    n = math.ceil((edges[-1] + pause[1]) * RATE)
    t = np.arange(n) / RATE

    # F0: a line from first to last syllable, an accent per syllable
    centres = (edges[1:] + edges[:-1]) / 2
    octaves = (
        np.log2(voice.level)
        + np.linspace(-0.5, 0.5, syllables) * voice.contour
        + rng.normal(0, voice.range, syllables)
    )
    f0 = speaker.f0 * 2.0 ** np.interp(t, centres, octaves)
    phase = np.cumsum(f0) / RATE
    at = np.flatnonzero(np.diff(np.floor(phase))) + 1
    at = np.clip(
        at + np.rint(rng.normal(0, voice.rough, len(at)) * RATE / f0[at]).astype(np.int64), 0, n - 1
    )
    source = np.zeros(n)
    # equal power at every F0
    source[at] = (1.0 + rng.normal(0, 3 * voice.rough, len(at))) * np.sqrt(RATE / f0[at])
    source += rng.standard_normal(n) * voice.breath

    # each syllable: a gate with soft edges, its own loudness and vowel
    syllable = np.clip(np.searchsorted(edges, t) - 1, 0, syllables - 1)
    place = np.clip((t - edges[syllable]) / np.diff(edges)[syllable], 0.0, 1.0)
    source *= (
        np.sqrt(np.sin(np.pi * place)) * (10 ** (rng.normal(0, 1.5, syllables) / 20))[syllable]
    )
    vowels = rng.integers(len(FORMANTS), size=syllables)[syllable]
    fft = 2 ** math.ceil(math.log2(n + 400))
    resonances = _resonances(speaker.tract * voice.tract, fft, cache)
    spectrum = sum(
        np.fft.rfft(np.where(vowels == v, source, 0.0), fft) * resonances[v]
        for v in np.unique(vowels)
    )
    frequency = np.fft.rfftfreq(fft, 1 / RATE)
    spectrum *= np.maximum(frequency / 250.0, 1.0) ** (
        (voice.tilt + speaker.tilt) / (20 * np.log10(2))
    )
    wave = np.fft.irfft(spectrum, fft)[:n]
    wave *= 10 ** ((voice.energy + rng.normal(0, 1.5)) / 20) / np.sqrt(np.mean(wave**2))
    wave += rng.standard_normal(n) * 10 ** (rng.uniform(-66, -58) / 20)  # the room
    return np.tanh(wave).astype(np.float32)


def face_of(row: Utterance, seed: int, index: int) -> str:
    """The emotion that a face shows: that of the voice or that of the words."""
    coin = np.random.default_rng([VERSION, seed, 5, index])
    return str(coin.choice([tag.partition("=")[2] for tag in row.tags[:2]]))


def _with_face(row: Utterance, folder: Path, speaker: str, seed: int, index: int) -> Utterance:
    """The row with its film, which is written where it is not there, and a tag that says what the
    face shows.
    """
    shows = face_of(row, seed, index)
    path = folder / f"{row.id}-face{drawnface.VERSION}.mkv"
    if not path.exists():
        number = sorted(_speakers(seed)).index(speaker)
        head = drawnface.Head.of(np.random.default_rng([VERSION, seed, 4, number]))
        seconds = soundfile.info(folder / f"{row.id}.wav").duration
        rng = np.random.default_rng([VERSION, seed, 3, index])
        with publishing(path, durable=False, swept=True) as temporary:
            drawnface.write(temporary, drawnface.draw(shows, head, seconds, rng))
    tags = (*row.tags, f"face={shows}")
    return replace(row, video=f"{folder.name}/{path.name}", tags=tags)


def _resonances(tract: float, fft: int, cache: Resonances) -> np.ndarray:
    """Frequency response of each vowel, (vowels, fft // 2 + 1): a cascade of two-pole resonators
    with unit gain at 0 Hz (Klatt 1980).
    """
    key = (tract, fft)
    if key not in cache:
        z = np.exp(-2j * np.pi * np.arange(fft // 2 + 1) / fft)
        out = np.ones((len(FORMANTS), len(z)), dtype=np.complex128)
        for v, formants in enumerate(FORMANTS.values()):
            for formant, bandwidth in zip(formants, BANDWIDTHS, strict=True):
                radius = math.exp(-math.pi * bandwidth / RATE)
                b = 2 * radius * math.cos(2 * math.pi * formant * tract / RATE)
                out[v] *= (1 - b + radius**2) / (1 - b * z + radius**2 * z**2)
        cache[key] = out
    return cache[key]


def _write(path: Path, wave: np.ndarray) -> None:
    # Not synced: there are hundreds of them, and the same seed makes them again.
    with publishing(path, durable=False, swept=True) as temporary:
        packed = io.BytesIO()  # soundfile does not say why a file could not be written
        soundfile.write(packed, wave, RATE, format="WAV", subtype="PCM_16")
        temporary.write_bytes(packed.getbuffer())
