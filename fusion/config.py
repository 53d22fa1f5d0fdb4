"""The configuration of a training run: frozen dataclasses hold the only defaults, TOML presets and
`--set` change them.

A preset is TOML with the key `model` and any of the tables [model_args], [data], [optim], [train];
`--set TABLE.KEY=VALUE` changes one value. [model_args] holds the arguments of the model's own
config class (fusion/models).
"""

from __future__ import annotations

import dataclasses
import math
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import tomli_w

from mer.fusion.models import REGISTRY, model_class
from mer.fusion.runtime import typed
from mer.pipeline.errors import DataError, Together
from mer.pipeline.runtime.files import near
from mer.pipeline.runtime.limits import CONFIG_BYTES, CONFIG_DOTS, CONFIG_LEVELS, CONFIG_LIST_ITEMS
from mer.pipeline.runtime.terminal import did_you_mean, initials, listed, shown

T = TypeVar("T")
SEEDS = 1 << 62  # with room for the seeds of a group
LARGE = 1e30  # what fits into fp32, with room for products
CONTEXT_WIDTH = 256  # turns on each side at most: beyond it a batch is mostly neighbours
NAMED_PRESETS = 8  # in an error, before how many more there are
COUNT = 1 << 31  # beyond it a whole number is no size, count or seed that torch takes
PRESETS = Path(__file__).parent / "presets"


@dataclass(frozen=True)
class DataConfig:
    """Which features a model sees, and which rows choose."""

    # "all" that the store has, or a list: "audio,text". A modality with several feature sets reads
    # the one that is named (audio.egemaps), or some joined: audio+audio.egemaps
    modalities: str | tuple[str, ...] = "all"
    # of features kept of several layers: auto: mix where the store has them; stored: the steps as
    # they are stored; mix: a learned weighted sum over the layers
    layers: Literal["auto", "stored", "mix"] = typed.added("auto")
    # mean-pool sequences to at most about this rate, from the header's frame rate; inf: as stored
    pool_hz: float = 12.5
    # let the model z-score its input by the training rows (model.calibrate); kept in its checkpoint
    standardise: bool = True
    # auto: on the device when it fits in half of its free memory
    residence: Literal["auto", "device", "stream"] = "auto"
    # of the training rows, when the store has no dev split and in every fold
    dev_share: float = 0.15
    # auto: the first of these three the store has
    dev_by: Literal["auto", "dialogue", "speaker", "session", "utterance"] = "auto"
    split_seed: int = 0  # which groups become dev; the same for every training seed
    # turns of its dialogue that an utterance is seen with: none; past: those before it; both: also
    # those after it, another task
    context: Literal["none", "past", "both"] = typed.added("none")
    context_width: int = typed.added(8)  # how many at most, on each side
    # single labels: learn the shares of the raters, where a row has them, instead of its label
    soft_labels: bool = typed.added(False)
    # unimodal heads learn what their modality says by itself, where a store has such labels,
    # instead of the common label
    unimodal_labels: bool = typed.added(False)

    def __post_init__(self) -> None:
        if not isinstance(self.modalities, str):  # a list in TOML
            object.__setattr__(self, "modalities", ",".join(self.modalities))


@dataclass(frozen=True)
class OptimConfig:
    """AdamW and its learning rate."""

    lr: float = 3e-4
    weight_decay: float = 0.01  # not on biases, norms and other one-dimensional parameters
    betas: tuple[float, float] = (0.9, 0.98)
    warmup: float = 0.05  # share of all steps
    # plateau: constant, times `plateau_factor` whenever the dev loss has not improved for more than
    # `plateau_patience` epochs (ReduceLROnPlateau)
    schedule: Literal["cosine", "constant", "plateau"] = "cosine"
    plateau_factor: float = typed.added(0.5)
    plateau_patience: int = typed.added(5)
    clip: float = 1.0  # of the gradient's norm; inf: none
    # of each number of the gradient, after every batch; inf: none
    clip_value: float = typed.added(math.inf)
    accumulate: int = 1  # batches per step
    # mean: over their rows; sum: of the batches' means, and the last, smaller group of an epoch
    # takes no step
    accumulate_as: Literal["mean", "sum"] = typed.added("mean")
    # of an exponential moving average of the weights, which dev then scores and the run keeps;
    # 0: none. With n steps in an epoch 1 - 1/n averages over about an epoch
    ema: float = typed.added(0.0)


