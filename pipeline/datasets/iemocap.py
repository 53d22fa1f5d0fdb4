"""IEMOCAP (Busso et al. 2008): EmoEvaluation, transcriptions and sentence wavs of five sessions.

The speaker is the session and the letter of the utterance (`Ses01F_impro01_M012` is Ses01M; the
letter after the session only says who wore the markers). There is no split: the protocol is
leave-one-session-out, `mer train --folds session`. Utterances whose label is not in the chosen set,
"xxx" (no majority) first of all, are kept without a label and counted: they are turns of their
dialogues, which neighbours are seen with (`data.context`), and are never trained on or scored.
"""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from mer.pipeline.datasets.corpora import CorpusInfo, LabelSet
from mer.pipeline.datasets.files import elsewhere, hidden, manifest_of, require_root
from mer.pipeline.datasets.findings import Findings, shared_texts, some
from mer.pipeline.datasets.raters import OUTSIDE, check_task, with_shares
from mer.pipeline.errors import DataError
from mer.pipeline.manifest import Manifest, Utterance
from mer.pipeline.runtime.limits import TABLE_BYTES
from mer.pipeline.runtime.terminal import plural, shown

FILMS = Path("dialog", "avi", "DivX")
SESSIONS = tuple(f"Session{n}" for n in range(1, 6))
# A line such as [6.2901 - 8.2357]  Ses01F_impro01_F000  neu  [2.5, …]
EVALUATION = re.compile(r"^\[(\d+\.\d+) - (\d+\.\d+)\]\s+(\S+)\s+(\w+)\s+\[([^\]\n]*)\]", re.M)
# What one rater chose, such as C-E2:  Anger; Frustration;  (comment). C-F1 and C-M1 are the actors'
# own, of which the label is not made.
RATER = re.compile(r"^C-E\d+:([^(\n]*)", re.M)
CODES = {  # what raters call a label -> its code
    "anger": "ang",
    "disgust": "dis",
    "excited": "exc",
    "fear": "fea",
    "frustration": "fru",
    "happiness": "hap",
    "neutral": "neu",
    "neutral state": "neu",
    "other": "oth",
    "sadness": "sad",
    "surprise": "sur",
}
NO_MAJORITY = "xxx"
RATING = re.compile(r"\d+(?:\.\d+)?", re.ASCII)
# Other lines (`M: …`) have no time and no utterance.
TRANSCRIPT = re.compile(r"^(Ses\S+) \[\d+\.\d+-\d+\.\d+\]:[ \t]*(.*?)\s*$", re.M)
DIMENSIONS = 3
UTTERANCE = re.compile(r"^(Ses\d\d)([FM])_\w+_([FM])\d+$")
NOISE = re.compile(r"\[[A-Z ]+\]")  # [LAUGHTER]


def prepare(
    root: Path,
    info: CorpusInfo,
    *,
    labels: str | None = None,
    vision: bool = False,
    left: str = "marked",
    raters: bool = False,
) -> tuple[Manifest, Findings]:
    """The manifest of IEMOCAP under `root`; `labels` is the number of classes, or vad
    for the ratings of valence, arousal and dominance from 1 to 5. With `vision` each
    row names its dialogue's film, its span there, and by a tag the half in which its speaker is;
    `left` says who is in the left one: the "marked" speaker or the "unmarked" one. With `raters`
    rows keep how their raters divided over the classes.
    """
    require_root(root, info)
    chosen = info.label_set(labels)
    if raters:
        check_task("iemocap", chosen.task)
    findings = Findings("iemocap", expected=chosen.expected)
    rows: list[Utterance] = []
    unlabelled: defaultdict[str, list[str]] = defaultdict(list)
    found: Counter[str] = Counter()
    votes_of: dict[str, dict[str, float]] = {}
    unknown: Counter[str] = Counter()  # words of raters
    for session in _sessions(root, info, findings):
        texts = _transcripts(session, findings)
        for line in _evaluations(session, findings):
            found[line.session] += 1
            if raters:
                votes_of[line.utterance] = _votes(line.chosen, chosen, unknown)
            rated = chosen.task == "regression"
            label = None if rated else chosen.source.get(line.code)
            if label is None and not rated:
                unlabelled[line.code].append(line.utterance)
            wav = session / "sentences" / "wav" / line.dialogue / f"{line.utterance}.wav"
            row = Utterance(
                id=line.utterance,
                audio=os.path.relpath(wav, root),
                text=texts.get(line.utterance) or None,
                label=label,
                targets=line.ratings if rated else None,
                speaker=line.session + line.gender,
                dialogue=line.dialogue,
                session=line.session,
                position=line.position,
                tags=(_kind(line.dialogue),),
            )
            rows.append(_seen(row, line, session, root, left) if vision else row)
    for code in sorted(unlabelled, key=lambda name: -len(unlabelled[name])):
        findings.unlabelled[f"label {code}, not in the set '{chosen.name}'"] = unlabelled[code]
    _check_sessions(rows, found, chosen, info, findings)
    _check_texts(rows, findings)
    if raters:
        undecided = frozenset(unlabelled[NO_MAJORITY])
        rows = with_shares(rows, votes_of, undecided, chosen.labels, findings)
        if unknown:
            words = [f"{shown(word, 40)} ({count:,})" for word, count in unknown.items()]
            findings.warnings.append(
                f"raters said what is no known label, taken as of no class: {some(words)}"
            )
    return manifest_of(rows, root, info, chosen, findings)


