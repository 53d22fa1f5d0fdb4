"""A run folder: what was trained, on what, and the weights.

config.toml        the resolved configuration
run.json           the store it belongs to (fingerprint, recipe, labels, encoders), split counts,
                   versions; `finished` is written last
split.json         ids of the training and dev rows
log.jsonl          one object per epoch
model.safetensors  weights of the epoch that dev chose, the standardisation by the training rows
                   among them
last.safetensors   weights, optimizer and progress after the last finished epoch: what a resume
                   starts from
metrics.json  predictions.parquet  test_log.jsonl      by `mer.fusion.evaluation.evaluate`

A run over seeds or folds is a folder of such folders; its run.json has `kind` "group" and names its
children.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from mer.fusion import config as configs
from mer.fusion.batch import DataSpec, FeatureSet
from mer.fusion.config import TrainConfig
from mer.fusion.data import context
from mer.fusion.data.splits import Fold
from mer.fusion.measures import metrics
from mer.fusion.models import build
from mer.fusion.models.base import FusionModel
from mer.fusion.runs.records import (
    RUN_FORMAT,
    RUN_VERSION,
    FinishedInfo,
    GroupInfo,
    RunInfo,
    SingleInfo,
    StoredModality,
    StoreInfo,
    run_info,
)
from mer.fusion.runtime import files, typed
from mer.fusion.runtime.files import AGAIN, CONFIG, HOLD, INFO, LOG, MODEL, SPLIT
from mer.pipeline.errors import DataError, KeyMismatchError
from mer.pipeline.runtime.limits import CONFIG_BYTES
from mer.pipeline.runtime.terminal import shown
from mer.pipeline.store import FeatureStore

LAST = files.LAST
CHUNK = 1 << 16  # rows of a table that are Python objects at a time
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
DIFFERENCE_CHARACTERS = 60  # of one difference in a message: two sha256 say no more than one
RECIPE = "recipe"  # where differences between stores are those of their recipes
LAYER_MEANS = "layer_means"  # the entry of a modality's recipe that says whether they are kept


@dataclass(frozen=True)
class Run:
    """A run folder and what its run.json says."""

    path: Path
    info: RunInfo

    @classmethod
    def open(cls, path: str | os.PathLike) -> Run:
        """The run of a folder.

        Args:
            path: The run folder.

        Returns:
            The run; of its files only run.json has been read.

        Raises:
            DataError: It is no run folder, or its run.json is damaged or of another version.
        """
        path = Path(path)
        where = path / INFO
        files.check_run(path)
        value = files.read_json(where, dict, AGAIN)
        if value.get("format") != RUN_FORMAT or value.get("version") != RUN_VERSION:
            said = f"{shown(value.get('format'), 40)} of version {shown(value.get('version'), 40)}"
            raise DataError(
                f"{where}: {said}, this mer reads {RUN_FORMAT} of version {RUN_VERSION}; {AGAIN}"
            )
        try:
            return cls(path, run_info(value))
        except ValueError as error:
            raise files.damaged(where, error, AGAIN) from None

    @property
    def children(self) -> list[Run]:
        """The runs of a group; a single run is its own child."""
        if not isinstance(self.info, GroupInfo):
            return [self]
        runs = [Run.open(self.path / name) for name in self.info.children]
        trainings: dict[str, Run] = {}
        for run in runs:
            ours = run.info.store_key == self.info.store_key
            if isinstance(run.info, GroupInfo) or not ours or not run.spec.alike(runs[0].spec):
                raise DataError(
                    f"{run.path / INFO}: not a run of the group that {self.path / INFO} names; "
                    f"{AGAIN}"
                )
            twin = trainings.setdefault(run.info.identity, run)
            if twin is not run:  # a copy: its figures would count twice
                raise DataError(
                    f"{run.path / INFO}: of the same training as {twin.path.name} beside it; "
                    f"{AGAIN}"
                )
        return runs

    @property
    def single(self) -> SingleInfo:
        """The record of one training.

        Raises:
            DataError: This is a group.
        """
        if not isinstance(self.info, SingleInfo):
            raise DataError(f"{self.path}: holds several runs; name one of them")
        return self.info

    @property
    def result(self) -> FinishedInfo:
        """The record of one finished training.

        Raises:
            DataError: It is not finished, or this is a group.
        """
        if not isinstance(self.single, FinishedInfo):
            raise self._unfinished()
        return self.single

    @property
    def config(self) -> TrainConfig:
        """The configuration that it was trained with.

        Raises:
            DataError: config.toml is damaged, or another run's.
        """
        path = self.path / CONFIG
        text = files.read_text(path, AGAIN, most=CONFIG_BYTES)
        try:
            config = configs.from_toml(text, str(path))
        except DataError as error:
            where = "" if str(error).startswith(str(path)) else f"{path}: "
            raise DataError(f"{where}{error}; {AGAIN}") from None
        self.verified(CONFIG)
        if config.model != self.info.model:
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
        if getattr(self.info, DIGESTS[name], None) not in (None, files.digest(path, AGAIN)):
            raise DataError(
                f"{path}: not the {WHAT[name]} that this training wrote ({INFO} has another "
                f"sha256); {AGAIN}"
            )
        return path

    @property
    def measures(self) -> metrics.Measures:
        """By whose definitions a regression is scored (fusion.metrics)."""
        return self.single.measures or metrics.measures_of(
            self.info.store.dataset,
            None,
            self.spec.labels if self.spec.task == "regression" else (),
        )

    @property
    def spec(self) -> DataSpec:
        return self.single.spec

    @property
    def fold(self) -> Fold | None:
        return self.single.fold

    @property
    def finished(self) -> bool:
        return self.info.finished

    def trained(self) -> Run:
        """This run; raises DataError when its training was not finished, or that of one of its
        children, or a configuration is damaged or not that of the others.
        """
        if not (self.finished and all(child.finished for child in self.children)):
            raise self._unfinished()
        children = self.children
        first = _without_seed(children[0].config)
        for child in children:
            if _without_seed(child.config) != first:
                raise DataError(
                    f"{child.path}: trained with other settings than {children[0].path.name} "
                    f"beside it; {AGAIN}"
                )
        return self

    def best(self) -> Run:
        """Of the trainings of a finished group the one that is best on dev."""

        def rank(child: Run) -> float:
            found = child.result
            value = found.dev.get(found.select_metric)
            if value is None:
                return math.inf
            return value if metrics.lower_is_better(found.select_metric) else -value

        return min(self.children, key=rank)

    def sound(self) -> Run:
        """This finished run; DataError when one of its files is not as the training wrote it."""
        for child in self.trained().children:
            for name in DIGESTS:
                child.verified(name)
        return self

    @property
    def reads(self) -> tuple[str, ...]:
        """The modalities that its model reads: all that it was given features of, or fewer.

        Raises:
            DataError: The configuration is damaged.
        """
        config = self.config
        model: FusionModel = build(config.model, config.model_args, self.spec)
        return tuple(m for m in self.spec.modalities if m in model.core.modalities)

    def model(self, device: torch.device | str = "cpu") -> FusionModel:
        """The model with the weights that dev chose, in eval mode.

        Args:
            device: Where it is to be.

        Raises:
            DataError: The configuration or the weights are damaged, or not this run's.
        """
        config = self.config
        path = self.path / MODEL
        tensors, _ = load_tensors(path)
        self.verified(MODEL)
        model: FusionModel = build(config.model, config.model_args, self.spec)
        fill(model, tensors, f"{path}: does not fit {config.model} of this mer")
        return model.to(device).eval()

    def _unfinished(self) -> DataError:
        return DataError(
            f"{self.path}: the training is not finished; run the same `mer train` command again, "
            "or leave it out"
        )


def _without_seed(config: TrainConfig) -> TrainConfig:
    """What the runs of a group have in common."""
    return replace(config, train=replace(config.train, seed=0))


def strangers(folder: Path, *ours: str) -> set[str]:
    """Names in `folder` that are neither `ours`, the hold, nor what a killed write left behind (the
    next write of that file removes it).
    """
    names = {p.name for p in folder.iterdir()} if folder.exists() else set()
    return {name for name in names if not files.LEFT_BEHIND.fullmatch(name)} - {HOLD, *ours}


def fill(model: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Load weights into a model.

    Args:
        model: It is changed only when all of them fit.
        tensors: By the names of the model's state.
        where: Opens the message.

    Raises:
        DataError: A tensor is missing, unknown, of another shape or type, or not finite where the
            model's own is; names the first.
    """
    wanted = model.state_dict()
    odd = [f"it has no {k}" for k in wanted if k not in tensors]
    odd += [f"the model has no {k}" for k in tensors if k not in wanted]
    unfit = (_unfit(k, tensors[k], wanted[k]) for k in wanted if k in tensors)
    odd += [said for said in unfit if said is not None]
    if odd:
        more = f"; and {len(odd) - 1} more" if len(odd) > 1 else ""
        raise DataError(f"{where} ({shown(odd[0])}{more}); train again into a new folder")
    model.load_state_dict(dict(tensors))


