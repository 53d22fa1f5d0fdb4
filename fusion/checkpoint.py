"""A run folder: what was trained, on what, and the weights.

config.toml        the resolved configuration
run.json           the store it belongs to (fingerprint, recipe, labels, encoders), split counts,
                   versions; `finished` is written last
split.json         ids of the training and dev rows
log.jsonl          one object an epoch
model.safetensors  weights of the epoch that dev chose, the standardisation by the training rows
                   among them
last.safetensors   weights, optimizer and progress after the last finished epoch: what a resume
                   starts from
metrics.json  predictions.parquet  test_log.jsonl      by `mer.fusion.evaluate`

A run over seeds or folds is a folder of such folders; its run.json has `kind` "group" and names its
children.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from mer.fusion import config as configs
from mer.fusion import shapes
from mer.fusion.batch import DataSpec
from mer.fusion.config import TrainConfig
from mer.fusion.models import build
from mer.fusion.splits import Fold
from mer.pipeline.errors import DataError, KeyMismatchError
from mer.pipeline.store import FeatureStore
from mer.pipeline.store.arrays import temporary_for

VERSION = 1
AGAIN = "put it back as it was, or train again into a new folder"  # what helps against damage
CHUNK = 1 << 16  # rows of a table that are Python objects at a time
MODEL, LAST, INFO, CONFIG, SPLIT = (
    "model.safetensors",
    "last.safetensors",
    "run.json",
    "config.toml",
    "split.json",
)
HOLD = ".hold"  # who trains into the folder now


@dataclass(frozen=True)
class Run:
    path: Path
    info: dict[str, Any]

    @classmethod
    def open(cls, path: str | os.PathLike) -> Run:
        path = Path(path)
        if not (path / INFO).exists():
            inside = sum(1 for _ in path.glob(f"*/{INFO}"))
            remedy = (
                f"the runs are in it: {path}/*"
                if inside
                else "make one with `mer train`, or leave it out"
            )
            raise DataError(f"{path}: not a run folder (no {INFO}); {remedy}")
        info = read_json(path / INFO, {}, AGAIN)
        if info.get("format") != "mer-run" or info.get("version") != VERSION:
            said = f"{str(info.get('format'))[:40]} of version {str(info.get('version'))[:40]}"
            raise DataError(
                f"{path / INFO}: {said}, this mer reads mer-run of version {VERSION}; {AGAIN}"
            )
        if found := _fault(info):
            raise DataError(f"{path / INFO}: damaged ({found}); {AGAIN}")
        return cls(path, info)

    @property
    def children(self) -> list[Run]:
        """The runs of a group; a single run is its own child."""
        if self.info["kind"] == "single":
            return [self]
        runs = [Run.open(self.path / c) for c in self.info["children"]]
        for run in runs:
            if run.info.get("spec") != runs[0].info.get("spec") or run.info["kind"] == "group":
                raise DataError(
                    f"{run.path / INFO}: not a run of the group that {self.path / INFO} names; "
                    f"{AGAIN}"
                )
        return runs

    @property
    def config(self) -> TrainConfig:
        path = self.path / CONFIG
        text = read_text(path, AGAIN)
        try:
            config = configs.from_toml(text, str(path))
        except DataError as error:
            where = "" if str(error).startswith(str(path)) else f"{path}: "
            raise DataError(f"{where}{error}; {AGAIN}") from None
        # older runs have none
        if (
            self.info.get("config_sha256") not in (None, digest(path))
            or config.model != self.info["model"]
        ):
            raise DataError(
                f"{path}: not the configuration that this training wrote ({INFO} has another); "
                f"{AGAIN}"
            )
        return config

    @property
    def spec(self) -> DataSpec:
        s = self.info["spec"]
        return DataSpec(
            dict(s["modalities"]), dict(s["frame_rates"]), s["task"], tuple(s["labels"])
        )

    @property
    def fold(self) -> Fold | None:
        f = self.info.get("fold")
        return None if f is None else Fold(f["name"], f["by"], tuple(f["held"]))

    @property
    def finished(self) -> bool:
        return bool(self.info.get("finished"))

    def trained(self) -> Run:
        """This run; raises DataError when its training was not finished, or that of one of its
        children, or a configuration is damaged.
        """
        if not (self.finished and all(child.finished for child in self.children)):
            raise DataError(
                f"{self.path}: the training is not finished; run the same `mer train` command "
                "again, or leave it out"
            )
        for child in self.children:
            _ = child.config
        return self

    def model(self, device: torch.device | str = "cpu") -> nn.Module:
        """The model with the weights dev chose, in eval mode."""
        config = self.config
        path = self.path / MODEL
        tensors, _ = load_tensors(path)
        if self.info.get("model_sha256") not in (None, digest(path)):  # older runs have none
            raise DataError(
                f"{path}: not the weights that this training wrote ({INFO} has another sha256); "
                "put them back, or train again"
            )
        model = build(config.model, config.model_args, self.spec)
        fill(model, tensors, f"{path}: does not fit {config.model} of this mer")
        return model.to(device).eval()


def _fault(info: dict[str, Any]) -> str | None:
    """What is wrong with the content of a run.json; None: nothing."""
    group = info.get("kind") == "group"
    shape = (
        shapes.GROUP
        if group
        else shapes.FINISHED
        if info.get("finished") is True
        else shapes.SINGLE
    )
    if found := shapes.fault(info, shape):
        return found
    if group:
        odd = [
            c
            for c in info["children"]
            if c in ("", ".", "..") or "/" in c or "\0" in c or info["children"].count(c) > 1
        ]
        return f"children are {odd or 'none'}" if odd or not info["children"] else None
    spec, store, thresholds = info["spec"], info["store"], info.get("thresholds")
    dims = {m: store["modalities"].get(m, {}).get("dim") for m in spec["modalities"]}
    if spec["modalities"] != dims or not dims or dims.keys() != spec["frame_rates"].keys():
        return "spec and store differ in their modalities"
    if (spec["task"], spec["labels"]) != (store["task"], store["labels"]):
        return "spec and store differ in their task or labels"
    if (
        info["finished"]
        and spec["task"] == "multi"
        and len(thresholds or ()) != len(spec["labels"])
    ):
        return "thresholds are not one a label"
    return None


def strangers(folder: Path, *ours: str) -> set[str]:
    """Names in `folder` that are neither `ours`, the hold, nor what a killed write left behind (the
    next write of that file removes it).
    """
    names = {p.name for p in folder.iterdir()} if folder.exists() else set()
    return {name for name in names if not re.fullmatch(r"\..+\.tmp-\d+", name)} - {HOLD, *ours}


def fill(model: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Load `tensors` into `model`; DataError, opened by `where`, names the first that
    does not fit.
    """
    wanted = model.state_dict()
    odd = [f"it has no {k}" for k in wanted if k not in tensors] + [
        f"the model has no {k}" for k in tensors if k not in wanted
    ]
    shapes = [
        (k, tuple(tensors[k].shape), tuple(v.shape)) for k, v in wanted.items() if k in tensors
    ]
    odd += [f"{k} is {is_}, expected {expected}" for k, is_, expected in shapes if is_ != expected]
    if odd:
        raise DataError(
            f"{where} ({odd[0]}{f'; and {len(odd) - 1} more' if len(odd) > 1 else ''}); train "
            "again into a new folder"
        )
    model.load_state_dict(dict(tensors))


