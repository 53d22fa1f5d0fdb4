"""Writing a store's head file over its closed shards: the last step of making a store."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from mer.pipeline.errors import DataError
from mer.pipeline.runtime.files import sha256_file
from mer.pipeline.runtime.terminal import plural
from mer.pipeline.runtime.terms import check_labelling, check_task
from mer.pipeline.runtime.unimodal import check_unimodal
from mer.pipeline.store import arrays
from mer.pipeline.store.head import ShardRecord, compose
from mer.pipeline.store.reader import FeatureStore
from mer.pipeline.store.schema import LAYERS, Header, ModalityInfo, normalise
from mer.pipeline.store.shard import Shard


def build_index(
    head_path: str | os.PathLike,
    shards: Sequence[str | os.PathLike],
    table: pa.Table | Sequence[Mapping],
    *,
    dataset: str,
    task: str,
    labels: Sequence[str],
    modalities: Mapping[str, ModalityInfo | dict] | None = None,
    language: str = "en",
    fingerprint: str = "",
    recipe: dict | None = None,
    provenance: dict | None = None,
) -> FeatureStore:
    """Write the head file over closed shards and open the store.

    Args:
        head_path: where the head file is to appear; it is written last, and names the shards by
            paths relative to its folder.
        shards: closed shards, in the order of their numbers.
        table: a row for each utterance, with its id (which is in one of the shards) and,
            optionally, the columns of schema.COLUMNS. Its order is the store's order; utterances of
            the shards that it leaves out cannot be reached.
        dataset: name of the corpus.
        task: single, multi or regression.
        labels: names of the classes in the order of their numbers, or of the targets.
        modalities: what the shards do not know of a modality: encoder, revision, layer, frame rate.
        language: code of the language spoken.
        fingerprint: key of the recipe and the content; empty for features made elsewhere.
        recipe: how the features were computed.
        provenance: what may differ from run to run.

    Returns:
        The opened store.

    Raises:
        DataError: an id is in no shard or in two, a split, label or target does not fit the task,
            or the shards hold different modalities.
        OSError: the disk is full, the folder cannot be written, …
    """
    head_path = Path(head_path)
    rows = normalise(table)
    _check_rows(head_path, rows, task, tuple(labels))
    opened = [Shard(path) for path in shards]
    shard_of, row_of = _locate(head_path, rows["id"].to_pylist(), opened)
    header = Header(
        dataset=dataset,
        task=task,
        labels=tuple(labels),
        language=language,
        modalities=_modalities(head_path, opened, modalities or {}),
        fingerprint=fingerprint,
        recipe=recipe or {},
        provenance=provenance or {},
    )
    columns = {
        "shard": shard_of,
        "shard_row": row_of,
    }
    durations = [shard.duration for shard in opened]
    columns["duration"] = _gather(durations, shard_of, row_of, "<f8")
    flags = [shard.flags for shard in opened]
    columns["flags"] = _gather(flags, shard_of, row_of, "<u4")
    for name in header.modalities:
        steps = [np.diff(shard.offsets[name]) for shard in opened]
        columns[f"n_{name}"] = _gather(steps, shard_of, row_of, "<i8")
    folder = head_path.resolve().parent
    names = [Path(os.path.relpath(shard.path.resolve(), folder)).as_posix() for shard in opened]
    records = [
        ShardRecord(shard.path, shard.bytes, sha256_file(shard.path), shard.identity)
        for shard in opened
    ]
    attrs, data = compose(header, rows, columns, names, records)
    # The links are for other tools (h5py and h5dump then see one tree); the reader goes by the
    # names.
    links = {f"shards/{number:05d}": name for number, name in enumerate(names)}
    arrays.write(head_path, attrs={"/": attrs}, arrays=data, links=links)
    return FeatureStore(head_path)


def _check_rows(head: Path, rows: pa.Table, task: str, labels: tuple[str, ...]) -> None:
    """Raise DataError unless every row fits the task."""
    check_task(str(head), task)
    columns = (rows[name].to_pylist() for name in ("id", "split", "label", "targets"))
    for id, split, label, targets in zip(*columns, strict=True):
        check_labelling(str(head), id, split, label, targets, task=task, labels=labels)
    if "unimodal" in rows.column_names:
        for id, entries in zip(rows["id"].to_pylist(), rows["unimodal"].to_pylist(), strict=True):
            check_unimodal(str(head), id, entries, task=task, labels=labels)


def _locate(head: Path, ids: list[str], shards: list[Shard]) -> tuple[np.ndarray, np.ndarray]:
    """For every id of the table: number of its shard (N,) int32, its row there (N,) int64."""
    where: dict[str, tuple[int, int]] = {}
    for number, shard in enumerate(shards):
        for row, id in enumerate(shard.ids):
            if id in where:
                raise DataError(
                    f"{head}: id '{id}' is in two shards, {shards[where[id][0]].path.name} and "
                    f"{shard.path.name}"
                )
            where[id] = number, row
    if len(set(ids)) != len(ids):
        twice = next(id for id, count in Counter(ids).items() if count > 1)
        raise DataError(f"{head}: id '{twice}' twice in the table; ids must be unique")
    missing = [id for id in ids if id not in where]
    if missing:
        count = f"{len(missing):,} of {plural(len(ids), 'utterance is', 'utterances are')}"
        raise DataError(f"{head}: {count} in no shard, first '{missing[0]}'")
    places = np.array([where[id] for id in ids], "<i8").reshape(-1, 2)
    return places[:, 0].astype("<i4"), np.ascontiguousarray(places[:, 1])


def _modalities(
    head: Path, shards: list[Shard], given: Mapping[str, ModalityInfo | dict]
) -> dict[str, ModalityInfo]:
    """An entry for each modality of the shards, in their order, completed by what the caller
    knows.
    """
    if not shards:
        raise DataError(f"{head}: a store needs at least one shard")
    first, shapes = _dims(shards[0]), _shapes(shards[0])
    for shard in shards:
        if _shapes(shard) != shapes:
            raise DataError(
                f"{head}: {shard.path.name} holds other modalities than {shards[0].path.name}"
            )
    if given.keys() - first.keys():
        raise DataError(
            f"{head}: modality '{sorted(given.keys() - first.keys())[0]}' is in no shard; they "
            f"hold {', '.join(first)}"
        )
    out = {}
    for name, dim in first.items():
        info = given.get(name, {})
        info = info if isinstance(info, ModalityInfo) else ModalityInfo(**{"dim": dim, **info})
        if info.dim != dim:
            raise DataError(
                f"{head}: modality {name} is said to have dim {info.dim}, its shards have {dim}"
            )
        kinds = [shard.modalities[name] for shard in shards]
        wide = any(kind["dtype"] == "float32" for kind in kinds)
        overflow = sum(kind["overflow"] for kind in kinds)
        extra = {**info.extra, "overflow": overflow} if overflow else info.extra
        info = replace(info, dtype="float32" if wide else "float16", extra=extra)
        out[name] = _with_layers(head, name, info, [kind.get(LAYERS) for kind in kinds])
    return out


def _with_layers(
    head: Path, name: str, info: ModalityInfo, kinds: list[dict | None]
) -> ModalityInfo:
    """`info` with what the shards hold of layer means, `kinds`, which are alike in their count."""
    held = [kind for kind in kinds if kind is not None]
    count = held[0]["count"] if held else 0
    if info.layers not in (0, count):
        raise DataError(
            f"{head}: modality {name} is said to have {info.layers} layer means, its shards have "
            f"{count}"
        )
    if info.dim % max(1, len(info.stack)):
        raise DataError(
            f"{head}: modality {name} has dim {info.dim}, no multiple of the "
            f"{plural(len(info.stack), 'layer')} of its stack"
        )
    odd = [kind["width"] for kind in held if kind["width"] not in (0, info.width)]
    if odd:
        raise DataError(
            f"{head}: the layer means of {name} have {odd[0]} numbers per layer, its frames "
            f"{info.width}"
        )
    wide = any(kind["dtype"] == "float32" for kind in held)
    return replace(info, layers=count, layer_dtype="float32" if wide else "float16")


def _shapes(shard: Shard) -> dict[str, tuple[int, int]]:
    """Numbers per step of each modality of a shard, and how many layer means it has."""
    return {
        name: (kind["dim"], kind.get(LAYERS, {}).get("count", 0))
        for name, kind in shard.modalities.items()
    }


def _dims(shard: Shard) -> dict[str, int]:
    """Numbers per step of each modality of a shard."""
    return {name: kind["dim"] for name, kind in shard.modalities.items()}


def _gather(
    columns: list[np.ndarray], shard_of: np.ndarray, row_of: np.ndarray, dtype: str
) -> np.ndarray:
    """A column of the table, (N,), from those of the shards."""
    out = np.empty(len(shard_of), dtype)
    for number, column in enumerate(columns):
        here = shard_of == number
        out[here] = column[row_of[here]]
    return out
