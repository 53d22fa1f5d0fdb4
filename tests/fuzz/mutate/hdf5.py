"""HDF5 through h5py: attributes, types, shapes, links, virtual and external storage; and a store
whose checksums are made right again afterwards.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np

from mer.pipeline.store import arrays

from tests.fuzz.mutate import raw, texts

LARGE = 1 << 20  # elements; what claims more is not read by the mutator
CANARY = "../../canary/kept.h5"  # somebody else's file, seen from the folder of a shard


def datasets(file: h5py.Group) -> list[str]:
    names: list[str] = []

    def take(name: str, item: h5py.Group | h5py.Dataset) -> None:
        if isinstance(item, h5py.Dataset):
            names.append(name)

    file.visititems(take)  # does not follow links to other files
    return names


def plain(dataset: h5py.Dataset) -> bool:
    """Whether it can be read by the mutator itself: a virtual one of itself ends the process."""
    if dataset.is_virtual or dataset.external is not None or dataset.size is None:
        return False
    return dataset.size < LARGE


def mutate(path: Path, rng: np.random.Generator) -> None:
    """One or two changes of what the file says; HDF5's own checksums stay right."""
    with h5py.File(path, "r+", libver="v108", locking=False) as file:
        for _ in range(rng.integers(1, 3)):
            names = datasets(file)
            if not names:
                return
            try:
                raw.choice(rng, CHANGES)(file, raw.choice(rng, names), rng)
            except (OSError, KeyError, ValueError, TypeError, RuntimeError):
                continue  # a change that HDF5 itself does not make


def attribute(file: h5py.File, name: str, rng: np.random.Generator) -> None:
    groups = [g for g in ("/", "data") if g in file and file[g].attrs]
    attrs = file[raw.choice(rng, groups)].attrs
    key = raw.choice(rng, sorted(attrs))
    if not rng.integers(4):
        del attrs[key]
        return
    odd = [
        0, -1, 2, 2**63 - 1, 1.5, np.nan, True, "other", "", "x" * 60_000, np.bytes_(b"\xff\xfe"),
        np.zeros(3), np.zeros((2, 2), "S3"), h5py.Empty("f4"), np.zeros(0), file.ref,
        np.void(b"abc"), np.array(["a", "b"], h5py.string_dtype()), np.array(b"mer", "S64"),
    ]  # fmt: skip
    attrs[key] = raw.choice(rng, odd)


def retyped(file: h5py.File, name: str, rng: np.random.Generator) -> None:
    """The same name with another element type, shape or layout."""
    data = file[name][()] if plain(file[name]) else np.zeros(4, np.float32)
    shape, dtype = file[name].shape, file[name].dtype
    del file[name]
    match rng.integers(12):
        case 0:
            file.create_dataset(name, data=np.asarray(data).astype(">f8", casting="unsafe"))
        case 1:
            file.create_dataset(name, data=np.asarray(data).reshape(-1)[:1].reshape(()))
        case 2:
            file.create_dataset(name, data=np.asarray(data)[None])
        case 3 if data.size:
            file.create_dataset(name, data=data, chunks=True, compression="gzip", shuffle=True)
        case 4:
            file.create_dataset(name, data=["a", "b"], dtype=h5py.string_dtype())
        case 5:
            file.create_dataset(name, data=np.zeros(3, [("a", "f4"), ("b", "S3")]))
        case 6:
            file.create_dataset(name, data=h5py.Empty(dtype))
        case 7:
            file.create_dataset(name, shape=(1 << 40,), dtype=dtype, chunks=(1 << 16,))
        case 8:
            file.create_dataset(name, shape=(1 << 33, *shape[1:]), dtype=dtype)
        case 9:
            file.create_dataset(name, shape=shape, dtype=dtype)  # never written: zeros
        case 10:
            file.create_dataset(name, data=np.zeros(3, h5py.ref_dtype))
        case _:
            flat = np.asarray(data).reshape(-1)
            file.create_dataset(name, data=np.concatenate([flat, flat]))