def _unfit(name: str, tensor: Tensor, wanted: Tensor) -> str | None:
    """Why `tensor` cannot stand for `wanted`; None: it can."""
    if tensor.shape != wanted.shape:
        return f"{name} is {tuple(tensor.shape)}, expected {tuple(wanted.shape)}"
    if tensor.dtype != wanted.dtype:
        return f"{name} is {tensor.dtype}, expected {wanted.dtype}"
    if wanted.isfinite().all() and not tensor.isfinite().all():
        return f"{name} has values that are not finite"
    return None


def check_store(run: Run, store: FeatureStore) -> list[str]:
    """Hold a store against what a run was trained on.

    Other clips under the same recipe are fine (another corpus, new utterances).

    Args:
        run: One training.
        store: What it is to be evaluated on.

    Returns:
        Lines that say in what else the store is another one.

    Raises:
        KeyMismatchError: It holds another kind of features or labels; names what differs.
    """
    now = describe_store(store)
    _check_kind(run, store, now)
    if run.spec.context is not None:
        context.check(store.table(), run.spec.context, str(store.path), context.OTHER_RUN)
    if not same_rows(run, store):
        return [
            f"{store.path} has other clips, labels or splits than the run was trained on (same "
            f"recipe; dataset {now.dataset})"
        ]
    return []


