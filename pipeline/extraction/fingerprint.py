"""The two keys of a store, without loading torch.

The *recipe* says how features are computed: encoders by the hash of their files, layer, pooling,
channel, cutting, dtype, precision, version of the extractor. The *content* says of what: for each
utterance the sha256 of its audio file, its span and its transcript. The fingerprint is both. Labels
and splits are in neither: changing them never computes a feature again.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mer.pipeline.encoders.geometry import Geometry, parse_layer
from mer.pipeline.encoders.loading import Checkpoint, resolve, sha256_file
from mer.pipeline.errors import DataError
from mer.pipeline.manifest import Manifest, Utterance
from mer.pipeline.media import containers
from mer.pipeline.media.containers import DECODER
from mer.pipeline.media.workers import Decoders, Job, identity
from mer.pipeline.store.arrays import sweep, temporary_for

EXTRACTOR = 1  # raise it when the same recipe would give other features
# a file changed this shortly before it was hashed may change again within a tick of the clock: not
# remembered
SETTLED_NS = 2_000_000_000


@dataclass(frozen=True)
class ExtractOptions:
    """What `mer extract` can be asked for.

    The first block is the recipe, the rest never changes a feature beyond rounding.
    """

    # hub id[@revision], directory or built-in; "" or "none": no audio features
    audio_encoder: str = ""
    text_encoder: str = ""
    audio_layer: str = "last"  # last | N | mean:A-B
    pool: int = 1  # mean over this many frames
    channel: str = "auto"  # auto | centre | mix | a number from 0
    audio_track: str = "auto"  # auto: the default one, else the first | a number from 0
    max_seconds: float = 60.0  # longer clips are cut into overlapping pieces; 0: never
    dtype: str = "float16"  # as stored
    precision: str = "auto"  # as computed: auto | fp32 | bf16 | fp16

    device: str = "auto"
    # padded seconds a batch; "auto": found by trying; None: the device's fixed figure
    budget_seconds: float | str | None = None
    budget_tokens: int | str | None = None  # padded tokens a batch, likewise
    max_failures: int = 0
    offline: bool = False
    force: bool = False  # replace a store made by another recipe
    # batches computed side by side on a CPU, one core each; 0: as many as there are cores
    threads: int = 0
    # processes that decode ahead; -1: chosen by the number of cores; 0: decode in this process,
    # without a time-out
    decoders: int = -1
    decode_timeout: float = 120.0  # seconds after which a decoder counts as hanging
    shard_bytes: int = 96 << 20
    # audio whose features are published at a time: what a kill can cost
    part_seconds: float = 600.0
    part_tokens: int = 50_000
    window: int = 65_536  # utterances that are sorted together

    def __post_init__(self):
        if self.dtype not in ("float16", "float32"):
            raise DataError(f"--dtype '{self.dtype}' is not float16 or float32")
        if self.precision not in ("auto", "fp32", "bf16", "fp16"):
            raise DataError(f"--precision '{self.precision}' is not one of auto, fp32, bf16, fp16")
        if self.channel not in ("auto", "centre", "mix") and not self.channel.isdecimal():
            raise DataError(
                f"--channel '{self.channel}' is not auto, centre, mix or a number from 0"
            )
        if self.audio_track != "auto" and not (
            self.audio_track.isascii() and self.audio_track.isdecimal()
        ):
            raise DataError(
                f"--audio-track '{self.audio_track:.200}' is not auto or a number from 0"
            )
        for name, value, least in (
            ("pool", self.pool, 1),
            ("max-seconds", self.max_seconds, 0),
            ("max-failures", self.max_failures, 0),
        ):
            if value < least:
                raise DataError(f"--{name} {value} is below {least}")
        for name, value in (
            ("budget-seconds", self.budget_seconds),
            ("budget-tokens", self.budget_tokens),
        ):
            if value not in (None, "auto") and (isinstance(value, str) or not value > 0):
                raise DataError(f"--{name} {value} is neither auto nor a number above 0")


UNREADABLE = {
    "!missing": "no such file",
    "!unreadable": "cannot be read",
    "!encoding": "its name cannot be expressed in this locale; set PYTHONUTF8=1, or LC_ALL=C.UTF-8",
}


class FileMemory:
    """Remembers file hashes by (inode, size, mtime_ns), and of hashed content how many samples a
    span decodes to, in a Parquet file.

    Losing the file costs time only. `path` None: remember for this process.
    """

    SCHEMA = pa.schema(
        [
            ("path", pa.string()),
            ("inode", pa.int64()),
            ("size", pa.int64()),
            ("mtime_ns", pa.int64()),
            ("sha256", pa.string()),
            ("span", pa.string()),
            ("samples", pa.int64()),
            ("stage", pa.string()),
            ("reason", pa.string()),
            ("decoder", pa.string()),
        ]
    )

    def __init__(self, path: Path | None = None):
        self.path = path
        self.files: dict[str, tuple[int, int, int, str]] = {}
        # (sha256, span) → samples, stage, reason
        self.spans: dict[tuple[str, str], tuple[int, str | None, str | None]] = {}
        self.seen: dict[str, tuple[int, int, int]] = {}  # what each file looked like in this run
        # sha256 → why this version decodes the file otherwise than the first; "": it does not
        self.kinds: dict[str, str] = {}
        self.changed = False
        if path is not None and path.is_file():
            self._read(path)

    def _read(self, path: Path) -> None:
        try:
            with path.open("rb") as file:
                metadata = pq.read_schema(file).metadata or {}
                file.seek(0)
                table = pq.read_table(file, schema=self.SCHEMA, page_checksum_verification=True)
        except (pa.ArrowException, OSError, ValueError):
            return  # damaged or of another version: start afresh
        if metadata.get(b"mer", str(EXTRACTOR).encode()) != str(EXTRACTOR).encode():
            return
        columns = [column.to_pylist() for column in table.columns]
        ours = metadata.get(b"decoder") == str(DECODER).encode()
        for name, inode, size, mtime, digest, span, samples, stage, reason, decoder in zip(
            *columns, strict=True
        ):
            if name is not None:
                self.files[name] = inode, size, mtime, digest
            # what another version could not read this one tries
            if span is not None and (ours or stage is None):
                self.spans[digest, span] = samples, stage, reason
            if decoder is not None and ours:
                self.kinds[digest] = decoder

    def save(self) -> None:
        """Write what was learnt, atomically; a folder that cannot be written is no error."""
        if self.path is None:
            return
        with contextlib.suppress(OSError):
            sweep(self.path.parent, self.path.name)  # of a run that was killed while it wrote
        if not self.changed:
            return
        rows = [(name, *entry, None, None, None, None, None) for name, entry in self.files.items()]
        rows += [
            (None, None, None, None, digest, span, *entry, None)
            for (digest, span), entry in self.spans.items()
        ]
        rows += [
            (None, None, None, None, digest, None, None, None, None, why)
            for digest, why in self.kinds.items()
        ]
        columns = list(zip(*rows, strict=True)) or [[] for _ in self.SCHEMA]
        table = pa.Table.from_arrays(
            [pa.array(c, f.type) for c, f in zip(columns, self.SCHEMA, strict=True)],
            schema=self.SCHEMA,
        )
        temporary = None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            temporary = temporary_for(self.path)
            with temporary.open("wb") as file:
                marked = table.replace_schema_metadata(
                    {"mer": str(EXTRACTOR), "decoder": str(DECODER)}
                )
                pq.write_table(marked, file, compression="zstd", write_page_checksum=True)
            os.replace(temporary, self.path)
        except PermissionError:
            return
        except OSError as error:
            if error.errno != errno.EROFS:
                raise
        finally:
            with contextlib.suppress(OSError):
                if temporary is not None:
                    temporary.unlink()
        self.changed = False

    def known(self, path: Path) -> str | None:
        """The remembered hash, if the file looks unchanged.

        Raises OSError when it cannot be looked at.
        """
        self.seen[str(path)] = now = identity(path)
        entry = self.files.get(spelled(path))
        return entry[3] if entry and entry[:3] == now else None

    def sha256(self, path: Path) -> str:
        """The file's hash, from memory if it looks unchanged. Raises OSError."""
        digest = self.known(path)
        if digest is None:
            self.seen[str(path)] = before = identity(path)
            digest = sha256_file(path)
            if before[2] < time.time_ns() - SETTLED_NS:
                self.files[spelled(path)] = *before, digest
                self.changed = True
        return digest

    def remember(
        self,
        digest: str,
        span: str,
        samples: int,
        stage: str | None = None,
        reason: str | None = None,
    ) -> None:
        self.spans[digest, span] = samples, stage, reason and spelled(reason)
        self.changed = True


