"""Heads, shards and parts that were changed with care: their checksums over themselves fit again,
so that only what they say is wrong.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np

from mer.pipeline.store import arrays as files

BULK = ("/x", "/pooled", "/layers")  # of a modality: not in the checksum of a shard


def load(path: Path) -> tuple[dict[str, str | int], dict[str, np.ndarray]]:
    """Attributes and arrays of a head or shard."""
    found: dict[str, np.ndarray] = {}

    def take(name: str, what: h5py.Group | h5py.Dataset) -> None:
        if isinstance(what, h5py.Dataset):
            found[name] = what[()]

    with h5py.File(path, "r") as file:
        attrs = {name: files.attribute(file, name) for name in file.attrs}
        file.visititems(take)  # does not follow external links
    return attrs, found


def save(path: Path, attrs: dict[str, str | int], data: dict[str, np.ndarray]) -> None:
    """Write them with the checksum that fits."""
    shard = attrs["format"] == "mer-shard"
    modalities = (
        {name.removesuffix("/x") for name in data if name.endswith("/x") and name != "ids/x"}
        if shard
        else set()
    )
    bulk = {m + end for m in modalities for end in BULK}
    sealed = {name: value for name, value in attrs.items() if name != "identity"}
    identity = files.digest(
        sealed, {name: array for name, array in data.items() if name not in bulk}
    )
    files.write(path, attrs={"/": {**sealed, "identity": identity}}, arrays=data)


def change(path: Path, name: str, how: Callable[[np.ndarray], np.ndarray]) -> None:
    """One array of a head or shard through `how`."""
    attrs, data = load(path)
    data[name] = np.ascontiguousarray(how(data[name]))
    save(path, attrs, data)


def described(path: Path) -> dict:
    """The JSON of a head (`header`) or shard (`meta`)."""
    _, data = load(path)
    return json.loads(data["header" if "header" in data else "meta"].tobytes())


def describe_as(path: Path, said: object) -> None:
    """A head or shard that says something else of itself; `said` may also be raw bytes."""
    raw = said if isinstance(said, bytes) else json.dumps(said).encode()
    attrs, data = load(path)
    data["header" if "header" in data else "meta"] = np.frombuffer(raw, np.uint8)
    save(path, attrs, data)


def seal_head_over(head: Path, shards: list[Path]) -> None:
    """Make a head believe in shards that have been changed: their size, sha256 and identity as they
    are now.
    """
    import hashlib

    attrs, data = load(head)
    data["shard/bytes"] = np.array([path.stat().st_size for path in shards], "<i8")
    data["shard/sha256"] = np.array(
        [hashlib.sha256(path.read_bytes()).hexdigest() for path in shards], "S64"
    )
    data["shard/identity"] = np.array([load(path)[0]["identity"] for path in shards], "S64")
    save(head, attrs, data)