@dataclass(frozen=True)
class LoopConfig:
    """Epochs and batches."""

    epochs: int = 40
    batch_size: int = 32
    patience: int = 8  # epochs without a better dev score before stopping
    # epochs that follow then, over which the learning rate falls to 0; 0: none, the training stops
    # at whatever rate the schedule has reached
    cooldown: int = typed.added(0)
    # dev metric that chooses the epoch; auto: wf1 (single), weighted_f1 (multi), mae (regression)
    select_metric: str = "auto"
    # weight of a sample's classification loss: 1/n_c, 1/sqrt(n_c)
    class_weight: Literal["none", "balanced", "sqrt"] = "none"
    # probability with which a training row loses each of its modalities, never all of them
    modality_dropout: float = typed.added(0.0)
    # temperature: one number fitted on dev that makes probabilities mean what they say
    calibrate: Literal["none", "temperature"] = typed.added("none")
    # auto: bf16 autocast on CUDA, fp32 elsewhere
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    seed: int = 0


@dataclass(frozen=True)
class TrainConfig:
    """All of it."""

    model: str = "drkf"
    model_args: Any = None  # an instance of the model's config class; None: its defaults
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: LoopConfig = field(default_factory=LoopConfig)

    def __post_init__(self):
        if self.model_args is None:
            object.__setattr__(self, "model_args", model_class(self.model)[1]())
        _check(self)


PLAIN = {"data": DataConfig, "optim": OptimConfig, "train": LoopConfig}
TABLES = ("model_args", *PLAIN)


def load(
    *, model: str | None = None, preset: str | None = None, sets: Iterable[str] = ()
) -> TrainConfig:
    """The configuration that `--model`, `--preset` and `--set` ask for.

    Without a preset the one named like the model is taken where it exists, so `load()` is DRKF with
    the preset `drkf`.
    """
    sets = list(sets)
    tree = check(model=model, preset=preset, sets=sets)
    return override(from_tree(tree, f"preset {preset or tree['model']}"), sets)


def check(
    *, model: str | None = None, preset: str | None = None, sets: Iterable[str] = ()
) -> dict[str, Any]:
    """What can be told of them without the model's module, which imports torch.

    Returns:
        The tree of the preset.

    Raises:
        DataError: One of them is wrong.
        SeveralErrors: Several are.
    """
    checks = Together()
    for text in sets:
        checks.of(partial(_checked, text))
    tree = checks.of(lambda: _tree(model, preset))
    checks.settle()
    return tree


def _checked(text: str) -> None:
    """Raise DataError for a `TABLE.KEY=VALUE` that is none; of [model_args] as far as can be told
    without the model.
    """
    path, table, tree = _parse(text)
    if table != "model_args":
        _fill(PLAIN[table](), tree, f"--set {shown(path, 40)}: {table}")


def _tree(model: str | None, preset: str | None) -> dict[str, Any]:
    """The tree of the preset that `--model` and `--preset` name; has the key `model`."""
    known = presets()
    if preset is None:
        name = model or TrainConfig.model
        if name not in REGISTRY:
            raise DataError(
                f"--model {name}: unknown{did_you_mean(name, REGISTRY)}; known: "
                f"{', '.join(REGISTRY)}"
            )
        return read(known[name], f"preset {name}") if name in known else {"model": name}
    else:
        path = known.get(preset, Path(preset))
        if preset not in known and not path.is_file():
            guess = did_you_mean(preset, known) or near(preset)
            raise DataError(
                f"--preset {shown(preset)}: no such preset or file{guess}; presets: "
                f"{listed(known, NAMED_PRESETS)}"
            )
        tree = read(path, f"preset {preset}")
        if model is not None and tree.get("model", model) != model:
            raise DataError(
                f"--preset {preset} is for model {shown(tree['model'])}, not for --model {model}; "
                "give one of the two"
            )
        tree.setdefault("model", model or TrainConfig.model)
        return tree


