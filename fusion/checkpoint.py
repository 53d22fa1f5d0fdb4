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
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from mer.fusion import config as configs
from mer.fusion import files, metrics, shapes
from mer.fusion.batch import DataSpec
from mer.fusion.config import TrainConfig
from mer.fusion.models import build
from mer.fusion.splits import Fold
from mer.pipeline.errors import DataError, KeyMismatchError
from mer.pipeline.store import FeatureStore

VERSION = 1
AGAIN = "put it back as it was, or train again into a new folder"  # what helps against damage
CHUNK = 1 << 16  # rows of a table that are Python objects at a time
MODEL, LAST, INFO = "model.safetensors", "last.safetensors", "run.json"
CONFIG, SPLIT, LOG = "config.toml", "split.json", "log.jsonl"
# Where run.json, which is sealed itself, has the sha256 of the other files. Older runs lack some.
DIGESTS = {CONFIG: "config_sha256", SPLIT: "split_sha256", LOG: "log_sha256", MODEL: "model_sha256"}
WHAT = {CONFIG: "configuration", SPLIT: "split", LOG: "log", MODEL: "weights"}
# What safetensors, json and torch raise on bytes that are not what they should be.
UNREADABLE = (
    SafetensorError,
    OSError,
    ValueError,
    KeyError,
    TypeError,
    RuntimeError,
    AttributeError,
    OverflowError,
    MemoryError,
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
        info = files.read_json(path / INFO, {}, AGAIN)
        if info.get("format") != "mer-run" or info.get("version") != VERSION:
            said = f"{str(info.get('format'))[:40]} of version {str(info.get('version'))[:40]}"
            raise DataError(
                f"{path / INFO}: {said}, this mer reads mer-run of version {VERSION}; {AGAIN}"
            )
        if found := _fault(info):
            raise files.damaged(path / INFO, found, AGAIN)
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
        text = files.read_text(path, AGAIN, most=configs.CONFIG_BYTES)
        try:
            config = configs.from_toml(text, str(path))
        except DataError as error:
            where = "" if str(error).startswith(str(path)) else f"{path}: "
            raise DataError(f"{where}{error}; {AGAIN}") from None
        self.verified(CONFIG)
        if config.model != self.info["model"]:
            raise DataError(
                f"{path}: not the configuration that this training wrote ({INFO} has another); "
                f"{AGAIN}"
            )
        return config

    def verified(self, name: str) -> Path:
        """The path of one of the run's files, which is as this training wrote it as far as run.json
        says (runs of an older mer say less).

        Raises:
            DataError: It is not.
        """
        path = self.path / name
        if self.info.get(DIGESTS[name]) not in (None, files.digest(path, AGAIN)):
            raise DataError(
                f"{path}: not the {WHAT[name]} that this training wrote ({INFO} has another "
                f"sha256); {AGAIN}"
            )
        return path

    @property
    def measures(self) -> str:
        """By whose definitions a regression is scored (fusion.metrics)."""
        known = self.info.get("measures")
        return known or metrics.measures_of(self.info["store"]["dataset"], None)

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

    def sound(self) -> Run:
        """This finished run; DataError when one of its files is not as the training wrote it."""
        for child in self.trained().children:
            for name in DIGESTS:
                child.verified(name)
        return self

    def model(self, device: torch.device | str = "cpu") -> nn.Module:
        """The model with the weights dev chose, in eval mode."""
        config = self.config
        path = self.path / MODEL
        tensors, _ = load_tensors(path)
        self.verified(MODEL)
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
        names = info["children"]
        odd = [c for c in names if c in ("", ".", "..") or "/" in c or "\0" in c]
        odd += [c for c, count in Counter(names).items() if count > 1]
        return f"children are {odd or 'none'}" if odd or not names else None
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
    return {name for name in names if not files.LEFT_BEHIND.fullmatch(name)} - {HOLD, *ours}


def fill(model: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Load `tensors` into `model`; DataError, opened by `where`, names the first that
    does not fit.
    """
    wanted = model.state_dict()
    odd = [f"it has no {k}" for k in wanted if k not in tensors] + [
        f"the model has no {k}" for k in tensors if k not in wanted
    ]
    for k in (k for k in wanted if k in tensors):
        is_, expected = tuple(tensors[k].shape), tuple(wanted[k].shape)
        if is_ != expected:
            odd.append(f"{k} is {is_}, expected {expected}")
        elif tensors[k].dtype != wanted[k].dtype:
            odd.append(f"{k} is {tensors[k].dtype}, expected {wanted[k].dtype}")
        elif wanted[k].isfinite().all() and not tensors[k].isfinite().all():
            odd.append(f"{k} has values that are not finite")
    if odd:
        odd[0] = shapes.brief(odd[0])
        raise DataError(
            f"{where} ({odd[0]}{f'; and {len(odd) - 1} more' if len(odd) > 1 else ''}); train "
            "again into a new folder"
        )
    model.load_state_dict(dict(tensors))


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


def pack(tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> bytes:
    """A safetensors file. `meta` travels as JSON in its header, with a digest of all there is: the
    same tensors give the same bytes, and one changed bit shows when they are read."""
    plain = {k: v.detach().to("cpu", copy=True).contiguous() for k, v in tensors.items()}
    sealed = {**meta, files.SEAL: _seal(plain, meta)}
    return save(plain, metadata={"mer": json.dumps(sealed)})


def save_tensors(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write `pack` atomically."""
    files.write_bytes(path, pack(tensors, meta))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and `meta` of a safetensors file.

    Raises:
        DataError: It is not there, damaged, or not as it was sealed.
    """
    remedy = "delete it and train again"
    with files.opened(path, "was the training finished?", missing="no such checkpoint"):
        pass  # a pipe would be waited for below
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            meta = json.loads((file.metadata() or {}).get("mer", "{}"))
            tensors = {k: file.get_tensor(k) for k in file.keys()}
        if not isinstance(meta, dict):
            raise ValueError("its metadata is no object")
        said = meta.pop(files.SEAL, None)
        if said is not None and said != _seal(tensors, meta):
            raise ValueError("its content does not match its checksum")
    except FileNotFoundError:
        raise DataError(f"{path}: no such checkpoint; was the training finished?") from None
    except UNREADABLE as error:
        why = shapes.brief(str(error) or type(error).__name__)
        raise DataError(f"{path}: damaged checkpoint ({why}); {remedy}") from None
    return tensors, meta


def _seal(tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> str:
    h = hashlib.sha256(json.dumps(meta, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        h.update(f"\n{json.dumps(name)} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        h.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return h.hexdigest()


def spec_tree(spec: DataSpec) -> dict[str, Any]:
    return {**asdict(spec), "labels": list(spec.labels)}
