"""MMSA feature pickles (github.com/thuiar/MMSA): aligned_50.pkl, unaligned_50.pkl and what MMSA-FET
writes.

dict(train, valid, test) of dict(id, raw_text, text, audio, vision, text_bert, *_lengths,
annotations, classification_labels, regression_labels). Arrays are padded to one length; true
lengths are `*_lengths`, else (aligned files) the BERT mask. Also read: a modality as a list or
object array of ragged arrays, and the older form of the Multi-modal Transformer
(github.com/yaohungt), whose `labels` are (N, 1, 1) sentiment, or (N, 4, 2) emotions as pairs (no,
yes), padded in front.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mer.pipeline.errors import DataError
from mer.pipeline.interchange.arrays import NUMBERS, features_of, said
from mer.pipeline.interchange.columns import SPLIT_NAMES, aside_line, cell, find_features, interpret
from mer.pipeline.interchange.padding import spans
from mer.pipeline.interchange.pickles import load
from mer.pipeline.interchange.source import exported_header, reading
from mer.pipeline.interchange.write import Foreign, Options
from mer.pipeline.runtime.cells import name_cell
from mer.pipeline.runtime.files import sha256_file
from mer.pipeline.runtime.terminal import shown
from mer.pipeline.store import Header

# The first eight digits of the sha256 that MMSA's README gives for its downloads.
PUBLISHED = {
    "d3994fd2": ("mosi", "MOSI aligned_50.pkl"),
    "78e0f8b5": ("mosi", "MOSI unaligned_50.pkl"),
    "45eccfb7": ("mosei", "MOSEI aligned_50.pkl"),
    "ad8b23d5": ("mosei", "MOSEI unaligned_50.pkl"),
}
LABELS = ("annotations", "classification_labels", "regression_labels", "labels")
# Corpus by a word in the file's name, the longer one first, and the language spoken in it.
CORPORA = {"simsv2": "zh", "sims": "zh", "mosei": "en", "mosi": "en"}
# SIMS rates each modality by itself.
UNIMODAL = re.compile(r"(regression|classification)_labels?_[TAVM]")
NO_FEATURES = {"id", "ids", "raw_text", "mer"}  # keys that are no features, whatever their shape
LISTS_OF_SAMPLES = (
    "looks like the form of MAG-BERT and MISA (a list of samples with words, visual, acoustic); "
    "save it as dict of arrays"
)


@dataclass
class Part:
    """One split: its content by text keys, its ids, and its features by key."""

    name: str
    content: dict
    ids: list[str]
    features: dict[str, np.ndarray | list[np.ndarray | None]]

    def __len__(self) -> int:
        return len(self.ids)


def read(path: Path, options: Options) -> Foreign:
    """`options.task`: regression (the default where there are regression labels) or single (MMSA's
    classes)."""
    content = load(path)
    with reading(path, "MMSA pickle of a known form"):
        return _read(path, content, options)


def _read(path: Path, content, options: Options) -> Foreign:
    splits, rest = _splits(path, content)
    header = _header(content)
    parts = [_part(path, name, part) for name, part in splits.items()]
    seen = [part for part in parts if len(part)] or parts
    there = sorted({key for part in seen for key in part.features} - {*LABELS, "text_bert"})
    names = find_features(path, there, options, header)
    for part in seen:
        for key in names.values():
            if key not in part.features:
                raise DataError(
                    f"{path}: {part.name}: {key} is {said(part.content.get(key))}, not features as "
                    "in the other splits"
                )
    notes: list[str] = []
    starts = {
        (part.name, m): _steps(path, part, m, key, notes)
        for part in parts
        for m, key in names.items()
        if key in part.features
    }
    checksum = sha256_file(path)
    known = PUBLISHED.get(checksum[:8])
    notes.append(
        f"sha256 {checksum[:8]}…: "
        + (f"the published {known[1]}" if known else "none of the published MMSA files")
    )
    task = options.task or (header.task if header else None) or _task(seen[0])
    label_keys = {_label_key(path, part, task) for part in seen}
    notes += _aside(parts, rest, {*names.values(), *filter(None, label_keys)}, task)

    def frames() -> Iterator[dict[str, np.ndarray | None]]:
        for part in parts:
            for i in range(len(part)):
                yield {
                    m: _piece(part.features[key], *starts[part.name, m], i)
                    for m, key in names.items()
                }

    columns: dict[str, list] = {"id": _ids(parts), "split": [], "text": []}
    columns["label" if task == "single" else "targets"] = labels = []
    for part in parts:
        columns["split"] += [part.name] * len(part)
        columns["text"] += list(part.content.get("raw_text", [None] * len(part)))
        labels += _labels(path, part, task)
    classes: tuple[str, ...] = ()
    if task == "single" and not options.labels and not (header and header.task == task):
        classes = _order(parts)
    found = interpret(
        path, columns, replace(options, task=task, labels=options.labels or classes), header
    )
    for row in found.rows:
        video, mark, clip = row["id"].rpartition(
            "$_$"
        )  # "03bSnISJMiM$_$1": the video, and the place in it
        if mark:
            row["dialogue"] = video.split("/", 1)[-1]
            row["position"] = int(clip) if clip.isdecimal() and len(clip) < 9 else None
    dataset, language = _corpus(path, parts, header, known, notes, options)
    dims = {
        m: next(_width(part.features[key]) for part in seen if key in part.features)
        for m, key in names.items()
    }
    return Foreign(
        path=path,
        kind="mmsa",
        dataset=dataset,
        task=found.task,
        labels=found.labels,
        language=language,
        rows=found.rows,
        dims=dims,
        frames=frames,
        header=header,
        notes=notes + found.notes,
        source={"sha256": checksum, "published_as": known[1] if known else ""},
    )


def _splits(path: Path, content) -> tuple[dict[str, dict], dict[str, object]]:
    """The splits by name, and what else is beside them."""
    form = (
        f"{path}: not an MMSA pickle; expected dict(train, valid, test) of "
        "dict(id, text, audio, vision, …)"
    )
    if not isinstance(content, dict) or not content:
        raise DataError(f"{form}, this is {said(content)}")
    content = {_key(key): value for key, value in content.items()}
    known = {
        name: part
        for name, part in content.items()
        if name.lower() in SPLIT_NAMES and name and name != "mer"
    }
    if any(
        isinstance(part, list) and part and isinstance(part[0], tuple | list)
        for part in known.values()
    ):
        raise DataError(f"{path}: not an MMSA pickle; it {LISTS_OF_SAMPLES}")
    unknown = [
        name
        for name, part in content.items()
        if name not in known and isinstance(part, dict) and ("id" in part or "labels" in part)
    ]
    if unknown:
        raise DataError(f"{path}: split '{shown(unknown[0], 40)}' is not one of train, valid, test")
    if not known or not all(
        isinstance(part, dict) and (part.keys() & {"id", b"id", "labels", b"labels", *LABELS})
        for part in known.values()
    ):
        raise DataError(
            f"{form}, this has {aside_line({name: said(part) for name, part in content.items()})}"
        )
    return known, {
        name: part for name, part in content.items() if name not in known and name != "mer"
    }


def _key(key) -> str:
    return (
        key.decode("utf-8", "replace") if isinstance(key, bytes) else str(key)
    )  # bytes: a pickle of Python 2


def _header(content: dict) -> Header | None:
    """That of the store which was exported."""
    try:
        return exported_header(content["mer"]) if isinstance(content.get("mer"), str) else None
    except ValueError:
        return None


def _part(path: Path, name: str, content: dict) -> Part:
    content = {_key(key): value for key, value in content.items()}
    given = content.get("id")
    if given is None:
        ids = [str(i) for i in range(len(content["labels"]))]
    elif isinstance(given, np.ndarray) and given.ndim > 1:  # (N, 3): video, start, end
        ids = [
            "_".join(cell(path, name, "id", v, name_cell) or "" for v in row)
            for row in given.reshape(len(given), -1).tolist()
        ]
    else:
        ids = [cell(path, name, "id", value, name_cell) or "" for value in given]
    keyed = {
        key: features_of(value, ids) for key, value in content.items() if key not in NO_FEATURES
    }
    return Part(name, content, ids, {key: x for key, x in keyed.items() if x is not None})


def _aside(parts: list[Part], rest: Mapping[str, object], used: set[str], task: str) -> list[str]:
    """What of the file becomes nothing, by name and shape: of the whole file, and of each split,
    where a key is said once."""
    there: dict[str, str] = dict.fromkeys(rest, "")
    there = {name: said(rest[name]) for name in there}
    for part in parts:
        for key, value in part.content.items():
            if key not in used | NO_FEATURES and not key.endswith("_lengths"):
                there.setdefault(key, said(value))
    notes = []
    if "text_bert" in there:
        notes.append(
            f"text_bert {there.pop('text_bert')} is left out: token ids, input of an encoder and "
            "not its features"
        )
    unimodal = {key: there.pop(key) for key in list(there) if UNIMODAL.fullmatch(key)}
    if unimodal:
        notes.append(f"labels of single modalities, not used: {aside_line(unimodal)}")
    if there:
        notes.append(f"not used: {aside_line(there)}")
    return notes


def _corpus(
    path: Path,
    parts: list[Part],
    header: Header | None,
    known: tuple[str, str] | None,
    notes: list[str],
    options: Options,
) -> tuple[str, str]:
    """(name of the corpus, language). The evaluation chooses its measures by the name, so a guess
    is said."""
    if options.dataset or header or known:
        name = options.dataset or (header.dataset if header else known[0])
        spoken = (
            header.language
            if header
            else CORPORA.get(re.sub(r"[^a-z0-9]|^ch-?", "", name.lower()), "en")
        )
        return name, options.language or spoken
    word = re.sub(r"[^a-z0-9]", "", path.stem.lower())
    guess, why = next((name for name in CORPORA if name in word), None), "the file's name"
    if guess is None and any(UNIMODAL.fullmatch(key) for part in parts for key in part.content):
        guess, why = "sims", "its labels of single modalities"
    if guess is not None:
        notes.append(
            f"corpus: {guess}, guessed from {why}; it decides the measures: say --dataset NAME if "
            "it is another"
        )
        return guess, options.language or CORPORA[guess]
    notes.append(
        f"corpus: '{shown(path.stem, 40)}', the file's name; --dataset mosi, mosei, sims or simsv2 "
        "has it evaluated as that"
    )
    return path.stem, options.language or "en"


def _ids(parts: list[Part]) -> list[str]:
    """Ids as they are; when one is in two splits, all are prefixed with their split."""
    every = [i for part in parts for i in part.ids]
    if len(set(every)) == len(every):
        return every
    return [
        f"{SPLIT_NAMES[part.name.lower()]}/{i}" if i else "" for part in parts for i in part.ids
    ]


def _width(x: np.ndarray | list[np.ndarray | None]) -> int:
    return (
        next(one.shape[-1] for one in x if one is not None) if isinstance(x, list) else x.shape[-1]
    )


def _piece(
    x: np.ndarray | list[np.ndarray | None], start: np.ndarray, stop: np.ndarray, i: int
) -> np.ndarray | None:
    one = x[i]
    return one if one is None or one.ndim == 1 else one[start[i] : stop[i]]


def _steps(
    path: Path, part: Part, modality: str, key: str, notes: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    """((N,) first step, (N,) one past the last) of each utterance; how they were found goes into
    `notes`, once."""
    x, n = part.features[key], len(part)
    if len(x) != n:
        raise DataError(
            f"{path}: {part.name}: {key} should be an array (N={n}, T, D) or (N, D), is "
            f"{said(part.content[key])}"
        )
    given = part.content.get(f"{key}_lengths", part.content.get(f"{modality}_lengths"))
    lengths = (
        None
        if given is None or (isinstance(x, np.ndarray) and x.ndim == 2)
        else _whole(path, part.name, key, given, n)
    )
    if isinstance(x, list):
        steps = np.array(
            [0 if one is None else len(one) if one.ndim == 2 else 1 for one in x], np.int64
        )
        found, how = (
            (np.zeros(n, np.int64), steps if lengths is None else lengths),
            "those of the ragged arrays",
        )
        if lengths is not None:
            how = f"{key}_lengths"
            if (lengths > steps).any():
                raise DataError(
                    f"{path}: {part.name}: lengths of {key} do not fit its ragged arrays"
                )
    elif x.ndim == 2:
        found, how = (np.zeros(n, np.int64), np.ones(n, np.int64)), "one vector an utterance"
    else:
        mask = part.content.get("text_bert")
        how = f"{key}_lengths"
        numeric = isinstance(mask, np.ndarray) and mask.dtype.kind in NUMBERS
        if (
            lengths is None
            and numeric
            and mask.ndim == 3
            and mask.shape[:2] == (n, 3)
            and mask.shape[2] == x.shape[1]
        ):
            lengths, how = np.nan_to_num(mask[:, 1]).sum(axis=1).astype(np.int64), "the BERT mask"
        elif lengths is None:
            # Steps after the last one that is not all zero. A step that is really zero at the end
            # is lost with them.
            how = "up to the last step that is not zero"
        if lengths is not None and ((lengths < 0).any() or (lengths > x.shape[1]).any()):
            raise DataError(f"{path}: {part.name}: lengths of {key} do not fit its shape {x.shape}")
        where = spans(path, f"{part.name}: {key}", x, part.ids, lengths, strip=True)
        found = where.start, where.stop
        notes += where.notes
    line = f"lengths of {modality}: {how}"
    if line not in notes:
        notes.append(line)
    return found


def _whole(path: Path, split: str, key: str, given, n: int) -> np.ndarray:
    """(N,) int64 lengths as the file gives them."""
    values = np.asarray(given)
    good = (
        values.size == n
        and values.dtype.kind in NUMBERS
        and np.isfinite(values).all()
        and (values == np.floor(values)).all()
    )
    if not good or (values < 0).any() or (values >= 2**31).any():
        raise DataError(
            f"{path}: {split}: lengths of {key} do not fit: they should be {n} whole numbers, are "
            f"{said(given)}"
        )
    return values.reshape(n).astype(np.int64)


def _task(part: Part) -> str:
    if "regression_labels" in part.content:
        return "regression"
    labels = part.content.get("labels")
    return (
        "regression"
        if "annotations" not in part.content
        and isinstance(labels, np.ndarray)
        and labels.dtype.kind == "f"
        else "single"
    )


def _label_key(path: Path, part: Part, task: str) -> str | None:
    """Name of the labels in this split; None when it has no utterances."""
    keys = {
        "regression": ("regression_labels", "labels"),
        "multi": ("classification_labels", "labels"),
        "single": ("annotations", "classification_labels", "labels"),
    }[task]
    found = next(
        (key for key in keys if part.content.get(key) is not None and len(part.content[key])), None
    )
    if found is None and len(part):
        raise DataError(f"{path}: {part.name} has no {keys[0]}; a {task} task needs them")
    return found


def _labels(path: Path, part: Part, task: str) -> list:
    found, n = _label_key(path, part, task), len(part)
    if found is None:
        return []
    values = part.content[found]
    if len(values) != n:
        raise DataError(f"{path}: {part.name}: {found} has {len(values)} values for {n} utterances")
    if found == "labels" and isinstance(values, np.ndarray) and values.ndim > 1:
        values = _transformer_labels(path, part, values, task)
    return [v.item() if isinstance(v, np.generic) else v for v in values]


def _transformer_labels(path: Path, part: Part, values: np.ndarray, task: str) -> np.ndarray:
    """(N, 1, 1) -> (N,); (N, C, 2) pairs (no, yes) -> (N, C), for a multi task."""
    if values.size == len(part):
        return values.reshape(-1)
    pairs = (
        values.ndim == 3
        and values.shape[2] == 2
        and np.isin(values, (0, 1)).all()
        and (values.sum(axis=2) == 1).all()
    )
    if pairs and task == "multi":
        return values[:, :, 1]
    if pairs:
        raise DataError(
            f"{path}: labels {values.shape} are pairs (no, yes) of {values.shape[1]} emotions: "
            "--task multi --labels with their names"
        )
    if values.ndim == 2 and task == "multi":
        return values
    raise DataError(
        f"{path}: {part.name}: labels have shape {values.shape}, of which no {task} task can be "
        "made"
    )


def _order(parts: list[Part]) -> tuple[str, ...]:
    """Names of the classes in the order of their numbers, where annotations and numbers agree; else
    () for alphabetical."""
    number: dict[str, float] = {}
    for part in parts:
        names, values = part.content.get("annotations"), part.content.get("classification_labels")
        if names is None or values is None or len(names) != len(values):
            return ()
        if not len(names):
            continue
        values = np.asarray(values)
        if values.dtype.kind not in NUMBERS:
            return ()
        for name, value in zip(names, values.reshape(len(names), -1)[:, 0].tolist(), strict=True):
            name = name_cell(name)
            if name is not None and number.setdefault(name, value) != value:
                return ()
    return tuple(sorted(number, key=number.__getitem__))