def keys() -> list[str]:
    """`TABLE.KEY` of every setting but those of [model_args]."""
    return [f"{table}.{f.name}" for table, kind in PLAIN.items() for f in dataclasses.fields(kind)]


def left_out() -> dict[str, Any]:
    """Every `TABLE.KEY` that a file leaves out at its default, with that; [model_args] aside."""
    found = {}
    for table, kind in PLAIN.items():
        for one in dataclasses.fields(kind):
            if "added" in one.metadata:
                found[f"{table}.{one.name}"] = one.metadata["added"]
    return found


def _elsewhere(key: str, table: str) -> str:
    """A guess at a setting in another table than the one that was named."""
    ends = {one.rpartition(".")[2]: one for one in keys() if not one.startswith(f"{table}.")}
    found = key if key in ends else initials(key)
    return f" (did you mean '{ends[found]}'?)" if found in ends else ""


def presets() -> dict[str, Path]:
    """Name -> file of every preset that comes with mer."""
    return {p.stem: p for p in sorted(PRESETS.glob("*.toml"))}


def from_tree(tree: Mapping[str, Any], where: str) -> TrainConfig:
    """A config from parsed TOML; `where` opens the error messages."""
    unknown = set(tree) - {"model", *TABLES}
    if unknown:
        key = sorted(unknown)[0]
        raise DataError(
            f"{where}: unknown key '{shown(key)}'{did_you_mean(key, ('model', *TABLES))}; known: "
            f"model, {', '.join(TABLES)}"
        )
    name = tree.get("model", TrainConfig.model)
    if not isinstance(name, str) or name not in REGISTRY:
        raise DataError(
            f"{where}: unknown model '{shown(name)}'{did_you_mean(str(name), REGISTRY)}; known: "
            f"{', '.join(REGISTRY)}"
        )
    return filled(TrainConfig(model=name), tree, where)


def filled(config: TrainConfig, tree: Mapping[str, Any], where: str) -> TrainConfig:
    """`config` with what the tables of `tree` name replaced; `where` opens the error messages."""
    named = [table for table in TABLES if table in tree]
    try:
        tables = {t: _fill(getattr(config, t), tree[t], f"{where}: {t}") for t in named}
        return replace(config, **tables)
    except DataError as error:  # of values that make no sense, or not together
        said = str(error)
        raise DataError(said if said.startswith(where) else f"{where}: {said}") from None


def override(config: TrainConfig, sets: Iterable[str]) -> TrainConfig:
    """Apply `TABLE.KEY=VALUE` strings; later ones win."""
    for path, table, tree in map(_parse, sets):
        config = replace(
            config,
            **{table: _fill(getattr(config, table), tree, f"--set {shown(path, 40)}: {table}")},
        )
    return config


def _parse(text: str) -> tuple[str, str, dict[str, Any]]:
    """(path, table, what is to be filled in there) of a `TABLE.KEY=VALUE`."""
    path, equals, value = text.partition("=")
    path = path.strip()
    asked = shown(text, 40)
    table, dot, key = path.partition(".")
    if not equals or not dot:
        guess = _elsewhere(path, "") or did_you_mean(path, keys())
        raise DataError(
            f"--set {asked}: write TABLE.KEY=VALUE, for example optim.lr=3e-5{guess}; tables: "
            f"{', '.join(TABLES)}"
        )
    if table not in TABLES:
        raise DataError(
            f"--set {asked}: unknown table '{shown(table, 60)}'{did_you_mean(table, TABLES)}; "
            f"tables: {', '.join(TABLES)}"
        )
    if path.count(".") > CONFIG_LEVELS:
        raise DataError(
            f"--set {asked}: more than {CONFIG_LEVELS} tables within each other; tables: "
            f"{', '.join(TABLES)}"
        )
    tree: Any = value.strip()
    for part in reversed(key.split(".")):
        tree = {part: tree}
    return path, table, tree


def to_tree(config: TrainConfig) -> dict[str, Any]:
    """Plain TOML values of the whole resolved configuration; None is written as "none"."""
    return _spell_none(typed.tree(config))