def digest(path: Path) -> str:
    """sha256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_store(run: Run, store: FeatureStore) -> list[str]:
    """Raise KeyMismatchError, naming what differs, unless `store` holds the same kind of features
    and labels as the run was trained on.

    Other clips under the same recipe are fine (another corpus, new utterances); the notes say so.
    """
    then, now = run.info["store"], describe_store(store)
    used = run.spec.modalities
    missing = [m for m in used if m not in now["modalities"]]
    if missing:
        raise KeyMismatchError(
            f"{store.path}: has no {', '.join(missing)}, which {run.path} was trained on"
        )
    pick = ("task", "labels")
    was = {
        **{k: then[k] for k in pick},
        **{m: then["modalities"][m] for m in used},
        "recipe": then["recipe"],
    }
    has = {
        **{k: now[k] for k in pick},
        **{m: now["modalities"][m] for m in used},
        "recipe": now["recipe"],
    }
    differs = configs.differences(was, has)
    if differs:
        more = f" (and {len(differs) - 3} more)" if len(differs) > 3 else ""
        raise KeyMismatchError(
            f"{store.path}: not the kind of store {run.path} was trained on: "
            f"{'; '.join(differs[:3])}{more}"
        )
    if store_key(store) != run.info["store_key"]:
        return [
            f"{store.path} has other clips, labels or splits than the run was trained on (same "
            f"recipe; dataset {now['dataset']})"
        ]
    return []


def describe_store(store: FeatureStore) -> dict[str, Any]:
    """What a run remembers of its store: JSON values only."""
    h = store.header
    kept = ("dim", "frame_rate", "encoder", "revision", "layer", "trained")
    modalities = {m: {k: getattr(info, k) for k in kept} for m, info in h.modalities.items()}
    described = {
        "dataset": h.dataset,
        "task": h.task,
        "labels": list(h.labels),
        "language": h.language,
        "modalities": modalities,
        "fingerprint": h.fingerprint,
        "recipe": dict(h.recipe),
    }
    return json.loads(json.dumps(described, default=str))


def store_key(store: FeatureStore) -> str:
    """Changes when features, labels, splits or groups change: the same run folder is only continued
    on the same key.
    """
    h = hashlib.sha256(json.dumps(describe_store(store), sort_keys=True).encode())
    table = store.table()
    lengths = [c for c in table.column_names if c.startswith("n_")]
    for name in ("id", "split", "label", "targets", "dialogue", "speaker", "session", *lengths):
        if name in table.column_names:
            # the JSON of [name, values], never whole in memory
            h.update(f"[{json.dumps(name)}, [".encode())
            for at in range(0, len(table), CHUNK):
                values = json.dumps(table[name].slice(at, CHUNK).to_pylist(), ensure_ascii=False)[
                    1:-1
                ]
                h.update(f"{', ' if at else ''}{values}".encode())
            h.update(b"]]")
    return h.hexdigest()


def save_tensors(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """safetensors, written to a temporary file and renamed; `meta` travels as JSON in
    the header.
    """
    with publishing(path) as temporary:
        plain = {k: v.detach().to("cpu", copy=True).contiguous() for k, v in tensors.items()}
        save_file(plain, temporary, metadata={"mer": json.dumps(meta)})


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {k: file.get_tensor(k) for k in file.keys()}, json.loads(
                (file.metadata() or {}).get("mer", "{}")
            )
    except FileNotFoundError:
        raise DataError(f"{path}: no such checkpoint; was the training finished?") from None
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise DataError(
            f"{path}: damaged checkpoint ({str(error).splitlines()[0]}); delete it and train again"
        ) from None


def read_text(path: Path, remedy: str) -> str:
    """A file of a run folder; DataError when it is not there or not text."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; {remedy}") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: damaged (not UTF-8); {remedy}") from None


def read_json(path: Path, shape: Any, remedy: str, *, text: str | None = None) -> Any:
    """The JSON of a file of a run folder (or of `text` from it), of the shape that
    `mer.fusion.shapes` says; DataError when it is not.
    """
    text = read_text(path, remedy) if text is None else text
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path}: damaged ({error if text.strip() else 'empty'}); {remedy}"
        ) from None
    if found := shapes.fault(value, shape):
        raise DataError(f"{path}: damaged ({found}); {remedy}")
    return value


def write_text(path: Path, text: str) -> None:
    """Write atomically."""
    with publishing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


@contextmanager
def publishing(path: Path) -> Iterator[Path]:
    """A temporary file that becomes `path` on a clean exit; an OSError names `path`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = temporary_for(path)
        try:
            yield temporary
            replace_durably(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from None


def replace_durably(temporary: Path, path: Path) -> None:
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)


def spec_tree(spec: DataSpec) -> dict[str, Any]:
    return {**asdict(spec), "labels": list(spec.labels)}
