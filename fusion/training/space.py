"""Which configurations `mer tune` draws from: a space per model, declared in TOML.

A space has the key `model` and any of the tables of a preset. There a value is

- `[a, b, c]`: one of these, each as likely
- `{ low = 1e-4, high = 1e-2, log = true }`: between two bounds, both included; `log`: uniform in
  the logarithm; whole numbers where the setting is one
- anything else: the same in every trial
"""

from __future__ import annotations

import math
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mer.fusion import config as configs
from mer.fusion.config import TABLES, TrainConfig
from mer.fusion.models import REGISTRY
from mer.fusion.runtime import typed
from mer.pipeline.errors import DataError
from mer.pipeline.runtime.files import near
from mer.pipeline.runtime.terminal import did_you_mean, shown

SPACES = Path(__file__).parent / "spaces"
BOUNDS = ("low", "high", "log")
DIGITS = 4  # significant ones of a number that is drawn between bounds
# What is measured, and on which rows. Trials that differ in these could not be compared.
MEASURE = (
    "train.seed",
    "train.select_metric",
    "data.dev_share",
    "data.dev_by",
    "data.split_seed",
    "data.soft_labels",  # rows without a label train then, so that another dev part is carved
)
Settings = dict[str, Any]  # TABLE.KEY -> value


@dataclass(frozen=True)
class Choice:
    """A setting that is one of several values."""

    values: tuple[Any, ...]

    def draw(self, rng: np.random.Generator) -> Any:
        """A value, each with the same probability."""
        return self.values[int(rng.integers(len(self.values)))]

    @property
    def extremes(self) -> tuple[Any, ...]:
        """Values that are valid only if all are."""
        return self.values


@dataclass(frozen=True)
class Between:
    """A number between two bounds, both included."""

    low: float
    high: float
    log: bool
    whole: bool

    def draw(self, rng: np.random.Generator) -> int | float:
        """Uniform between the bounds, or in the logarithm."""
        if self.whole and not self.log:
            return int(rng.integers(int(self.low), int(self.high) + 1))
        low, high = (math.log(end) if self.log else end for end in (self.low, self.high))
        value = low + float(rng.random()) * (high - low)
        return self.rounded(math.exp(value) if self.log else value)

    def rounded(self, value: float) -> int | float:
        """A number that is read easily, and still lies between the bounds."""
        value = round(value) if self.whole else float(f"{value:.{DIGITS}g}")
        return type(value)(min(max(value, self.low), self.high))

    @property
    def extremes(self) -> tuple[Any, ...]:
        """Values that are valid only if all are."""
        return (self.rounded(self.low), self.rounded(self.high))


@dataclass(frozen=True)
class Space:
    """What is drawn for a model, and the settings that are fixed for all of its trials."""

    model: str
    where: str
    fixed: Settings
    drawn: dict[str, Choice | Between]

    def draw(self, seed: int, trial: int) -> Settings:
        """The settings of a trial: they depend on the space, the model, the seed and the number of
        the trial, and on no other trial.
        """
        rng = np.random.default_rng([seed, trial, *self.model.encode()])
        return {key: self.drawn[key].draw(rng) for key in sorted(self.drawn)}

    def applied(self, base: TrainConfig, settings: Mapping[str, Any]) -> TrainConfig:
        """The configuration of a trial.

        Args:
            base: What the space does not name.
            settings: Those that were drawn.

        Raises:
            DataError: They do not go together.
        """
        return configs.filled(base, _tree({**self.fixed, **settings}), self.where)

    def without(self, keys: Iterable[str]) -> Space:
        """The space with some settings left to the base configuration."""
        gone = set(keys)
        fixed = {key: value for key, value in self.fixed.items() if key not in gone}
        drawn = {key: one for key, one in self.drawn.items() if key not in gone}
        return Space(self.model, self.where, fixed, drawn)

    def values(self, key: str) -> tuple[Any, ...]:
        """Those that it gives a setting; of bounds both ends, and none of a setting that it leaves
        to the base configuration.
        """
        if key in self.drawn:
            return self.drawn[key].extremes
        return (self.fixed[key],) if key in self.fixed else ()

    def check_drawn(self) -> None:
        """Raise DataError where every trial would be the same training."""
        if not self.drawn:
            raise DataError(
                f"{self.where}: nothing is left to draw, so that every trial would be the same; "
                "fix fewer of its settings with --set, or train with `mer train`"
            )

    def tree(self) -> dict[str, Any]:
        """As JSON, for the identity of a search."""
        drawn = {key: typed.tree(one) for key, one in self.drawn.items()}
        return {"model": self.model, "fixed": typed.tree(self.fixed), "drawn": drawn}


def spaces_of(models: Sequence[str], paths: Iterable[Path] = ()) -> list[Space]:
    """The space of each model.

    Args:
        models: Names of the registry, each once.
        paths: Spaces of the user, in place of those that come with mer.

    Raises:
        DataError: A model is unknown or named twice, or a space is wrong or of no model here.
    """
    for place, name in enumerate(models):
        if name not in REGISTRY:
            raise DataError(
                f"--model {shown(name, 60)}: unknown{did_you_mean(name, REGISTRY)}; known: "
                f"{', '.join(REGISTRY)}"
            )
        if name in models[:place]:
            raise DataError(f"--model {name}: named twice")
    own: dict[str, Space] = {}
    for path in paths:
        space = read(path, f"--space {shown(path, 120)}", models)
        if space.model in own:
            raise DataError(f"{space.where}: a second space for {space.model}; give one a model")
        own[space.model] = space
    return [own.get(name) or read(SPACES / f"{name}.toml", f"space {name}") for name in models]