def _spell_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _spell_none(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_spell_none(inner) for inner in value]
    return "none" if value is None else value


def to_toml(config: TrainConfig) -> str:
    return tomli_w.dumps(to_tree(config))


def from_toml(text: str, where: str) -> TrainConfig:
    return from_tree(parse(text, where), where)


def parse(text: str, where: str) -> dict[str, Any]:
    """TOML as a tree of bounded size, depth and numbers.

    Raises:
        DataError: It is not, opened by `where`.
    """
    try:
        if any(line.partition("=")[0].count(".") > CONFIG_DOTS for line in text.splitlines()):
            raise ValueError(f"a key of more than {CONFIG_DOTS} parts")
        tree = tomllib.loads(text)
        _bound(tree, 0)
    # ValueError: TOMLDecodeError is one; so are numbers too long
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not valid TOML ({shown(error)})") from None
    return tree


def _bound(value: Any, depth: int) -> None:
    """Raise ValueError for what no configuration has and what would be endless to print."""
    if depth > CONFIG_LEVELS:
        raise ValueError(f"more than {CONFIG_LEVELS} tables within each other")
    if isinstance(value, Mapping):
        for inner in value.values():
            _bound(inner, depth + 1)
    elif isinstance(value, list):
        if len(value) > CONFIG_LIST_ITEMS:
            raise ValueError(f"a list of {len(value):,} items")
        for inner in value:
            _bound(inner, depth + 1)
    elif isinstance(value, int) and abs(value) >= 1 << 63:
        raise ValueError("a whole number beyond 64 bits")


def differences(a: Mapping[str, Any], b: Mapping[str, Any], prefix: str = "") -> list[str]:
    """`key: a -> b` for every leaf in which two trees differ. A setting that a configuration leaves
    out at its default has that.
    """
    found, unsaid = [], left_out()
    for key in sorted(set(a) | set(b)):
        default = unsaid.get(f"{prefix}{key}", "absent")
        left, right = a.get(key, default), b.get(key, default)
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            found += differences(left, right, f"{prefix}{key}.")
        elif left != right:
            found.append(f"{prefix}{key}: {left} -> {right}")
    return found


def read(path: Path, where: str) -> dict[str, Any]:
    """The tree of a preset."""
    with path.open("rb") as file:
        raw = file.read(CONFIG_BYTES + 1)
    if len(raw) > CONFIG_BYTES:
        raise DataError(f"{where}: {path} has more than {CONFIG_BYTES:,} bytes: no preset")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise DataError(f"{where}: {path} is not valid TOML (not UTF-8)") from None
    return parse(text, f"{where}: {path}")


def _fill(instance: T, values: Any, where: str) -> T:
    """A table of the configuration with the fields that `values` names replaced.

    Args:
        instance: The table as it is.
        values: Of TOML or `--set`, each converted to the type of its field.
        where: Opens the messages.

    Returns:
        A new table.

    Raises:
        DataError: There is no such field, or a value is not of its type.
    """
    hints = typed.hints(type(instance))  # type: ignore[arg-type]
    if not isinstance(values, Mapping):
        raise DataError(f"{where} is a table of keys, not a value; known: {', '.join(hints)}")
    changed = {}
    for key, value in values.items():
        if key not in hints:
            guess = did_you_mean(key, hints) or _elsewhere(key, where.rpartition(" ")[2])
            raise DataError(
                f"{where}: unknown key '{shown(key, 40)}'{guess}; known: "
                f"{shown(', '.join(hints), 130)}"
            )
        current, at = getattr(instance, key), f"{where}.{key}"
        changed[key] = (
            _fill(current, value, at)
            if is_dataclass(current)
            else _converted(hints[key], value, at)
        )
    try:
        return replace(instance, **changed)  # type: ignore[type-var]
    except ValueError as error:  # a config class may check its own values
        raise DataError(f"{where}: {error}") from None


