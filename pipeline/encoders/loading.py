"""Encoder id → files on disk, their hash and configuration.

Reads no weights and does not import torch.

An id is a built-in (`builtin:tiny-wav2vec2`), a local directory, or a hub id with an optional
`@REVISION`. Hub files are fetched into the hub's own cache, and everything after that works from
the local snapshot: `offline` means that the network is never touched.

Of a sentence-transformers checkpoint, only its transformer is read, which lies in the folder itself
or in a folder that `modules.json` names.
"""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from mer.pipeline.encoders import tiny
from mer.pipeline.errors import EncoderError
from mer.pipeline.runtime import beginnings
from mer.pipeline.runtime.files import near, sha256_file
from mer.pipeline.runtime.limits import CHECKPOINT_TEXT_BYTES
from mer.pipeline.runtime.terminal import first_line, shown

# How inputs are prepared: a file of that alone, and, since transformers 5, one with a part for each
# kind of input, which goes before the other.
PROCESSOR, PROCESSORS = "preprocessor_config.json", "processor_config.json"
PARTS = {"audio": "feature_extractor", "speech": "feature_extractor", "vision": "image_processor"}
# What of a waveform's preparation decides its features, and what it is where nothing is said.
DECIDING = {"do_normalize": True, "n_fft": 400, "hop_length": 160}
CONFIGURATION = (
    "config.json",
    PROCESSOR,
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "spiece.model",
    "sentencepiece*",
    "bpe.codes",
    "*.tiktoken",
)
# SentencePiece models of Marian and DeBERTa: they count where there is no tokenizer.json, which
# says all that they do
PIECES = ("*.spm", "spm.model")
SAFE = ("model.safetensors", "model-*.safetensors", "model.safetensors.index.json")
# one of these is a tokenizer
VOCABULARY = (
    "tokenizer.json",
    "vocab*",
    "spiece.model",
    "sentencepiece*",
    "tokenizer.model",
    "*.tiktoken",
    *PIECES,
)
PICKLED = ("pytorch_model.bin", "pytorch_model-*.bin", "pytorch_model.bin.index.json")
# what sentence-transformers adds: the list of its modules, and the folder of the first, where the
# transformer was before it moved to the top
MODULES = "modules.json"
# What may stand in the place of a file of a checkpoint.
STAND_INS = (beginnings.LFS, beginnings.ANNEX, beginnings.PAGE, beginnings.EMPTY, beginnings.ZEROS)
FIRST_MODULE = "0_Transformer"


@dataclass(frozen=True)
class Checkpoint:
    """An encoder as files.

    `hash` names everything that its features depend on: weights, configuration, processor or
    tokenizer.
    """

    kind: str  # audio | text | vision
    id: str  # as asked for, without the revision
    revision: str  # hub: the commit; otherwise ""
    folder: Path | None  # None: built in
    config: dict = field(repr=False)
    processor: dict = field(repr=False)  # how inputs are prepared; {} where nothing says it
    safetensors: bool
    hash: str

    @property
    def trained(self) -> bool:
        return not self.id.startswith(tiny.PREFIX)

    @property
    def name(self) -> str:
        """What headers show: the hub id, the folder's name, or the built-in's id."""
        return (
            Path(self.id).expanduser().resolve().name
            if self.folder is not None and not self.revision
            else self.id
        )

    @property
    def source(self) -> str:
        """An id that finds the same files again on this machine."""
        if self.folder is None:
            return self.id
        return f"{self.id}@{self.revision}" if self.revision else str(self.folder)


def resolve(
    kind: str,
    encoder: str,
    *,
    offline: bool = False,
    sha256: Callable[[Path], str] = sha256_file,
    also: tuple[str, ...] = (),
) -> Checkpoint:
    """The files of `encoder`, downloaded if need be.

    `sha256` hashes a file (a caller may remember hashes). `also` are patterns of files that are
    downloaded besides, and belong to no hash. Raises EncoderError.
    """
    if encoder.startswith(tiny.PREFIX):
        config = tiny.config(kind, encoder)
        return Checkpoint(
            kind,
            encoder,
            "",
            None,
            config,
            tiny.PROCESSORS[kind],
            True,
            tiny.digest(encoder),
        )
    folder, revision = Path(encoder).expanduser(), ""
    name = encoder
    if not folder.is_dir() or not encoder:
        if encoder.startswith((".", "/", "~")) or encoder.count("/") > 1 or not encoder.strip():
            raise EncoderError(
                f"{kind} encoder '{encoder}': no such directory{near(folder, 'folder')}; give a "
                "checkpoint's directory or a hub id"
            )
        name, _, revision = encoder.partition("@")
        folder = _snapshot(kind, name, revision or None, offline, also)
        revision = folder.name  # the hub's cache names a snapshot by its commit
    folder = _transformer(kind, folder)
    first = folder / "config.json"
    if first.is_file() and first.stat().st_size <= CHECKPOINT_TEXT_BYTES:
        _check_content(kind, first)
    config = _json(kind, folder / "config.json", required=True)
    weights = matching(folder, SAFE)
    safetensors = any(path.suffix == ".safetensors" for path in weights)
    if not safetensors:
        weights = matching(folder, PICKLED)
        if not any(path.suffix == ".bin" for path in weights):
            raise EncoderError(
                f"{kind} encoder {folder}: neither model.safetensors nor pytorch_model.bin is there"
            )
    configuration = matching(folder, CONFIGURATION)
    if not (folder / "tokenizer.json").exists():
        configuration += matching(folder, PIECES)
    for path in configuration:
        if path.stat().st_size > CHECKPOINT_TEXT_BYTES:
            raise EncoderError(
                f"{kind} encoder: {path}: more than {CHECKPOINT_TEXT_BYTES:,} bytes; the directory "
                "is not a complete checkpoint"
            )
    for path in sorted({*weights, *configuration}):
        _check_content(kind, path)
    processor, is_part = _processor(kind, folder)
    if is_part:
        configuration.append(folder / PROCESSORS)
    digest = hashlib.sha256()
    for path in sorted({*weights, *configuration}):
        digest.update(f"{path.name} {sha256(path)}\n".encode())
    folder = folder if revision else folder.resolve()
    return Checkpoint(
        kind, name, revision, folder, config, processor, safetensors, digest.hexdigest()
    )