def read(path: Path, where: str, models: Sequence[str] = ()) -> Space:
    """The space of a file.

    Args:
        path: The file.
        where: Opens the messages.
        models: What it may be for; none named: it says itself what it is for. Of a single one it
            need not say so.

    Raises:
        DataError: It is no space, or for another model.
    """
    if not path.is_file():
        raise DataError(f"{where}: no such file{near(path)}")
    tree = configs.read(path, where)
    unknown = sorted(set(tree) - {"model", *TABLES})
    if unknown:
        guess = did_you_mean(unknown[0], ("model", *TABLES))
        known = ", ".join(TABLES)
        raise DataError(
            f"{where}: unknown key '{shown(unknown[0], 40)}'{guess}; known: model, {known}"
        )
    model = tree.get("model", models[0] if len(models) == 1 else None)
    if model is None:
        raise DataError(f'{where}: says no model; add a line such as model = "{models[0]}"')
    if models and model not in models:
        guess = did_you_mean(str(model), models)
        raise DataError(f"{where}: is for {shown(model, 60)}, not for {', '.join(models)}{guess}")
    return _space(str(model), tree, where)


def _space(model: str, tree: Mapping[str, Any], where: str) -> Space:
    base = TrainConfig(model=model)
    fixed: Settings = {}
    drawn: dict[str, Choice | Between] = {}
    for table in (name for name in TABLES if name in tree):
        if not isinstance(tree[table], Mapping):
            raise DataError(f"{where}: {table} is a table of settings, not a value")
        for key, value in tree[table].items():
            path = f"{table}.{key}"
            if path in MEASURE:
                raise DataError(
                    f"{where}: {path} decides what is measured, so it must be the same for all; "
                    f"give it with --set {path}=VALUE"
                )
            if key not in _hints(base, table):
                configs.filled(base, {table: {key: value}}, where)  # says what is known
            if isinstance(value, list):
                drawn[path] = _choice(value, f"{where}: {path}")
            elif isinstance(value, Mapping):
                drawn[path] = _between(base, table, key, value, f"{where}: {path}")
            else:
                fixed[path] = value
    space = Space(model, where, fixed, drawn)
    if not drawn:
        raise DataError(
            f"{where}: there is nothing to draw; write optim.lr as [1e-4, 1e-3], or as "
            "{ low = 1e-4, high = 1e-2, log = true }"
        )
    space.applied(base, {})
    for path, one in drawn.items():
        for value in one.extremes:
            space.applied(base, {path: value})
    return space


def _choice(values: list[Any], where: str) -> Choice:
    if not values:
        raise DataError(f"{where} = []: an empty list; name what may be drawn")
    return Choice(tuple(tuple(value) if isinstance(value, list) else value for value in values))


def _between(
    base: TrainConfig, table: str, key: str, value: Mapping[str, Any], where: str
) -> Between:
    unknown = sorted(set(value) - set(BOUNDS))
    if unknown:
        guess = did_you_mean(unknown[0], BOUNDS)
        raise DataError(f"{where}: unknown '{shown(unknown[0], 40)}'{guess}; known: low, high, log")
    kinds = _kinds(base, table, key)
    if not kinds & {int, float}:
        raise DataError(f"{where}: no number, so it has no bounds; list its values")
    low, high = (_end(value, name, where) for name in ("low", "high"))
    whole = float not in kinds
    if whole and not (isinstance(low, int) and isinstance(high, int)):
        raise DataError(f"{where}: bounds {low} and {high} of a whole number; write whole numbers")
    if low >= high:
        why = "the bounds are reversed" if low > high else "the bounds are equal"
        raise DataError(f"{where}: low = {low}, high = {high}: {why}")
    log = value.get("log", False)
    if not isinstance(log, bool):
        raise DataError(f"{where}: log = {shown(log, 40)}: expected true or false")
    if log and low <= 0:
        raise DataError(
            f"{where}: low = {low} has no logarithm; use a bound above 0, or log = false"
        )
    return Between(low, high, log, whole)


def _end(value: Mapping[str, Any], name: str, where: str) -> int | float:
    """The bound of that name, low or high."""
    end = value.get(name)
    if isinstance(end, bool) or not isinstance(end, int | float) or not math.isfinite(end):
        problem = "missing" if end is None else f"{shown(end, 40)}, which is no finite number"
        raise DataError(f"{where}: {name} is {problem}")
    return end


def _hints(base: TrainConfig, table: str) -> dict[str, Any]:
    """The types of a table's settings."""
    kind: Any = type(getattr(base, table))
    return typed.hints(kind)


def _kinds(base: TrainConfig, table: str, key: str) -> set[Any]:
    """The types that a setting may have."""
    hint = _hints(base, table)[key]
    return set(typing.get_args(hint)) or {hint}


def _tree(settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """TABLE.KEY -> value as tables."""
    made: dict[str, dict[str, Any]] = {}
    for path, value in settings.items():
        table, _, key = path.partition(".")
        made.setdefault(table, {})[key] = value
    return made