def spelled(text: str | Path) -> str:
    r"""`text` with bytes of a file name that are no UTF-8 as \udcXX, which Parquet can hold."""
    return str(text).encode("utf-8", "backslashreplace").decode()


@dataclass(frozen=True)
class Keys:
    """`contents[i]` is the key of row i's content; `digests[i]` its audio file's sha256 ("" without
    audio, "!stage" if unreadable), with the decoder's version where an earlier one decoded the file
    otherwise. `older`: for such rows the key that they had, and the reason."""

    recipe: dict
    contents: tuple[str, ...]
    digests: tuple[str, ...]
    fingerprint: str
    checkpoints: dict[str, Checkpoint]
    older: dict[int, tuple[str, str]] = field(default_factory=dict)


def keys(
    manifest: Manifest,
    options: ExtractOptions,
    memory: FileMemory,
    *,
    cold: Callable[[int, int], None] = lambda files, size: None,
) -> Keys:
    """Recipe, content and fingerprint of what `extract` would make.

    `cold` is told the files and bytes that have to be read. Raises EncoderError and DataError.
    """
    checkpoints = find_encoders(manifest, options, memory)
    recipe = make_recipe(options, checkpoints)
    digests, older = [""] * len(manifest), {}
    texts = [u.text if "text" in checkpoints else None for u in manifest.rows]
    if "audio" in checkpoints:
        digests = _digests(manifest, memory, cold)
        reasons = _decoded_otherwise(manifest, digests, options, memory)
        for row, why in reasons.items():
            older[row] = _content(manifest.rows[row], digests[row], texts[row]), why
            digests[row] += f"+{DECODER}"
    contents = [
        _content(u, digest, text)
        for u, digest, text in zip(manifest.rows, digests, texts, strict=True)
    ]
    h = hashlib.sha256(recipe_key(recipe).encode())
    for u, content in zip(manifest.rows, contents, strict=True):
        h.update(f"{json.dumps(u.id)} {content}\n".encode())
    return Keys(recipe, tuple(contents), tuple(digests), h.hexdigest(), checkpoints, older)


