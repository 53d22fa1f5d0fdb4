"""MMSA feature pickles (github.com/thuiar/MMSA): aligned_50.pkl, unaligned_50.pkl and what MMSA-FET
writes, read and written.

dict(train, valid, test) of dict(id, raw_text, text, audio, vision, text_bert, *_lengths,
annotations, classification_labels, regression_labels). Arrays are padded to one length; true
lengths are `*_lengths`, else (aligned files) the BERT mask. Also read: a modality as a list or
object array of ragged arrays, and the older form of the Multi-modal Transformer
(github.com/yaohungt), whose `labels` are (N, 1, 1) sentiment, or (N, 4, 2) emotions as pairs (no,
yes), padded in front.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from mer.pipeline.errors import DataError
from mer.pipeline.interchange import unimodal
from mer.pipeline.interchange.columns import aside_line, find_features
from mer.pipeline.interchange.copying import Copy, in_split, new_file
from mer.pipeline.interchange.foreign import Features, Foreign, ImportOptions
from mer.pipeline.interchange.padding import Spans, spans
from mer.pipeline.interchange.pickles import load
from mer.pipeline.interchange.ragged import NUMBERS, Ragged, described, features_of
from mer.pipeline.interchange.rows import SPLIT_NAMES, Rows, interpret
from mer.pipeline.interchange.source import header_among, reading
from mer.pipeline.interchange.values import cell
from mer.pipeline.runtime.cells import name_cell
from mer.pipeline.runtime.files import sha256_file
from mer.pipeline.runtime.terminal import plural, shown
from mer.pipeline.runtime.terms import targets_of
from mer.pipeline.store import Header

FORM = "expected dict(train, valid, test) of dict(id, text, audio, vision, …)"
HEADER_KEY = "mer"  # where an export of ours has its header, beside the splits


class Published(NamedTuple):
    corpus: str
    title: str


# The first eight digits of the sha256 that MMSA's README gives for its downloads.
PUBLISHED = {
    "d3994fd2": Published("mosi", "MOSI aligned_50.pkl"),
    "78e0f8b5": Published("mosi", "MOSI unaligned_50.pkl"),
    "45eccfb7": Published("mosei", "MOSEI aligned_50.pkl"),
    "ad8b23d5": Published("mosei", "MOSEI unaligned_50.pkl"),
}
# Task -> keys that its labels may be under, best first.
LABEL_KEYS = {
    "regression": ("regression_labels", "labels"),
    "multi": ("classification_labels", "labels"),
    "single": ("annotations", "classification_labels", "labels"),
}
LABELS = ("annotations", "classification_labels", "regression_labels", "labels")
# Corpus by a word in the file's name, the longer one first, and the language spoken in it.
CORPORA = {"simsv2": "zh", "sims": "zh", "mosei": "en", "mosi": "en"}
# SIMS rates each modality by itself.
UNIMODAL = re.compile(r"(regression|classification)_labels?_[TAVM]")
BERT = "text_bert"  # (N, 3, T): token ids, mask, segments
NO_FEATURES = {"id", "ids", "raw_text", HEADER_KEY}  # whatever their shape
CLIP = "$_$"  # "03bSnISJMiM$_$1": the video, and the place in it
LISTS_OF_SAMPLES = (
    "looks like the form of MAG-BERT and MISA (a list of samples with words, visual, acoustic); "
    "save it as dict of arrays"
)


# --- reading


@dataclass
class Part:
    """One split: its content by text keys, its ids, and its features by key."""

    name: str
    content: dict
    ids: list[str]
    features: dict[str, Ragged]

    def __len__(self) -> int:
        return len(self.ids)


def read(path: Path, options: ImportOptions) -> Foreign:
    """Read an MMSA pickle.

    Args:
        path: The file. No code in it is run.
        options: What the user says of it. `task` is regression where there are regression labels,
            else single (MMSA's classes).

    Returns:
        Its splits one after the other, held in memory.

    Raises:
        DataError: It is no pickle of this form, or its labels, lengths or features do not fit.
    """
    content = load(path)
    with reading(path, "MMSA pickle of a known form"):
        return _read(path, content, options)


def _read(path: Path, content: object, options: ImportOptions) -> Foreign:
    splits, rest = _splits(path, content)
    header = header_among(rest.pop(HEADER_KEY, None))
    parts = [_part(path, name, part) for name, part in splits.items()]
    filled = [part for part in parts if len(part)] or parts
    features = _find_features(path, filled, options, header)
    notes: list[str] = []
    where = _all_spans(path, parts, features, notes)
    checksum = sha256_file(path)
    known = PUBLISHED.get(checksum[:8])
    title = f"the published {known.title}" if known else "none of the published MMSA files"
    notes.append(f"sha256 {checksum[:8]}…: {title}")
    task = options.task or (header.task if header else _task(filled[0]))
    label_keys = {_label_key(path, part, task) for part in filled}
    alone = unimodal.keys_of(parts, task)
    used = {*features.values(), *filter(None, label_keys), *alone.values()}
    notes += _aside(parts, rest, used, task)

    found = _table(path, parts, task, options, header)
    found.notes += unimodal.set_rows(path, parts, alone, found)
    dataset, language = _corpus(path, parts, header, known, notes, options)
    return Foreign(
        path=path,
        kind="mmsa",
        dataset=dataset,
        task=found.task,
        labels=found.labels,
        language=language,
        rows=found.rows,
        dims={modality: _width(filled, key) for modality, key in features.items()},
        frames=partial(_frames, parts, features, where),
        header=header,
        notes=notes + found.notes,
        source={"sha256": checksum, "published_as": known.title if known else ""},
        padded=frozenset(
            modality
            for modality, key in features.items()
            if all(isinstance(part.features.get(key), np.ndarray) for part in filled)
        ),
    )


def _frames(
    parts: Sequence[Part], features: Mapping[str, str], where: Mapping[tuple[str, str], Spans]
) -> Iterator[Features]:
    """The features of every utterance, split by split; `features` are their keys by modality."""
    for part in parts:
        for i in range(len(part)):
            pieces: dict[str, np.ndarray | None] = {}
            for modality, key in features.items():
                pieces[modality] = _piece(part.features[key], where[part.name, modality], i)
            yield pieces


def _splits(path: Path, content: object) -> tuple[dict[str, dict], dict[str, object]]:
    """The splits by name, and what else is beside them."""
    if not isinstance(content, dict) or not content:
        raise DataError(f"{path}: not an MMSA pickle; {FORM}, this is {described(content)}")
    splits: dict[str, dict] = {}
    rest: dict[str, object] = {}
    for key, value in content.items():
        name = _key(key)
        if name and name.lower() in SPLIT_NAMES:
            splits[name] = value
        else:
            rest[name] = value
    if any(map(_is_list_of_samples, splits.values())):
        raise DataError(f"{path}: not an MMSA pickle; it {LISTS_OF_SAMPLES}")
    for name, part in rest.items():
        if isinstance(part, dict) and ("id" in part or "labels" in part):
            raise DataError(f"{path}: split '{shown(name, 40)}' is not one of train, valid, test")
    if not splits or not all(map(_is_split, splits.values())):
        there = {name: described(part) for name, part in (splits | rest).items()}
        raise DataError(f"{path}: not an MMSA pickle; {FORM}, this has {aside_line(there)}")
    return splits, rest


def _key(key: object) -> str:
    """A key as text; bytes are those of a pickle of Python 2."""
    return key.decode("utf-8", "replace") if isinstance(key, bytes) else str(key)


def _is_list_of_samples(part: object) -> bool:
    return isinstance(part, list) and bool(part) and isinstance(part[0], tuple | list)


def _is_split(part: object) -> bool:
    return isinstance(part, dict) and bool(part.keys() & {"id", b"id", b"labels", *LABELS})


def _part(path: Path, name: str, raw: dict) -> Part:
    content = {_key(key): value for key, value in raw.items()}
    ids = _ids_of(path, name, content)
    features = {}
    for key, value in content.items():
        found = None if key in NO_FEATURES else features_of(value, ids)
        if found is not None:
            features[key] = found
    return Part(name, content, ids, features)


def _ids_of(path: Path, name: str, content: dict) -> list[str]:
    given = content.get("id")
    if given is None:
        return [str(i) for i in range(len(content["labels"]))]
    if not isinstance(given, np.ndarray) or given.ndim < 2:
        return [cell(path, name, "id", value, name_cell) or "" for value in given]
    ids = []
    for values in given.reshape(len(given), -1).tolist():  # (N, 3): video, start, end
        words = [cell(path, name, "id", value, name_cell) or "" for value in values]
        ids.append("_".join(words))
    return ids


def _find_features(
    path: Path, filled: list[Part], options: ImportOptions, header: Header | None
) -> dict[str, str]:
    """Modality -> key, which every split with utterances must have."""
    keys: set[str] = set()
    for part in filled:
        keys |= part.features.keys()
    names = find_features(path, sorted(keys - {*LABELS, BERT}), options, header)
    for part in filled:
        for key in names.values():
            if key not in part.features:
                raise DataError(
                    f"{path}: {part.name}: {key} is {described(part.content.get(key))}, not "
                    "features as in the other splits"
                )
    return names


def _width(filled: list[Part], key: str) -> int:
    """Numbers per step of a modality, by the first of its features that are there."""
    features = filled[0].features[key]
    if isinstance(features, np.ndarray):
        return features.shape[-1]
    return next(one.shape[-1] for one in features if one is not None)


def _piece(x: Ragged, where: Spans, i: int) -> np.ndarray | None:
    one = x[i]
    if one is None or one.ndim == 1:
        return one
    return one[where.start[i] : where.stop[i]]


# --- reading: where the steps are


def _all_spans(
    path: Path, parts: list[Part], features: Mapping[str, str], notes: list[str]
) -> dict[tuple[str, str], Spans]:
    """(split, modality) -> the steps of each utterance; how they were found goes into `notes`,
    each way once.
    """
    where = {}
    for part in parts:
        for modality, key in features.items():
            if key not in part.features:
                continue
            found, how = _spans(path, part, modality, key)
            where[part.name, modality] = found
            notes += found.notes
            line = f"lengths of {modality}: {how}"
            if line not in notes:
                notes.append(line)
    return where


def _spans(path: Path, part: Part, modality: str, key: str) -> tuple[Spans, str]:
    """(the steps of each utterance, how they were found)."""
    x, count = part.features[key], len(part)
    if len(x) != count:
        raise DataError(
            f"{path}: {part.name}: {key} should be an array (N={count}, T, D) or (N, D), is "
            f"{described(part.content[key])}"
        )
    zeros = np.zeros(count, np.int64)
    if isinstance(x, np.ndarray) and x.ndim == 2:
        return Spans(zeros, np.ones(count, np.int64)), "one vector per utterance"
    given = part.content.get(f"{key}_lengths", part.content.get(f"{modality}_lengths"))
    lengths = None
    if given is not None:
        lengths = _whole_lengths(path, part.name, key, given, count)
    if isinstance(x, np.ndarray):
        return _padded_spans(path, part, key, x, lengths)
    steps = np.array([_steps_of(one) for one in x], np.int64)
    if lengths is None:
        return Spans(zeros, steps), "those of the ragged arrays"
    if (lengths > steps).any():
        raise DataError(f"{path}: {part.name}: lengths of {key} do not fit its ragged arrays")
    return Spans(zeros, lengths), f"{key}_lengths"


def _steps_of(one: np.ndarray | None) -> int:
    if one is None:
        return 0
    return len(one) if one.ndim == 2 else 1


def _padded_spans(
    path: Path, part: Part, key: str, x: np.ndarray, lengths: np.ndarray | None
) -> tuple[Spans, str]:
    """`_spans` of an array (N, T, D) that is padded to one length."""
    how = f"{key}_lengths"
    if lengths is None:
        lengths, how = _mask_lengths(part, x), "the BERT mask"
    if lengths is None:
        # A step that is really zero at the end is lost with the padding.
        how = "up to the last step that is not zero"
    elif (lengths < 0).any() or (lengths > x.shape[1]).any():
        raise DataError(f"{path}: {part.name}: lengths of {key} do not fit its shape {x.shape}")
    return spans(path, f"{part.name}: {key}", x, part.ids, lengths, strip=True), how


def _mask_lengths(part: Part, x: np.ndarray) -> np.ndarray | None:
    """(N,) lengths by the mask of the BERT tokens, where that has the same steps as the features;
    else None.
    """
    mask = part.content.get(BERT)
    if not isinstance(mask, np.ndarray) or mask.dtype.kind not in NUMBERS:
        return None
    if mask.shape != (len(part), 3, x.shape[1]):
        return None
    return np.nan_to_num(mask[:, 1]).sum(axis=1).astype(np.int64)


def _whole_lengths(path: Path, split: str, key: str, given: object, count: int) -> np.ndarray:
    """(N,) int64 lengths as the file gives them."""
    values = np.asarray(given)
    good = values.size == count and values.dtype.kind in NUMBERS and _are_lengths(values)
    if not good:
        raise DataError(
            f"{path}: {split}: lengths of {key} do not fit: they should be {count} whole numbers, "
            f"are {described(given)}"
        )
    return values.reshape(count).astype(np.int64)


def _are_lengths(values: np.ndarray) -> bool:
    if not np.isfinite(values).all() or not (values == np.floor(values)).all():
        return False
    return not ((values < 0).any() or (values >= 2**31).any())


# --- reading: what the utterances are


def _table(
    path: Path, parts: list[Part], task: str, options: ImportOptions, header: Header | None
) -> Rows:
    """The rows of every split, videos and places in them read off the ids."""
    columns: dict[str, list] = {"id": _ids(parts), "split": [], "text": []}
    labels: list = []
    for part in parts:
        columns["split"] += [part.name] * len(part)
        columns["text"] += list(part.content.get("raw_text", [None] * len(part)))
        labels += _labels(path, part, task)
    columns["label" if task == "single" else "targets"] = labels
    classes = options.labels
    if task == "single" and not classes and (header is None or header.task != task):
        classes = _order_of_classes(parts)
    found = interpret(path, columns, replace(options, task=task, labels=classes), header)
    for row in found.rows:
        video, mark, clip = row["id"].rpartition(CLIP)
        if mark:
            row["dialogue"] = video.split("/", 1)[-1]
            row["position"] = int(clip) if clip.isdecimal() and len(clip) < 9 else None
    return found


def _ids(parts: list[Part]) -> list[str]:
    """Ids as they are; when one is in two splits, all are prefixed with their split."""
    every: list[str] = []
    prefixed: list[str] = []
    for part in parts:
        split = SPLIT_NAMES[part.name.lower()]
        every += part.ids
        prefixed += [f"{split}/{i}" if i else "" for i in part.ids]
    return every if len(set(every)) == len(every) else prefixed


def _task(part: Part) -> str:
    """The task that the labels are of: regression or single."""
    if "regression_labels" in part.content:
        return "regression"
    labels = part.content.get("labels")
    by_numbers = isinstance(labels, np.ndarray) and labels.dtype.kind == "f"
    return "regression" if by_numbers and "annotations" not in part.content else "single"


def _label_key(path: Path, part: Part, task: str) -> str | None:
    """Name of the labels in this split; None when it has no utterances."""
    for key in LABEL_KEYS[task]:
        if part.content.get(key) is not None and len(part.content[key]):
            return key
    if len(part):
        raise DataError(
            f"{path}: {part.name} has no {LABEL_KEYS[task][0]}; a {task} task needs them"
        )
    return None


def _labels(path: Path, part: Part, task: str) -> list:
    found, count = _label_key(path, part, task), len(part)
    if found is None:
        return []
    values = part.content[found]
    if len(values) != count:
        raise DataError(
            f"{path}: {part.name}: {found} has {plural(len(values), 'value')} for "
            f"{plural(count, 'utterance')}"
        )
    if found == "labels" and isinstance(values, np.ndarray) and values.ndim > 1:
        values = _transformer_labels(path, part, values, task)
    return [value.item() if isinstance(value, np.generic) else value for value in values]


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


def _order_of_classes(parts: list[Part]) -> tuple[str, ...]:
    """Names of the classes in the order of their numbers, where annotations and numbers agree; else
    () for alphabetical.
    """
    number: dict[str, float] = {}
    for part in parts:
        names = part.content.get("annotations")
        values = part.content.get("classification_labels")
        if names is None or values is None or len(names) != len(values):
            return ()
        if not len(names):
            continue
        numbers = np.asarray(values)
        if numbers.dtype.kind not in NUMBERS:
            return ()
        first = numbers.reshape(len(names), -1)[:, 0].tolist()
        for given, value in zip(names, first, strict=True):
            name = name_cell(given)
            if name is not None and number.setdefault(name, value) != value:
                return ()
    return tuple(sorted(number, key=number.__getitem__))


# --- reading: what is said of the rest


def _aside(parts: list[Part], rest: Mapping[str, object], used: set[str], task: str) -> list[str]:
    """What of the file becomes nothing, by name and shape: of the whole file, and of each split,
    where a key is said once.
    """
    there = {name: described(value) for name, value in rest.items()}
    for part in parts:
        for key, value in part.content.items():
            if key not in used | NO_FEATURES and not key.endswith("_lengths"):
                there.setdefault(key, described(value))
    notes = []
    if BERT in there:
        notes.append(
            f"{BERT} {there.pop(BERT)} is left out: token ids, input of an encoder and not its "
            "features"
        )
    unused = {key: what for key, what in there.items() if UNIMODAL.fullmatch(key)}
    if unused:
        notes.append(f"labels of single modalities, not used: {aside_line(unused)}")
    others = {key: what for key, what in there.items() if key not in unused}
    if others:
        notes.append(f"not used: {aside_line(others)}")
    return notes


def _corpus(
    path: Path,
    parts: list[Part],
    header: Header | None,
    known: Published | None,
    notes: list[str],
    options: ImportOptions,
) -> tuple[str, str]:
    """(name of the corpus, language). The evaluation chooses its measures by the name, so a guess
    is said.
    """
    if header is not None:
        return options.dataset or header.dataset, options.language or header.language
    name = options.dataset or (known.corpus if known else "")
    if name:
        plain = re.sub(r"[^a-z0-9]|^ch-?", "", name.lower())
        return name, options.language or CORPORA.get(plain, "en")
    guess, why = _guess_corpus(path, parts)
    if guess:
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


def _guess_corpus(path: Path, parts: list[Part]) -> tuple[str, str]:
    """(corpus, what it was guessed from); ("", "") where nothing tells."""
    word = re.sub(r"[^a-z0-9]", "", path.stem.lower())
    for name in CORPORA:
        if name in word:
            return name, "the file's name"
    for part in parts:
        if any(map(UNIMODAL.fullmatch, part.content)):
            return "sims", "its labels of single modalities"
    return "", ""


# --- writing

WRITTEN_SPLITS = {"train": "train", "dev": "valid", "test": "test"}
# Bytes of padded arrays, held in memory; MELD at frame rate would be over 100 GB.
PADDED_BYTES = 16 << 30
SIGNS = ("Negative", "Neutral", "Positive")  # MMSA's classes of sentiment
POSITIVE = 0.5  # of a target that is 0 or 1


def write(copy: Copy, out: Path) -> bool:
    """Write a pickle as the MMSA tools read it: dict(train, valid, test), padded arrays, and true
    lengths for every modality.

    Args:
        copy: The rows of a store; every one must have a split.
        out: The file.

    Returns:
        Whether anything was written.

    Raises:
        DataError: A row has no split or several targets, the padded arrays would be too large, or
            something else is at `out`.
        StoreError: A shard is damaged.
    """
    store, rows = copy.store, copy.rows
    table, header = store.table(), copy.header()
    several = targets_of(header.task, header.labels) if header.task == "regression" else 1
    if several > 1:
        raise DataError(
            f"{store.path}: {several} targets per utterance ({shown(', '.join(header.labels), 80)})"
            ", and an MMSA pickle has one; export to single, npy or parquet"
        )
    parts = {}
    for split, name in WRITTEN_SPLITS.items():
        parts[name] = np.intersect1d(rows, in_split(table, split))
    without = len(rows) - sum(map(len, parts.values()))
    if without:
        raise DataError(
            f"{store.path}: {plural(without, 'utterance has', 'utterances have')} no split; an "
            "MMSA pickle has train, valid "
            "and test"
        )
    longest = _longest(copy, header, out)
    content: dict[str, object] = {}
    for name, part in parts.items():
        content[name] = _split_content(copy, part, table.take(part), header, longest)
    content[HEADER_KEY] = header.to_json()
    with new_file(out) as place, open(place.path, "wb") as file:
        pickle.dump(content, file, protocol=4)
    return place.written


def _longest(copy: Copy, header: Header, out: Path) -> dict[str, int]:
    """Modality -> steps that its arrays are padded to; DataError where they would be too large."""
    longest: dict[str, int] = {}
    size = 0
    for modality, info in header.modalities.items():
        steps = copy.store.lengths(modality)[copy.rows].max(initial=0)
        longest[modality] = max(1, int(steps))
        size += len(copy.rows) * longest[modality] * info.dim * np.dtype(np.float32).itemsize
    if size > PADDED_BYTES:
        raise DataError(
            f"{out}: padded to the longest utterance this is {size / 1e9:.0f} GB, too much for a "
            "pickle; use --subset or npy"
        )
    return longest


def _split_content(
    copy: Copy, part: np.ndarray, taken: pa.Table, header: Header, longest: Mapping[str, int]
) -> dict[str, object]:
    """The dict of one split, whose rows of the store are `part`."""
    texts = [text or "" for text in taken["text"].to_pylist()]
    entry: dict[str, object] = {
        "id": taken["id"].to_pylist(),
        "raw_text": np.array(texts, dtype=object),
    }
    for modality, info in header.modalities.items():
        lengths = copy.store.lengths(modality)[part]
        padded = np.zeros((len(part), longest[modality], info.dim), np.float32)
        for x, row, steps in zip(padded, part, lengths, strict=True):
            x[:steps] = copy.frames(modality, row)
        entry[modality] = padded
        entry[f"{modality}_lengths"] = lengths.tolist()
    entry |= unimodal.written(taken, header.task, header.labels)
    return entry | _written_labels(taken, header.task, header.labels)


def _written_labels(table: pa.Table, task: str, labels: Sequence[str]) -> dict[str, object]:
    """annotations, classification_labels, regression_labels as MMSA names them."""
    if task == "regression":
        return _written_regression(table["targets"].to_pylist())
    if task == "multi":
        return _written_multi(table["targets"].to_pylist(), labels)
    given = table["label"].to_pylist()
    number: dict[str | None, int] = {None: -1}
    number |= {name: i for i, name in enumerate(labels)}
    numbers = [number[name] for name in given]
    return {
        "classification_labels": np.array(numbers, np.int64),
        "annotations": [name or "" for name in given],
    }


def _written_regression(targets: list[list[float] | None]) -> dict[str, object]:
    values = np.array([np.nan if target is None else target[0] for target in targets], np.float32)
    unlabelled = np.isnan(values)
    signs = np.where(unlabelled, -1, np.sign(np.nan_to_num(values)) + 1).astype(np.int64)
    names = (*SIGNS, "")  # the last for -1
    return {
        "regression_labels": values,
        "classification_labels": signs,
        "annotations": [names[sign] for sign in signs.tolist()],
    }


def _written_multi(targets: list[list[float] | None], labels: Sequence[str]) -> dict[str, object]:
    nothing = [np.nan] * len(labels)
    given = [nothing if target is None else target for target in targets]
    values = np.array(given, np.float32).reshape(len(targets), len(labels))
    annotations = []
    for row in values.tolist():
        names = [name for name, value in zip(labels, row, strict=True) if value > POSITIVE]
        annotations.append(";".join(names))
    return {"classification_labels": values, "annotations": annotations}