def _check_kind(run: Run, store: FeatureStore, now: StoreInfo) -> None:
    """Raise KeyMismatchError where a store, described as `now`, has not the features and labels
    that a run reads.
    """
    then, used = run.info.store, run.spec.sources
    missing = [name for name in used if name not in now.modalities]
    if missing:
        raise KeyMismatchError(
            f"{store.path}: has no {', '.join(missing)}, which {run.path} was trained on"
        )
    bare = [name for name, one in used.items() if one.means and not now.modalities[name].layers]
    if bare:
        raise KeyMismatchError(
            f"{store.path}: has no layer means of {', '.join(bare)}, which {run.path} mixes; "
            "extract it again with --layer-means --force"
        )
    joined = then.origins is not None or now.origins is not None
    differs = configs.differences(_kind_of(then, used, joined), _kind_of(now, used, joined))
    if _recipe_unknown(then) and now.origins is not None:
        differs = [line for line in differs if not line.startswith(f"{RECIPE}.")]
    if differs:
        more = f" (and {len(differs) - 3} more)" if len(differs) > 3 else ""
        if then.task == "single" and all(line.startswith("labels") for line in differs):
            more += "; --map LABEL=ANSWER,... reads its labels as the run's"
        raise KeyMismatchError(
            f"{store.path}: not the kind of store {run.path} was trained on: "
            f"{'; '.join(shown(line, DIFFERENCE_CHARACTERS) for line in differs[:3])}{more}"
        )


def same_rows(run: Run, store: FeatureStore) -> bool:
    """Whether a store has the clips, labels and splits that a run was trained on; for one with
    context, in the same order of turns.
    """
    turns = run.info.turns_key
    if turns is not None and turns != context.key(store.table()):
        return False
    return store_key(store) == run.info.store_key


def _recipe_unknown(store: StoreInfo) -> bool:
    """Whether nothing is known of how a store was made: it was imported, or joined and trained on
    by an earlier mer.
    """
    return not store.recipe and store.origins is None


