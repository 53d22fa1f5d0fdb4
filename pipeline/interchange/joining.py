"""`mer join`: which stores, under which names, and whether their features are copied."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from mer.pipeline.errors import DataError
from mer.pipeline.interchange.foreign import Features, Foreign, ImportOptions, layers_of
from mer.pipeline.interchange.importing import write_store
from mer.pipeline.runtime.terminal import shown
from mer.pipeline.store import FeatureStore, shards_of
from mer.pipeline.store.head import Head
from mer.pipeline.store.join import plan, write


def join(
    stores: Sequence[FeatureStore | Path],
    out: Path,
    *,
    renamed: Mapping[str, str] | None = None,
    require_all: bool = False,
    keep_first: Sequence[str] = (),
    copy: bool = False,
    force: bool = False,
    lock: bool = True,
) -> tuple[FeatureStore, list[str], bool]:
    """Put the modalities of several stores of the same utterances under one head.

    Args:
        stores: Two or more, or their head files.
        out: The head file to write.
        renamed: For "STORE:MODALITY" its name in the joined store; "" leaves it out. STORE is one
            of their paths, or its name without folders where no other has that name.
        require_all: Refuse an utterance that one of the stores does not have.
        keep_first: Columns in which the first store that knows one is believed.
        copy: Copy the features into shards of the new store, instead of reading them from the
            others.
        force: Replace what is at `out`.
        lock: Hold the folder of copied shards; False on a file system without locks.

    Returns:
        The store, lines for the user, and whether anything was written: False where this very store
        is at `out`.

    Raises:
        DataError: The stores contradict each other, or something else is at `out`.
        StoreError: A store is damaged.
        OSError: Names the file that could not be written.
    """
    if len(stores) < 2:
        raise DataError("mer join needs two stores or more, and --out")
    opened = [one if isinstance(one, FeatureStore) else FeatureStore(one) for one in stores]
    paths = [store.path for store in opened]
    places = [path.resolve() for path in paths]
    for number, place in enumerate(places):
        if place in places[:number]:
            raise DataError(f"{paths[number]}: named twice")
    members = {record.path.resolve() for store in opened for record in store.members}
    if out.resolve() in {*places, *members}:
        raise DataError(f"{out}: is one of the stores to join; name another --out")
    found = plan(
        opened,
        _by_number(paths, renamed or {}),
        require_all=require_all,
        keep_first=keep_first,
    )
    folder = shards_of(out)
    if copy:
        _check_folder(folder, FeatureStore(out, head=found.head))
        store, report = write_store(
            _copied(out, found.head), out, ImportOptions(), force=force, lock=lock
        )
        return store, [*found.notes, *report.notes], report.written
    if os.path.lexists(folder):
        raise DataError(
            f"{folder}: is the folder of another store's shards, or of one that is being made; "
            "name another --out"
        )
    written = write(found.head, out, force=force)
    return FeatureStore(out), found.notes, written


def _check_folder(folder: Path, store: FeatureStore) -> None:
    """Raise DataError for a folder, to be written to, in which shards of a member lie: a head file
    may have been renamed, its shards not.
    """
    for number in range(len(store.members)):
        member = store.member(number)
        if folder.resolve() in {record.path.resolve().parent for record in member.shards}:
            raise DataError(
                f"{folder}: holds the shards of {member.path}, which is to be joined; name another "
                "--out"
            )


def _by_number(paths: Sequence[Path], renamed: Mapping[str, str]) -> dict[tuple[int, str], str]:
    """`renamed` by the number of the store instead of its path."""
    out = {}
    for spelled, name in renamed.items():
        store, colon, modality = spelled.rpartition(":")
        exact = [n for n, path in enumerate(paths) if path == Path(store)]
        numbers = exact or [n for n, path in enumerate(paths) if path.name == store]
        if not colon or len(numbers) != 1:
            raise DataError(
                f"--as {shown(spelled)}={shown(name, 40)}: expected STORE:MODALITY=NAME, with a "
                "store as it is given to mer join"
            )
        out[numbers[0], modality] = name
    return out


def _copied(out: Path, head: Head) -> Foreign:
    """A joined store, not yet written, as what an import takes."""
    store = FeatureStore(out, head=head)
    header = head.header
    rows = head.table.drop_columns([f"n_{name}" for name in header.modalities]).to_pylist()

    def frames() -> Iterator[Features]:
        for row in range(len(store)):
            features = {}
            for name, info in header.modalities.items():
                features[name] = store.features(name, row, "stored", check=True)
                if info.layers and len(features[name]):
                    features[layers_of(name)] = store.layer_means(name, [row])[0]
            yield features

    return Foreign(
        path=out,
        kind="join",
        dataset=header.dataset,
        task=header.task,
        labels=header.labels,
        language=header.language,
        rows=rows,
        dims={name: info.dim for name, info in header.modalities.items()},
        layers={name: info.layers for name, info in header.modalities.items() if info.layers},
        frames=frames,
        header=header,
        source=header.provenance,
        flags=head.flags.tolist(),
    )