def find_encoders(
    manifest: Manifest, options: ExtractOptions, memory: FileMemory
) -> dict[str, Checkpoint]:
    """The checkpoint of each modality that the manifest has and the options want, in the order
    audio, text.
    """
    wanted = {
        "audio": options.audio_encoder if any(u.audio for u in manifest.rows) else "",
        "text": options.text_encoder if any(u.text for u in manifest.rows) else "",
    }
    found = {
        kind: resolve(kind, encoder, offline=options.offline, sha256=memory.sha256)
        for kind, encoder in wanted.items()
        if encoder not in ("", "none")
    }
    if not found:
        raise DataError(
            f"{manifest.dataset}: nothing to extract; the manifest has no audio or text that an "
            "encoder was named for"
        )
    if "audio" in found:
        parse_layer(options.audio_layer, Geometry.of(found["audio"]).layers)
    return found


def make_recipe(options: ExtractOptions, checkpoints: dict[str, Checkpoint]) -> dict:
    """Everything that decides a feature, given its content."""
    recipe: dict = {"extractor": EXTRACTOR, "dtype": options.dtype, "precision": options.precision}
    if "audio" in checkpoints:
        recipe["audio"] = {
            "encoder": checkpoints["audio"].hash,
            "layer": options.audio_layer,
            "pool": options.pool,
            "channel": options.channel,
            "max_seconds": float(options.max_seconds),
        }
        if options.audio_track != "auto":  # stores made before it could be asked for keep their key
            recipe["audio"]["track"] = options.audio_track
    if "text" in checkpoints:
        recipe["text"] = {"encoder": checkpoints["text"].hash}
    return recipe


def recipe_key(recipe: dict) -> str:
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()


def differences(old: dict, new: dict, names: dict[str, tuple[str, str]]) -> list[str]:
    """What two recipes differ in, one phrase each.

    `names[modality]` are the encoders' names in the old and the new store.
    """
    if not old:
        return ["it holds features that were not made by `mer extract`"]
    found = []
    for part in ("audio", "text"):
        a, b = old.get(part), new.get(part)
        if (a is None) != (b is None):
            found.append(
                f"{part} features: {'yes' if a else 'no'} there, {'yes' if b else 'no'} now"
            )
        elif a and b:
            for key in sorted(a.keys() | b.keys()):
                if a.get(key) != b.get(key):
                    if key == "encoder":
                        was, now = names.get(part, ("", ""))
                        found.append(
                            f"{part} encoder: {was} there, {now} now"
                            if was != now
                            else f"{part} encoder: {now} with other files"
                        )
                    elif key == "track":
                        found.append(
                            f"audio track: {a.get(key, 'auto')} there, {b.get(key, 'auto')} now"
                        )
                    else:
                        found.append(
                            f"{part} {key.replace('_', '-')}: {a.get(key)} there, {b.get(key)} now"
                        )
    for key in ("dtype", "precision", "extractor"):
        if old.get(key) != new.get(key):
            found.append(f"{key}: {old.get(key)} there, {new.get(key)} now")
    return found