def elsewhere(file: h5py.File, name: str, rng: np.random.Generator) -> None:
    """Storage that is not in this file, or is this dataset itself."""
    shape, dtype = file[name].shape, file[name].dtype
    del file[name]
    match rng.integers(6):
        case 0:
            layout = h5py.VirtualLayout(shape or (4,), dtype)
            layout[...] = h5py.VirtualSource(".", name, shape or (4,), dtype)
            file.create_virtual_dataset(name, layout)
        case 1:
            layout = h5py.VirtualLayout(shape or (4,), dtype)
            layout[...] = h5py.VirtualSource(CANARY, "x", shape or (4,), dtype)
            file.create_virtual_dataset(name, layout)
        case 2:
            where = raw.choice(rng, [CANARY, "/dev/zero", "/proc/self/mem", "gone.bin"])
            size = max(1, int(np.prod(shape)) * dtype.itemsize)
            file.create_dataset(name, shape or (1,), dtype, external=[(where, 0, size)])
        case 3:
            file[name] = h5py.ExternalLink(raw.choice(rng, [CANARY, file.filename]), name)
        case 4:
            file[name] = h5py.SoftLink(raw.choice(rng, [name, "/", "/gone", "/header"]))
        case 5:
            file[name] = h5py.ExternalLink("pipe", "x")


def relinked(file: h5py.File, name: str, rng: np.random.Generator) -> None:
    group = name.rpartition("/")[0] or "/"
    match rng.integers(7):
        case 0:
            del file[name]
        case 1:
            del file[name]
            file.create_group(name)
        case 2:
            file[group][f"again-{rng.integers(9)}"] = file[group]  # a circle
        case 3:
            other = raw.choice(rng, datasets(file))
            if other != name:
                del file[name]
                file[name] = file[other]
        case 4:
            file.move(name, f"{name}-elsewhere")
        case 5:
            del file[name]
            file[name] = np.dtype("f4")  # a named type
        case 6 if group != "/":
            del file[group]


def values(file: h5py.File, name: str, rng: np.random.Generator) -> None:
    """Other numbers of the same type and shape."""
    dataset = file[name]
    if not plain(dataset) or not dataset.size or dataset.dtype.kind not in "iufS":
        return
    x = dataset[()]
    flat = x.reshape(-1)
    at = rng.integers(flat.size, size=int(rng.integers(1, 4)))
    if x.dtype.kind == "S":
        flat[at] = rng.bytes(8)
    elif x.dtype.kind == "f":
        flat[at] = raw.choice(rng, [np.nan, np.inf, -1, 6e4, 0])
    else:
        info = np.iinfo(x.dtype)
        flat[at] = raw.choice(rng, [info.min, info.max, 0, 1, 2, 100])
    if not rng.integers(4):
        rng.shuffle(flat)
    dataset[...] = x


def blob(file: h5py.File, name: str, rng: np.random.Generator) -> None:
    """The JSON of a head (`header`, `members/modalities`) or of a shard (`meta`)."""
    known = ("header", "meta", "data/meta", "members/modalities")
    found = [name for name in known if isinstance(file.get(name), h5py.Dataset)]
    rng.shuffle(found)
    if not found or file[found[0]].dtype != np.uint8 or not plain(file[found[0]]):
        return
    made = texts.json_bytes(file[found[0]][()].tobytes(), rng)
    del file[found[0]]
    file.create_dataset(found[0], data=np.frombuffer(made, np.uint8))


CHANGES: list[Callable] = [attribute, retyped, elsewhere, relinked, values, values, blob]


# ---- Checksums made right again


def _own(file: h5py.Group, names: tuple[str, ...], leave: tuple[str, ...]) -> str:
    """The identity that belongs to what a head or a shard says now."""
    attrs = {n: arrays.attribute(file, n) for n in names}
    held = {}
    for name in datasets(file):
        if name.startswith(leave) or name.endswith(("/pooled", "/layers")):
            continue
        dataset = file[name]
        if not plain(dataset):
            continue
        if name.endswith("/x") and dataset.ndim > 1:
            continue
        held[name] = dataset[()]
    return arrays.digest(attrs, held)


def reseal(head: Path, shards: list[Path]) -> None:
    """Give shards and head the checksums of what they hold now; what cannot be read is left."""
    for number, path in enumerate(shards):
        try:
            with h5py.File(path, "r+", locking=False) as file:
                own = _own(file, ("format", "version", "key"), ())
                file.attrs["identity"] = np.bytes_(own)
            with h5py.File(head, "r+", locking=False) as file:
                file["shard/identity"][number] = own.encode()
                file["shard/bytes"][number] = path.stat().st_size
                file["shard/sha256"][number] = (
                    hashlib.sha256(path.read_bytes()).hexdigest().encode()
                )
        except (OSError, KeyError, ValueError, TypeError, RuntimeError, AttributeError):
            continue
    try:
        with h5py.File(head, "r+", locking=False) as file:
            own = _own(file, ("format", "version"), ("shards/", "stores/", "data/"))
            file.attrs["identity"] = np.bytes_(own)
    except (OSError, KeyError, ValueError, TypeError, RuntimeError, AttributeError):
        return