def _seen(row: Utterance, line: Evaluation, session: Path, root: Path, left: str) -> Utterance:
    """The row with its film; both speakers are in each picture, side by side."""
    film = session / FILMS / f"{line.dialogue}.avi"
    is_left = (line.gender == line.marked) == (left == "marked")
    begin, end = line.span
    return replace(
        row,
        video=os.path.relpath(film, root),
        video_start=begin,
        video_end=end,
        tags=(*row.tags, "left" if is_left else "right"),
    )


class Evaluation(NamedTuple):
    """A line of EmoEvaluation: the utterance, its place in the dialogue, its label as a code; who
    wore the markers, (start, end) in seconds of the dialogue, and the mean ratings of valence,
    arousal and dominance; what each rater chose, as written.
    """

    utterance: str
    session: str
    gender: str
    dialogue: str
    position: int
    code: str
    marked: str
    span: tuple[float, float]
    ratings: tuple[float, ...]
    chosen: tuple[str, ...]


def _evaluations(session: Path, findings: Findings) -> Iterator[Evaluation]:
    """The utterances of a session, dialogue by dialogue in order of time."""
    for file in _files(session / "dialog" / "EmoEvaluation"):
        text = _read(file, findings)
        found = list(EVALUATION.finditer(text))
        nexts = [line.start() for line in found[1:]] + [len(text)]
        lines = []
        for line, following in zip(found, nexts, strict=True):
            lines.append((*line.groups(), text[line.end() : following]))
        lines.sort(key=lambda line: float(line[0]))
        for position, (start, end, utterance, code, rated, below) in enumerate(lines):
            parts = UTTERANCE.match(utterance)
            if parts is None:
                raise DataError(
                    f"{file}: utterance '{shown(utterance)}' is not named like Ses01F_impro01_F000"
                )
            ratings = [value.strip() for value in rated.split(",")]
            if len(ratings) != DIMENSIONS or not all(map(RATING.fullmatch, ratings)):
                raise DataError(
                    f"{file}: {shown(utterance)} has ratings [{shown(rated, 60)}], expected three "
                    "numbers: valence, arousal, dominance"
                )
            yield Evaluation(
                utterance,
                session=parts[1],
                gender=parts[3],
                dialogue=file.stem,
                position=position,
                code=code,
                marked=parts[2],
                span=(float(start), float(end)),
                ratings=tuple(map(float, ratings)),
                chosen=tuple(RATER.findall(below)),
            )


def _votes(chosen: Iterable[str], labels: LabelSet, unknown: Counter[str]) -> dict[str, float]:
    """Class, or OUTSIDE -> votes: one of each rater, divided where a rater chose several. Words
    that stand for no label are counted in `unknown`.
    """
    votes: dict[str, float] = defaultdict(float)
    for said in chosen:
        words = [word.strip().lower() for word in said.split(";") if word.strip()]
        for word in words:
            unknown.update([word] if word not in CODES else [])
            votes[labels.source.get(CODES.get(word, ""), OUTSIDE)] += 1 / len(words)
    return votes