def span(u: Utterance, track: str = "auto") -> str:
    """The part of the file that an utterance is, as text."""
    start = "" if u.start is None else repr(float(u.start))
    end = "" if u.end is None else repr(float(u.end))
    return f"{start}:{end}" + ("" if track == "auto" else f" of track {track}")


def _content(u: Utterance, digest: str, text: str | None) -> str:
    return hashlib.sha256(
        json.dumps([digest, span(u) if digest else "", text or ""]).encode()
    ).hexdigest()[:32]


def _digests(manifest: Manifest, memory: FileMemory, cold: Callable[[int, int], None]) -> list[str]:
    """sha256 of each row's audio file; "" without audio; "!" and a reason of UNREADABLE for a file
    that cannot be read.
    """
    names = list(dict.fromkeys(u.audio for u in manifest.rows if u.audio))
    known: dict[str, str] = {}
    unknown: list[tuple[str, Path]] = []
    size = 0
    for name in names:
        path = manifest.root / name
        try:
            digest = memory.known(path)
            if digest is None:
                unknown.append((name, path))
                size += path.stat().st_size
            else:
                known[name] = digest
        except UnicodeEncodeError:
            known[name] = "!encoding"
        except (FileNotFoundError, NotADirectoryError, ValueError):
            known[name] = "!missing"
        except OSError:
            known[name] = "!unreadable"
    if unknown:
        cold(len(unknown), size)
        # hashing lets go of the interpreter's lock
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            known.update(
                zip(
                    (name for name, _ in unknown),
                    pool.map(lambda item: _digest(item[1], memory), unknown),
                    strict=True,
                )
            )
    return [known[u.audio] if u.audio else "" for u in manifest.rows]


def _digest(path: Path, memory: FileMemory) -> str:
    try:
        return memory.sha256(path)
    except OSError:
        return "!unreadable"


def _decoded_otherwise(
    manifest: Manifest, digests: list[str], options: ExtractOptions, memory: FileMemory
) -> dict[int, str]:
    """Row → reason, for rows whose file this version decodes otherwise than the first: only their
    content has another key. Bytes alone tell it of most files; for containers with time stamps a
    decoding process looks at their packets. What was found is remembered."""
    unknown: dict[str, str] = {}  # sha256 → a file that has it
    for u, digest in zip(manifest.rows, digests, strict=True):
        if digest and not digest.startswith("!") and digest not in memory.kinds:
            unknown.setdefault(digest, str(manifest.root / u.audio))
    if unknown:
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            found = dict(zip(unknown, pool.map(_told_by_bytes, unknown.values()), strict=True))
        asked = [digest for digest, why in found.items() if why is None]
        workers = (
            options.decoders
            if options.decoders >= 0
            else max(1, min(16, (os.cpu_count() or 2) // 2))
        )
        with Decoders(min(workers, len(asked)), timeout=options.decode_timeout) as decoders:
            jobs = (Job("changed", unknown[digest], "auto", None, None) for digest in asked)
            for digest, result in zip(asked, decoders.run(jobs, ahead=256), strict=True):
                found[digest] = (result.reason or "") if result.stage is None else None
        for digest, why in found.items():
            if why is not None:
                memory.kinds[digest] = why
                memory.changed = True
    return {row: why for row, digest in enumerate(digests) if (why := memory.kinds.get(digest))}


def _told_by_bytes(path: str) -> str | None:
    """Why a file is decoded otherwise, "" if it is not; None where its packets have to be looked
    at.
    """
    try:
        found = containers.look(path)
    except (OSError, ValueError):
        return None
    return found.why or ("" if found.exact or found.missing else None)


def memory_path(source: Path | None) -> Path | None:
    """Where hashes are remembered: in the folder of the manifest's file, for all manifests there,
    if that folder can be written.
    """
    return (
        source.with_name(".mer-files.parquet")
        if source is not None and os.access(source.parent, os.W_OK)
        else None
    )


def fingerprint(
    manifest: Manifest,
    options: ExtractOptions,
    *,
    memory: FileMemory | None = None,
    cold=lambda files, size: None,
) -> str:
    """The cache key that `extract` with these options would give its store.

    Nothing is decoded or computed.
    """
    memory = memory or FileMemory()
    found = keys(manifest, options, memory, cold=cold).fingerprint
    memory.save()
    return found