def _kind_of(store: StoreInfo, used: Mapping[str, FeatureSet], joined: bool) -> dict[str, Any]:
    """What two stores must share for one to be evaluated by a model trained on the other.

    Layer means that the model does not read may be there or not. Where one of the stores is
    `joined` the recipes are compared by modality, as those of its members may differ.
    """
    features: dict[str, Any] = {}
    for name, one in used.items():
        features[name] = typed.tree(store.modalities[name])
        if not one.means:
            features[name].pop("layers", None)
    recipe: dict[str, Any] = {}
    if joined:
        for name, one in used.items():
            there, whole = _origin(store, name)
            plain = {key: part for key, part in whole.items() if not isinstance(part, dict)}
            part = whole.get(there)
            recipe[name] = {**plain, **_asked(part, one)} if isinstance(part, dict) else {}
    else:
        for name, part in store.recipe.items():
            if name not in store.modalities:
                recipe[name] = part
            elif name in used:
                recipe[name] = _asked(part, used[name])
    return {"task": store.task, "labels": list(store.labels), **features, RECIPE: recipe}


def _origin(store: StoreInfo, name: str) -> tuple[str, dict[str, Any]]:
    """The name of a modality in the store that it was made for, and the recipe of that."""
    if store.origins is None:
        return name, store.recipe
    return store.origins[name].modality, store.origins[name].recipe


def _asked(part: Any, one: FeatureSet) -> Any:
    """What a recipe says of a modality, without layer means that the model does not read."""
    return {**part, LAYER_MEANS: None} if isinstance(part, dict) and not one.means else part


def describe_store(store: FeatureStore) -> StoreInfo:
    """What a run remembers of its store."""
    h = store.header
    kept = [f.name for f in fields(StoredModality)]
    modalities = {}
    for m, info in h.modalities.items():
        modalities[m] = {name: getattr(info, name) for name in kept}
    described = {
        "dataset": h.dataset,
        "task": h.task,
        "labels": list(h.labels),
        "language": h.language,
        "modalities": modalities,
        "fingerprint": h.fingerprint,
        "recipe": dict(h.recipe),
        "origins": _origins(store) if store.members else None,
    }
    return typed.convert(StoreInfo, json.loads(json.dumps(described, default=str)))


def _origins(store: FeatureStore) -> dict[str, dict[str, Any]]:
    """Where each modality of a joined store came from, as `Origin` has it."""
    found = {}
    for number, record in enumerate(store.members):
        header = store.member(number).header
        for name, there in record.modalities.items():
            recipe = {}
            if isinstance(header.recipe.get(there), dict):
                others = header.modalities.keys() - {there}
                recipe = {key: part for key, part in header.recipe.items() if key not in others}
            found[name] = {
                "store": os.path.normpath(record.path),
                "modality": there,
                "recipe": recipe,
            }
    return found


def store_key(store: FeatureStore) -> str:
    """Changes when features, labels, splits or groups change: the same run folder is only continued
    on the same key.
    """
    described = typed.tree(describe_store(store))
    # where the members lie is no feature, and what they hold is in the fingerprint of the join
    described.pop("origins", None)
    h = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    table = store.table()
    lengths = [c for c in table.column_names if c.startswith("n_")]
    groups = ("dialogue", "speaker", "session")
    for name in ("id", "split", "label", "targets", *groups, *lengths, "folds"):
        if name in table.column_names:
            # the JSON of [name, values], never whole in memory
            h.update(f"[{json.dumps(name)}, [".encode())
            for at in range(0, len(table), CHUNK):
                values = table[name].slice(at, CHUNK).to_pylist()
                inside = json.dumps(values, ensure_ascii=False)[1:-1]
                h.update(f"{', ' if at else ''}{inside}".encode())
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
        why = shown(str(error) or type(error).__name__)
        raise DataError(f"{path}: damaged checkpoint ({why}); {remedy}") from None
    return tensors, meta


def _seal(tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> str:
    h = hashlib.sha256(json.dumps(meta, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        h.update(f"\n{json.dumps(name)} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        h.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return h.hexdigest()
