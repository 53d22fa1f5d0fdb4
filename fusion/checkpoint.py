"""A run folder: what was trained, on what, and the weights.

config.toml        the resolved configuration
run.json           the store it belongs to (fingerprint, recipe, labels, encoders), split counts, versions; `finished` is written last
split.json         ids of the training and dev rows
log.jsonl          one object an epoch
model.safetensors  weights of the epoch that dev chose, the standardisation by the training rows among them
last.safetensors   weights, optimizer and progress after the last finished epoch: what a resume starts from
metrics.json  predictions.parquet  test_log.jsonl      by `fusion.evaluate`

A run over seeds or folds is a folder of such folders; its run.json has `kind` "group" and names its children.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from fusion import config as configs
from fusion.batch import DataSpec
from fusion.config import TrainConfig
from fusion.models import model_class
from fusion.splits import Fold
from pipeline.errors import DataError, KeyMismatchError
from pipeline.store import FeatureStore

VERSION = 1
CHUNK = 1 << 16  # rows of a table that are Python objects at a time
MODEL, LAST, INFO, CONFIG, SPLIT = "model.safetensors", "last.safetensors", "run.json", "config.toml", "split.json"
HOLD = ".hold"  # who trains into the folder now


@dataclass(frozen=True)
class Run:
    path: Path
    info: dict[str, Any]

    @classmethod
    def open(cls, path: str | os.PathLike) -> Run:
        path = Path(path)
        try:
            info = json.loads((path / INFO).read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            raise DataError(f"{path}: not a run folder (no {INFO}); make one with `mer train`, or leave it out") from None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise DataError(f"{path / INFO}: damaged ({error}); train again into a new folder") from None
        if not isinstance(info, dict) or info.get("format") != "mer-run" or info.get("version") != VERSION:
            raise DataError(f"{path}: run format {info.get('version') if isinstance(info, dict) else '?'}, this mer reads {VERSION}")
        return cls(path, info)

    @property
    def children(self) -> list[Run]:
        """The runs of a group; a single run is its own child."""
        return [Run.open(self.path / c) for c in self.info["children"]] if self.info["kind"] == "group" else [self]

    @property
    def config(self) -> TrainConfig:
        return configs.from_toml((self.path / CONFIG).read_text(encoding="utf-8"), str(self.path / CONFIG))

    @property
    def spec(self) -> DataSpec:
        s = self.info["spec"]
        return DataSpec(dict(s["modalities"]), dict(s["frame_rates"]), s["task"], tuple(s["labels"]))

    @property
    def fold(self) -> Fold | None:
        f = self.info.get("fold")
        return None if f is None else Fold(f["name"], f["by"], tuple(f["held"]))

    @property
    def finished(self) -> bool:
        return bool(self.info.get("finished"))

    def trained(self) -> Run:
        """This run; raises DataError when its training was not finished."""
        if not self.finished:
            raise DataError(f"{self.path}: the training is not finished; run the same `mer train` command again, or leave it out")
        return self

    def model(self, device: torch.device | str = "cpu") -> nn.Module:
        """The model with the weights dev chose, in eval mode."""
        config = self.config
        path = self.path / MODEL
        tensors, _ = load_tensors(path)
        if self.info.get("model_sha256") not in (None, digest(path)):  # older runs have none
            raise DataError(f"{path}: not the weights that this training wrote ({INFO} has another sha256); put them back, or train again")
        model = model_class(config.model)[0](config.model_args, self.spec)
        fill(model, tensors, f"{path}: does not fit {config.model} of this mer")
        return model.to(device).eval()


def fill(model: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Load `tensors` into `model`; DataError, opened by `where`, names the first that does not fit."""
    wanted = model.state_dict()
    odd = [f"it has no {k}" for k in wanted if k not in tensors] + [f"the model has no {k}" for k in tensors if k not in wanted]
    shapes = [(k, tuple(tensors[k].shape), tuple(v.shape)) for k, v in wanted.items() if k in tensors]
    odd += [f"{k} is {is_}, expected {expected}" for k, is_, expected in shapes if is_ != expected]
    if odd:
        raise DataError(f"{where} ({odd[0]}{f'; and {len(odd) - 1} more' if len(odd) > 1 else ''}); train again into a new folder")
    model.load_state_dict(dict(tensors))