def _converted(kind: Any, value: Any, where: str) -> Any:
    """A TOML value, or the text of a `--set`, as `kind`; raises DataError that names both."""
    try:
        return typed.convert(kind, value, where, spelled=True)
    except typed.Misfit as error:
        options = error.expected.removeprefix("one of ").split(", ")
        guess = did_you_mean(str(error.value), options) if len(options) > 1 else ""
        raise DataError(
            f"{error.where} = {shown(error.value)!r}: expected {error.expected}{guess}"
        ) from None


def _check(config: TrainConfig) -> None:
    """Values that have the right type and still make no sense."""
    d, o, t = config.data, config.optim, config.train
    rules = [
        (d.pool_hz > 0, "data.pool_hz", d.pool_hz, "above 0 (inf: as stored)"),
        (0 < d.dev_share < 1, "data.dev_share", d.dev_share, "between 0 and 1"),
        (0 < o.lr < math.inf, "optim.lr", o.lr, "above 0 and finite"),
        (0 <= o.weight_decay < math.inf, "optim.weight_decay", o.weight_decay, "at least 0"),
        (all(0 <= b < 1 for b in o.betas), "optim.betas", o.betas, "two numbers in [0, 1)"),
        (0 <= o.warmup <= 1, "optim.warmup", o.warmup, "a share between 0 and 1"),
        (o.clip > 0, "optim.clip", o.clip, "above 0 (inf: none)"),
        (0 < o.plateau_factor < 1, "optim.plateau_factor", o.plateau_factor, "between 0 and 1"),
        (
            0 <= o.plateau_patience < COUNT,
            "optim.plateau_patience",
            o.plateau_patience,
            "at least 0 and below 2^31",
        ),
        (o.clip_value > 0, "optim.clip_value", o.clip_value, "above 0 (inf: none)"),
        (1 <= o.accumulate < COUNT, "optim.accumulate", o.accumulate, "at least 1 and below 2^31"),
        (0 <= o.ema < 1, "optim.ema", o.ema, "at least 0 and below 1"),
        (0 <= t.modality_dropout < 1, "train.modality_dropout", t.modality_dropout, "in [0, 1)"),
        (1 <= t.epochs < COUNT, "train.epochs", t.epochs, "at least 1 and below 2^31"),
        (1 <= t.batch_size < COUNT, "train.batch_size", t.batch_size, "at least 1 and below 2^31"),
        (1 <= t.patience < COUNT, "train.patience", t.patience, "at least 1 and below 2^31"),
        (0 <= t.cooldown < COUNT, "train.cooldown", t.cooldown, "at least 0 and below 2^31"),
        (0 <= t.seed < SEEDS, "train.seed", t.seed, "at least 0 and below 2^62"),
        (
            1 <= d.context_width <= CONTEXT_WIDTH,
            "data.context_width",
            d.context_width,
            f"at least 1 and at most {CONTEXT_WIDTH}",
        ),
        (0 <= d.split_seed < SEEDS, "data.split_seed", d.split_seed, "at least 0 and below 2^62"),
    ]
    for f in dataclasses.fields(config.model_args):
        value = getattr(config.model_args, f.name)
        for one in value if isinstance(value, tuple) else (value,):
            holds, expected = _plausible(f.name, one)
            rules.append((holds, f"model_args.{f.name}", value, expected))
    for holds, key, value, expected in rules:
        if not holds:
            raise DataError(f"{key} = {shown(value)}: must be {expected}")


def _plausible(name: str, value: Any) -> tuple[bool, str]:
    """(whether a model's argument can be meant, what it must be).

    By type and name: all its whole numbers are sizes and counts.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return True, ""
    if isinstance(value, int):
        return 1 <= value < COUNT, "at least 1" if value < 1 else "below 2^31"
    # of loss terms, that of a shared part among them: below 0 one would be learnt backwards
    if name.startswith(("w_", "weight_")):
        return 0 <= value < LARGE, "at least 0 (0: off) and finite"
    if any(word in name for word in ("dropout", "smoothing", "noise", "share", "decay")):
        return 0 <= value <= 1, "between 0 and 1"
    if "temperature" in name:
        return 0 < value < LARGE, "above 0"
    return abs(value) < LARGE, "a finite number"