def _check_content(kind: str, path: Path) -> None:
    """Raise EncoderError for a file that is a stand-in for another: a clone without git-lfs has
    pointers, a download that failed a page or nothing.
    """
    try:
        with path.open("rb") as file:
            found = beginnings.recognise(file.read(beginnings.LOOK_BYTES))
    except OSError as error:
        raise EncoderError(f"{kind} encoder: {path}: {error.strerror}") from None
    if found in STAND_INS:
        raise EncoderError(f"{kind} encoder: {path}: {found.name}; {found.remedy}")


def _transformer(kind: str, folder: Path) -> Path:
    """Where the transformer of a checkpoint is: `folder`, or that of the first module of
    sentence-transformers.
    """
    if (folder / "config.json").exists() or not (folder / MODULES).exists():
        return folder
    modules = _json(kind, folder / MODULES, required=True, of=list)
    first = modules[0] if modules and isinstance(modules[0], dict) else {}
    path, type_ = first.get("path"), str(first.get("type"))
    if not isinstance(path, str) or ".." in PurePosixPath(path).parts or path.startswith("/"):
        raise EncoderError(f"{kind} encoder: {folder / MODULES}: its first module has no folder")
    if not type_.endswith("Transformer"):
        raise EncoderError(
            f"{kind} encoder {folder}: its first module is {shown(type_)}, not a transformer"
        )
    return folder / path


def _processor(kind: str, folder: Path) -> tuple[dict, bool]:
    """How inputs are prepared, and whether that is by a part of `PROCESSORS` and not as it were
    without: then that file belongs to the hash, which older stores else have without it.
    """
    alone = _json(kind, folder / PROCESSOR, required=False)
    if kind not in PARTS or not (folder / PROCESSORS).is_file():
        return alone, False
    _check_content(kind, folder / PROCESSORS)
    part = _json(kind, folder / PROCESSORS, required=True).get(PARTS[kind])
    if not isinstance(part, dict):
        return alone, False
    if kind == "vision":
        return part, part != alone
    return part, any(part.get(k, usual) != alone.get(k, usual) for k, usual in DECIDING.items())


def matching(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    """Files of `folder` that fit one of the patterns."""
    return [path for pattern in patterns for path in folder.glob(pattern) if path.is_file()]


def _json(kind: str, path: Path, *, required: bool, of: type = dict) -> Any:
    if not path.exists() and not required:
        return {}
    try:
        if path.exists() and not path.is_file():  # reading a pipe may never end
            raise OSError(errno.EINVAL, "a folder, device or pipe where a file should be")
        if path.stat().st_size > CHECKPOINT_TEXT_BYTES:
            raise OSError(errno.EFBIG, f"more than {CHECKPOINT_TEXT_BYTES:,} bytes")
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or "not JSON"
        if isinstance(error, FileNotFoundError) and path.name == "config.json":
            reason += " (fairseq's and FunASR's own formats, e.g. emotion2vec's, cannot be loaded)"
        raise EncoderError(
            f"{kind} encoder: {path}: {reason}; the directory is not a complete checkpoint"
        ) from None
    if not isinstance(content, of):
        what = "object" if of is dict else "list"
        raise EncoderError(f"{kind} encoder: {path}: not a JSON {what}")
    return content


def _instead(kind: str) -> str:
    """What could be named instead of a checkpoint of the hub."""
    if kind not in tiny.NAMES:
        return "; or name a directory"
    return f"; or name a directory with --{kind}-encoder, or {tiny.NAMES[kind]} to try things out"


def _snapshot(
    kind: str, name: str, revision: str | None, offline: bool, also: tuple[str, ...] = ()
) -> Path:
    """The hub's local snapshot of the files an encoder needs.

    A `.bin` is fetched only where no safetensors exist.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    what = f"{kind} encoder {name}" + (f"@{revision}" if revision else "")
    try:
        for weights in (SAFE, PICKLED):
            wanted = (*CONFIGURATION, PROCESSORS, *PIECES, *also, *weights)
            within = (f"{FIRST_MODULE}/{pattern}" for pattern in wanted)
            folder = Path(
                snapshot_download(
                    name,
                    revision=revision,
                    allow_patterns=[MODULES, *wanted, *within],
                    local_files_only=offline,
                )
            )
            if matching(folder, weights) or matching(folder / FIRST_MODULE, weights):
                break
    except LocalEntryNotFoundError:
        raise EncoderError(
            f"{what}: not in the local hub cache"
            + (
                " and --offline forbids downloading; run once without --offline"
                if offline
                else " and the hub cannot be reached"
            )
            + _instead(kind)
        ) from None
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise EncoderError(f"{what}: cannot be downloaded ({first_line(error)})") from None
    return folder
