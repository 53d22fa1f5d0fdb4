"""MMSA feature pickles (github.com/thuiar/MMSA): aligned_50.pkl, unaligned_50.pkl and what MMSA-FET
writes.

dict(train, valid, test) of dict(id, raw_text, text, audio, vision, text_bert, *_lengths,
annotations, classification_labels, regression_labels). Arrays are padded to one length; true
lengths are `*_lengths`, else (aligned files) the BERT mask.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from mer.pipeline.errors import DataError
from mer.pipeline.interchange.columns import SPLIT_NAMES, find_features, interpret, plain
from mer.pipeline.interchange.pickles import load
from mer.pipeline.interchange.write import Foreign, Options, sha256
from mer.pipeline.store import Header

# The first eight digits of the sha256 that MMSA's README gives for its downloads.
PUBLISHED = {
    "d3994fd2": ("mosi", "MOSI aligned_50.pkl"), "78e0f8b5": ("mosi", "MOSI unaligned_50.pkl"),
    "45eccfb7": ("mosei", "MOSEI aligned_50.pkl"), "ad8b23d5": ("mosei", "MOSEI unaligned_50.pkl"),
}  # fmt: skip
LABELS = ("annotations", "classification_labels", "regression_labels")


def read(path: Path, options: Options) -> Foreign:
    """`options.task`: regression (the default where there are regression labels) or single (MMSA's
    classes).
    """
    content = load(path)
    try:
        return _read(path, content, options)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise DataError(
            f"{path}: not an MMSA pickle of a known form ({type(error).__name__}: {reason[:200]})"
        ) from None


def _read(path: Path, content, options: Options) -> Foreign:
    splits = (
        {name: part for name, part in content.items() if name != "mer"}
        if isinstance(content, dict)
        else {}
    )
    if not splits or not all(isinstance(part, dict) and "id" in part for part in splits.values()):
        raise DataError(
            f"{path}: not an MMSA pickle; expected dict(train, valid, test) of dict(id, text, "
            "audio, vision, …)"
        )
    header = Header.from_json(content["mer"]) if isinstance(content.get("mer"), str) else None
    unknown = [name for name in splits if str(name).lower() not in SPLIT_NAMES]
    if unknown:
        raise DataError(f"{path}: split '{unknown[0]}' is not one of train, valid, test")
    first = next(iter(splits.values()))
    wide = {
        k
        for k, v in first.items()
        if isinstance(v, np.ndarray) and v.dtype.kind in "fiu" and v.ndim > 1
    }
    arrays = sorted(wide - {*LABELS, "text_bert"})
    names = find_features(path, arrays, options, header)
    lengths = {
        (s, m): _lengths(path, s, part, m, key)
        for s, part in splits.items()
        for m, key in names.items()
    }
    notes = [
        f"lengths of {m}: {how}"
        for m in names
        for how in sorted({lengths[s, m][1] for s in splits})
    ]
    checksum = sha256(path)
    known = PUBLISHED.get(checksum[:8])
    notes.append(
        f"sha256 {checksum[:8]}…: "
        + (f"the published {known[1]}" if known else "none of the published MMSA files")
    )
    if any("text_bert" in part for part in splits.values()):
        notes.append(
            "text_bert (token ids) is left out: it is input of an encoder, not its features"
        )

    def frames() -> Iterator[dict[str, np.ndarray]]:
        for split, part in splits.items():
            for i in range(len(part["id"])):
                yield {
                    m: part[key][i, : lengths[split, m][0][i]]
                    if part[key].ndim == 3
                    else part[key][i]
                    for m, key in names.items()
                }

    task = options.task or (
        header.task if header else "regression" if "regression_labels" in first else "single"
    )
    classes: tuple[str, ...] = ()
    columns: dict[str, list] = {
        "id": _ids(path, splits),
        "split": [],
        "text": [],
        "targets": [],
        "label": [],
    }
    for split, part in splits.items():
        n = len(part["id"])
        columns["split"] += [str(split)] * n
        columns["text"] += list(part.get("raw_text", [""] * n))
        columns["targets" if task != "single" else "label"] += _labels(path, split, part, task, n)
    del columns["label" if task != "single" else "targets"]
    if task == "single" and not options.labels and not (header and header.task == task):
        classes = _order(splits)
    task, labels, rows = interpret(
        path, columns, replace(options, task=task, labels=options.labels or classes), header
    )
    for row in rows:
        # "03bSnISJMiM$_$1": the video, and the place in it
        video, mark, clip = row["id"].rpartition("$_$")
        if mark:
            row["dialogue"] = video.split("/", 1)[-1]
            row["position"] = int(clip) if clip.isdecimal() and len(clip) < 9 else None
    return Foreign(
        path=path,
        kind="mmsa",
        dataset=options.dataset or (header.dataset if header else known[0] if known else path.stem),
        task=task,
        labels=labels,
        language=options.language or (header.language if header else "en"),
        rows=rows,
        dims={m: first[key].shape[-1] for m, key in names.items()},
        frames=frames,
        header=header,
        notes=notes,
        source={"sha256": checksum, "published_as": known[1] if known else ""},
    )


def _ids(path: Path, splits: Mapping[str, dict]) -> list[str]:
    """Ids as they are; when one is in two splits, all are prefixed with their split."""
    ids = {name: [plain(i) for i in part["id"]] for name, part in splits.items()}
    every = [i for part in ids.values() for i in part]
    if len(set(every)) == len(every):
        return every
    return [f"{SPLIT_NAMES[name.lower()]}/{i}" for name, part in ids.items() for i in part]


def _lengths(path: Path, split: str, part: dict, modality: str, key: str) -> tuple[np.ndarray, str]:
    """((N,) true lengths, where they come from)."""
    x, n = part.get(key), len(part["id"])
    if not isinstance(x, np.ndarray) or x.ndim not in (2, 3) or len(x) != n:
        raise DataError(
            f"{path}: {split}: {key} should be an array (N={n}, T, D) or (N, D), is "
            f"{getattr(x, 'shape', type(x).__name__)}"
        )
    if x.ndim == 2:
        return np.ones(n, np.int64), "one vector an utterance"
    given, mask = part.get(f"{key}_lengths", part.get(f"{modality}_lengths")), part.get("text_bert")
    if given is not None:
        lengths, how = np.asarray(given, np.int64), f"{key}_lengths"
    elif (
        isinstance(mask, np.ndarray)
        and mask.ndim == 3
        and mask.shape[:2] == (n, 3)
        and mask.shape[2] == x.shape[1]
    ):
        lengths, how = mask[:, 1].sum(axis=1).astype(np.int64), "the BERT mask"
    else:
        # Steps after the last one that is not all zero. A step that is really zero at the end is
        # lost with them.
        some = (x != 0).any(axis=2)
        lengths, how = (
            np.where(some.any(axis=1), x.shape[1] - some[:, ::-1].argmax(axis=1), 0),
            "up to the last step that is not zero",
        )
    if lengths.shape != (n,) or (lengths < 0).any() or (lengths > x.shape[1]).any():
        raise DataError(f"{path}: {split}: lengths of {key} do not fit its shape {x.shape}")
    return lengths, how


def _labels(path: Path, split: str, part: dict, task: str, n: int) -> list:
    key = {"regression": ("regression_labels",), "multi": ("classification_labels",)}.get(
        task, ("annotations", "classification_labels")
    )
    found = next((k for k in key if part.get(k) is not None and len(part[k])), None)
    if found is None:
        if n == 0:
            return []
        raise DataError(f"{path}: {split} has no {key[0]}; a {task} task needs them")
    if len(part[found]) != n:
        raise DataError(
            f"{path}: {split}: {found} has {len(part[found])} values for {n} utterances"
        )
    values = part[found]
    if task == "single" and found == "annotations":
        return [plain(v) for v in values]
    return [v.item() if isinstance(v, np.generic) else v for v in values]


def _order(splits: Mapping[str, dict]) -> tuple[str, ...]:
    """Names of the classes in the order of their numbers, where annotations and numbers agree; else
    () for alphabetical.
    """
    number: dict[str, float] = {}
    for part in splits.values():
        names, values = part.get("annotations"), part.get("classification_labels")
        if names is None or values is None or len(names) != len(values):
            return ()
        for name, value in zip(
            names,
            np.asarray(values).reshape(len(names), -1)[:, 0].tolist() if len(names) else [],
            strict=True,
        ):
            if plain(name) and number.setdefault(plain(name), value) != value:
                return ()
    return tuple(sorted(number, key=number.__getitem__))