def _kind(dialogue: str) -> str:
    return "improvised" if "impro" in dialogue else "scripted"


def _sessions(root: Path, info: CorpusInfo, findings: Findings) -> list[Path]:
    """The session folders, in the root or one folder below it."""
    below = [path for path in root.iterdir() if path.is_dir() and not hidden(path.name)]
    for base in (root, *sorted(below)):
        found = [name for name in SESSIONS if (base / name / "dialog" / "EmoEvaluation").is_dir()]
        absent = [name for name in SESSIONS if name not in found]
        if found and absent:
            findings.warnings.append(f"{', '.join(absent)} not found in {base}")
        if found:
            return [base / name for name in found]
    hint = elsewhere(root, ["EmoEvaluation", *SESSIONS])
    where = f"{shown(root.absolute(), 100)} or one folder below"
    raise DataError(
        "iemocap: no Session1/dialog/EmoEvaluation in "
        f"{where}{hint or f'; to get it: {info.obtain}'}"
    )


def _files(folder: Path) -> list[Path]:
    """The dialogues' files: not the raters' folders beside them, nor macOS's `._` twins."""
    files = (path for path in folder.glob("Ses*.txt") if path.is_file())
    return sorted(path for path in files if not hidden(path.name))


def _read(path: Path, findings: Findings) -> str:
    if (size := path.stat().st_size) > TABLE_BYTES:
        raise DataError(f"{path}: {size:,} bytes, more than {TABLE_BYTES:,}")
    text = path.read_bytes().decode("utf-8", errors="replace").removeprefix("\ufeff")
    if "\ufffd" in text:
        findings.warnings.append(f"{path.name}: {text.count(chr(0xFFFD))} bytes are not UTF-8")
    return text


def _transcripts(session: Path, findings: Findings) -> dict[str, str]:
    """Utterance -> text.

    The `XX` lines have neither wav nor label, so no evaluation line asks for them.
    """
    texts: dict[str, str] = {}
    for file in _files(session / "dialog" / "transcriptions"):
        for utterance, text in TRANSCRIPT.findall(_read(file, findings)):
            if texts.setdefault(utterance, text) != text and UTTERANCE.match(utterance):
                findings.warnings.append(
                    f"{file.name}: two different lines for {utterance}; the first is used"
                )
    return texts


def _check_sessions(
    rows: list[Utterance], found: Counter, chosen: LabelSet, info: CorpusInfo, findings: Findings
) -> None:
    kept = Counter(u.session for u in rows if _is_labelled(u))
    for what, counts, expected in (
        ("labelled", found, info.expected_files),
        (f"of set '{chosen.name}'", kept, chosen.groups),
    ):
        for session, n in expected.items():
            if counts[session] != n:
                findings.warnings.append(
                    f"{session}: {plural(counts[session], 'utterance')} {what}, {n:,} expected"
                )


def _is_labelled(row: Utterance) -> bool:
    return row.label is not None or row.targets is not None


def _is_noise(text: str | None) -> bool:
    return text is not None and not NOISE.sub("", text).strip()


def _check_texts(rows: list[Utterance], findings: Findings) -> None:
    """Overlap of each session's labelled transcripts with those of the other four, scripted and
    improvised apart: scripts are spoken in several sessions.
    """
    silent = [u.id for u in rows if u.text is None]
    if silent:
        findings.warnings.append(
            f"{plural(len(silent), 'utterance has', 'utterances have')} no transcript: "
            f"{some(silent)}"
        )
    noise = [u.id for u in rows if _is_noise(u.text)]
    if noise:
        what = "nothing but noise marks such as [LAUGHTER], kept as text"
        number = plural(len(noise), "transcript is", "transcripts are")
        findings.warnings.append(f"{number} {what}: {some(noise)}")
    labelled = [u for u in rows if _is_labelled(u)]
    sessions = {u.session for u in labelled}
    for session in sorted(filter(None, sessions)):
        others = [u.text for u in labelled if u.session != session]
        for kind in ("scripted", "improvised"):
            part = [u.text for u in labelled if u.session == session and kind in u.tags]
            texts, long = shared_texts(others, part)
            findings.overlaps[f"other sessions/{kind} {session}"] = {
                "texts": texts,
                "long_texts": long,
                "speakers": 0,
            }
