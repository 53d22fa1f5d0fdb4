"""The trials of a search, as `mer tune` makes them and writes them down."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mer.fusion.config import TrainConfig
from mer.fusion.measures import metrics
from mer.fusion.runtime import files, typed
from mer.fusion.training import tpe
from mer.fusion.training.space import Settings, Space

Method = Literal["random", "tpe"]
AT_RANDOM = 10  # trials before TPE has something to go by, as in Optuna


def written(value: Any) -> Any:
    """Settings, or a space, as JSON has them: it has no number for infinity.

    >>> written({"data.pool_hz": [12.5, float("inf")]})
    {'data.pool_hz': [12.5, 'inf']}
    """
    if isinstance(value, Mapping):
        return {key: written(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [written(one) for one in value]
    return str(value) if isinstance(value, float) and math.isinf(value) else value


def read(path: Path, remedy: str) -> Trial:
    """The trial of a file, its settings as they were drawn; raises DataError where it is damaged,
    with the remedy.
    """
    trial: Trial = files.read_json(path, Trial, remedy)
    infinite = {key: float(one) for key, one in trial.settings.items() if one in ("inf", "-inf")}
    return replace(trial, settings={**trial.settings, **infinite})


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A trial that has ended. `figures` are the dev figures of its runs; a trial that failed has
    none.
    """

    model: str
    number: int
    settings: Settings
    figures: tuple[float, ...]
    epochs: tuple[int, ...] = ()
    failed: str | None = typed.optional()

    @property
    def score(self) -> float | None:
        """The mean over its runs."""
        return float(np.mean(self.figures)) if self.figures else None


@dataclass
class Search:
    """The trials of one model while they are made."""

    space: Space
    base: TrainConfig
    metric: str
    folder: Path
    trials: int
    method: Method
    seed: int
    done: dict[int, Trial] = field(default_factory=dict)
    begun: set[int] = field(default_factory=set)
    # those that an earlier call has made with more --trials
    beyond: dict[int, Trial] = field(default_factory=dict)

    def path(self, number: int) -> Path:
        """The file that says a trial is done."""
        return self.folder / f"trial-{number:03d}.json"

    @property
    def next(self) -> int | None:
        """The number of a trial that can begin. By TPE a trial waits for all before it, as its
        settings follow from theirs.
        """
        left = (n for n in range(self.trials) if n not in self.begun and n not in self.done)
        number = next(left, None)
        waits = self.method == "tpe" and number is not None and len(self.done) < number
        return None if waits else number

    def settings(self, number: int) -> Settings:
        """The settings of a trial."""
        if self.drawn_at_random(number):
            return self.space.draw(self.seed, number)
        trials = [self.done[n] for n in range(number)]
        earlier = [(trial.settings, trial.score) for trial in trials]
        return tpe.proposed(self.space, self.seed, earlier, lower=self.lower)

    def drawn_at_random(self, number: int) -> bool:
        """Whether the settings of a trial follow from no other trial."""
        return self.method == "random" or number < AT_RANDOM

    @property
    def there(self) -> int:
        """How many trials have ended, those beyond among them."""
        return len(self.done) + len(self.beyond)

    @property
    def lower(self) -> bool:
        """Whether a lower figure is better."""
        return metrics.lower_is_better(self.metric)

    def best(self, *, of_all: bool = False) -> Trial | None:
        """The trial that dev prefers; of equals the first. `of_all`: among those beyond, too."""
        there = {**self.done, **self.beyond} if of_all else self.done
        scored = [trial for _, trial in sorted(there.items()) if trial.score is not None]
        sign = 1 if self.lower else -1
        return min(scored, key=lambda trial: sign * float(trial.score or 0), default=None)


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """The trials of a model, and the one that dev prefers (None: all failed). `contexts` are the
    kinds of conversation context of its trials, as tables name them. Where more trials are `there`
    than were asked for, the preset is that of the best of all: `winner`.
    """

    model: str
    metric: str
    trials: tuple[Trial, ...]
    best: Trial | None
    contexts: tuple[str | None, ...] = (None,)
    expected: dict[int, float] = field(default_factory=dict)
    preset: str | None = None
    there: int | None = typed.optional()
    winner: Trial | None = typed.optional()
