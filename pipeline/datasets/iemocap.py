"""IEMOCAP (Busso et al. 2008): EmoEvaluation, transcriptions and sentence wavs of five sessions.

The speaker is the session and the letter of the utterance (`Ses01F_impro01_M012` is Ses01M; the
letter after the session only says who wore the markers). There is no split: the protocol is
leave-one-session-out, `mer train --folds session`. Utterances whose label is not in the chosen set,
"xxx" (no majority) first of all, are left out and counted.
"""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from pathlib import Path

from mer.pipeline.datasets.corpora import CorpusInfo, LabelSet
from mer.pipeline.datasets.files import elsewhere, hidden, look, require_root
from mer.pipeline.datasets.findings import Report, shared_texts, some
from mer.pipeline.errors import DataError
from mer.pipeline.manifest import Manifest, Utterance
from mer.pipeline.runtime.limits import TABLE_BYTES
from mer.pipeline.runtime.terminal import shown

SESSIONS = tuple(f"Session{n}" for n in range(1, 6))
# [6.2901 - 8.2357]  Ses01F_impro01_F000  neu  [2.5, …]
EVALUATION = re.compile(r"^\[(\d+\.\d+) - (\d+\.\d+)\]\s+(\S+)\s+(\w+)\s+\[", re.M)
# other lines (`M: …`) have no time and no utterance
TRANSCRIPT = re.compile(r"^(Ses\S+) \[\d+\.\d+-\d+\.\d+\]:[ \t]*(.*?)\s*$", re.M)
UTTERANCE = re.compile(r"^(Ses\d\d)[FM]_\w+_([FM])\d+$")
NOISE = re.compile(r"\[[A-Z ]+\]")  # [LAUGHTER]


def prepare(root: Path, info: CorpusInfo, *, labels: str | None = None) -> tuple[Manifest, Report]:
    require_root(root, info)
    chosen = info.label_set(labels)
    report = Report("iemocap", expected=chosen.expected)
    rows: list[Utterance] = []
    dropped: defaultdict[str, list[str]] = defaultdict(list)
    found: Counter[str] = Counter()
    for session in _sessions(root, info, report):
        texts = _transcripts(session, report)
        for file in _files(session / "dialog" / "EmoEvaluation"):
            lines = sorted(EVALUATION.findall(_read(file, report)), key=lambda line: float(line[0]))
            for position, (_, _, utterance, code) in enumerate(lines):
                parts = UTTERANCE.match(utterance)
                if parts is None:
                    raise DataError(
                        f"{file}: utterance '{shown(utterance)}' is not named like "
                        "Ses01F_impro01_F000"
                    )
                found[parts[1]] += 1
                label = chosen.source.get(code)
                if label is None:
                    dropped[code].append(utterance)
                    continue
                dialogue = file.stem
                wav = session / "sentences" / "wav" / dialogue / f"{utterance}.wav"
                rows.append(
                    Utterance(
                        id=utterance,
                        audio=os.path.relpath(wav, root),
                        text=texts.get(utterance) or None,
                        label=label,
                        speaker=parts[1] + parts[2],
                        dialogue=dialogue,
                        session=parts[1],
                        position=position,
                        tags=("improvised" if "impro" in dialogue else "scripted",),
                    )
                )
    by_number = sorted(dropped.items(), key=lambda item: -len(item[1]))
    report.dropped = {
        f"label {code}, not in the set '{chosen.name}'": names for code, names in by_number
    }
    _check_sessions(rows, found, chosen, info, report)
    _check_texts(rows, report)
    return Manifest(
        "iemocap",
        chosen.task,
        chosen.labels,
        tuple(look(rows, root, info, report)),
        root,
        info.language,
        {"labels": chosen.name},
    ), report


def _sessions(root: Path, info: CorpusInfo, report: Report) -> list[Path]:
    """The session folders, in the root or one folder below it."""
    for base in (
        root,
        *sorted(path for path in root.iterdir() if path.is_dir() and not hidden(path.name)),
    ):
        found = [
            base / name for name in SESSIONS if (base / name / "dialog" / "EmoEvaluation").is_dir()
        ]
        if found:
            if absent := sorted(set(SESSIONS) - {path.name for path in found}):
                report.warnings.append(f"{', '.join(absent)} not found in {base}")
            return found
    hint = elsewhere(root, ["EmoEvaluation", *SESSIONS])
    where = f"{shown(root.absolute(), 100)} or one folder below"
    raise DataError(
        "iemocap: no Session1/dialog/EmoEvaluation in "
        f"{where}{hint or f'; to get it: {info.obtain}'}"
    )


def _files(folder: Path) -> list[Path]:
    """The dialogues' files: not the raters' folders beside them, nor macOS's `._` twins."""
    return sorted(
        path for path in folder.glob("Ses*.txt") if path.is_file() and not hidden(path.name)
    )


def _read(path: Path, report: Report) -> str:
    if (size := path.stat().st_size) > TABLE_BYTES:
        raise DataError(f"{path}: {size:,} bytes, more than {TABLE_BYTES:,}")
    text = path.read_bytes().decode("utf-8", errors="replace").removeprefix("\ufeff")
    if "\ufffd" in text:
        report.warnings.append(f"{path.name}: {text.count(chr(0xFFFD))} bytes are not UTF-8")
    return text


def _transcripts(session: Path, report: Report) -> dict[str, str]:
    """Utterance -> text.

    The `XX` lines have neither wav nor label, so no evaluation line asks for them.
    """
    texts: dict[str, str] = {}
    for file in _files(session / "dialog" / "transcriptions"):
        for utterance, text in TRANSCRIPT.findall(_read(file, report)):
            if texts.setdefault(utterance, text) != text and UTTERANCE.match(utterance):
                report.warnings.append(
                    f"{file.name}: two different lines for {utterance}; the first is used"
                )
    return texts


def _check_sessions(
    rows: list[Utterance], found: Counter, chosen: LabelSet, info: CorpusInfo, report: Report
) -> None:
    kept = Counter(u.session for u in rows)
    for what, counts, expected in (
        ("labelled", found, info.expected_files),
        (f"of set '{chosen.name}'", kept, chosen.groups),
    ):
        for session, n in expected.items():
            if counts[session] != n:
                report.warnings.append(
                    f"{session}: {counts[session]:,} utterances {what}, {n:,} expected"
                )


def _check_texts(rows: list[Utterance], report: Report) -> None:
    """Overlap of each session's transcripts with the other four, scripted and improvised apart:
    scripts are spoken in several sessions.
    """
    if silent := [u.id for u in rows if u.text is None]:
        report.warnings.append(f"{len(silent):,} utterances have no transcript: {some(silent)}")
    if noise := [u.id for u in rows if u.text is not None and not NOISE.sub("", u.text).strip()]:
        what = "transcripts are nothing but noise marks such as [LAUGHTER]; they are kept as text"
        report.warnings.append(f"{len(noise):,} {what}: {some(noise)}")
    for session in sorted({u.session for u in rows}):
        others = [u.text for u in rows if u.session != session]
        for kind in ("scripted", "improvised"):
            part = [u for u in rows if u.session == session and kind in u.tags]
            texts, long = shared_texts(others, [u.text for u in part])
            report.overlaps[f"other sessions/{kind} {session}"] = {
                "texts": texts,
                "long_texts": long,
                "speakers": 0,
            }