def digest(path: Path) -> str:
    """sha256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_store(run: Run, store: FeatureStore) -> list[str]:
    """Raise KeyMismatchError, naming what differs, unless `store` holds the same kind of features and labels as the run was trained on.

    Other clips under the same recipe are fine (another corpus, new utterances); the notes say so.
    """
    then, now = run.info["store"], describe_store(store)
    used = run.spec.modalities
    missing = [m for m in used if m not in now["modalities"]]
    if missing:
        raise KeyMismatchError(f"{store.path}: has no {', '.join(missing)}, which {run.path} was trained on")
    pick = ("task", "labels")
    was = {**{k: then[k] for k in pick}, **{m: then["modalities"][m] for m in used}, "recipe": then["recipe"]}
    has = {**{k: now[k] for k in pick}, **{m: now["modalities"][m] for m in used}, "recipe": now["recipe"]}
    differs = configs.differences(was, has)
    if differs:
        more = f" (and {len(differs) - 3} more)" if len(differs) > 3 else ""
        raise KeyMismatchError(f"{store.path}: not the kind of store {run.path} was trained on: {'; '.join(differs[:3])}{more}")
    if store_key(store) != run.info["store_key"]:
        return [f"{store.path} has other clips, labels or splits than the run was trained on (same recipe; dataset {now['dataset']})"]
    return []


def describe_store(store: FeatureStore) -> dict[str, Any]:
    """What a run remembers of its store: JSON values only."""
    h = store.header
    kept = ("dim", "frame_rate", "encoder", "revision", "layer", "trained")
    modalities = {m: {k: getattr(info, k) for k in kept} for m, info in h.modalities.items()}
    described = {
        "dataset": h.dataset, "task": h.task, "labels": list(h.labels), "language": h.language, "modalities": modalities,
        "fingerprint": h.fingerprint, "recipe": dict(h.recipe),
    }  # fmt: skip
    return json.loads(json.dumps(described, default=str))


def store_key(store: FeatureStore) -> str:
    """Changes when features, labels, splits or groups change: the same run folder is only continued on the same key."""
    h = hashlib.sha256(json.dumps(describe_store(store), sort_keys=True).encode())
    table = store.table()
    lengths = [c for c in table.column_names if c.startswith("n_")]
    for name in ("id", "split", "label", "targets", "dialogue", "speaker", "session", *lengths):
        if name in table.column_names:
            h.update(f"[{json.dumps(name)}, [".encode())  # the JSON of [name, values], never whole in memory
            for at in range(0, len(table), CHUNK):
                values = json.dumps(table[name].slice(at, CHUNK).to_pylist(), ensure_ascii=False)[1:-1]
                h.update(f"{', ' if at else ''}{values}".encode())
            h.update(b"]]")
    return h.hexdigest()


def save_tensors(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """safetensors, written to a temporary file and renamed; `meta` travels as JSON in the header."""
    with publishing(path) as temporary:
        plain = {k: v.detach().to("cpu", copy=True).contiguous() for k, v in tensors.items()}
        save_file(plain, temporary, metadata={"mer": json.dumps(meta)})


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {k: file.get_tensor(k) for k in file.keys()}, json.loads((file.metadata() or {}).get("mer", "{}"))
    except FileNotFoundError:
        raise DataError(f"{path}: no such checkpoint; was the training finished?") from None
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise DataError(f"{path}: damaged checkpoint ({str(error).splitlines()[0]}); delete it and train again") from None


def write_text(path: Path, text: str) -> None:
    """Write atomically."""
    with publishing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


@contextmanager
def publishing(path: Path) -> Iterator[Path]:
    """A temporary file that becomes `path` on a clean exit; an OSError names `path`."""
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
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
