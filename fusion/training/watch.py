"""How far a training has come: a bar on a terminal, lines at a sensible pace elsewhere, or a line
for every epoch where nobody shows progress (the Python API).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mer.fusion.measures import metrics
from mer.fusion.measures.tables import number
from mer.fusion.models.base import FusionModel
from mer.fusion.runs.records import Epoch
from mer.pipeline.runtime.progress import Silent, clock
from mer.pipeline.runtime.terminal import plural

STEPS = 200  # of a training at which its weights are looked at


class Watch:
    """What is told while a training runs.

    Args:
        note: Told what the user should know, line by line.
        progress: Shows how far it is; None: `note` is told every epoch.
    """

    def __init__(self, note: Callable[[str], None], progress: Silent | None = None) -> None:
        self.note, self.progress = note, progress
        self._epochs, self._rows, self._metric = 1, 1, ""
        self._done = self._fresh = 0.0
        self._started = 0.0
        self._last = ""
        self._show: Callable[..., None] = lambda done, text, told=False: None

    @contextmanager
    def training(self, *, epochs: int, rows: int, done: int, metric: str) -> Iterator[None]:
        """While a training runs.

        Args:
            epochs: At most.
            rows: Of an epoch.
            done: Epochs that an earlier call has trained.
            metric: The dev figure that chooses.
        """
        self._epochs, self._rows, self._metric = epochs, rows, metric
        self._done, self._fresh = done * rows, 0.0
        self._started, self._last = time.monotonic(), ""
        if self.progress is None:
            yield
            return
        with self.progress.follow(epochs * rows) as self._show:
            yield

    def step(self, rows: int) -> None:
        """So many more rows have been trained on."""
        self._fresh += rows
        done = self._done + self._fresh
        at = min(int(done // self._rows) + 1, self._epochs)
        self._show(done, f"epoch {at:3d} of {self._epochs}{self._left()}{self._last}")

    def epoch(self, entry: Epoch, best: bool, best_epoch: int, best_figure: float | None) -> None:
        """An epoch has been trained and scored; `best` says that it is the one so far."""
        title = metrics.title(self._metric)
        figure = number(self._metric, entry.dev[self._metric])
        so_far = number(self._metric, best_figure)
        compared = ", best so far" if best else f" (best {so_far}, epoch {best_epoch})"
        total = entry.train["total"]
        loss = "–" if total is None else f"{total:.4f}"
        self._last = f"  loss {loss}  dev {title} {figure}{compared}"
        epoch = f"epoch {entry.epoch:3d} of {self._epochs}"
        if self.progress is None:
            self.note(f"{epoch}{self._last}")
        else:  # what a narrow terminal cuts off is the least of it
            line = f"{epoch}{self._left()}{self._last}"
            self._show(self._done + self._fresh, line, told=True)

    def _left(self) -> str:
        """Time left, if patience does not end it earlier."""
        seconds = time.monotonic() - self._started
        left = self._epochs * self._rows - self._done - self._fresh
        if self._fresh <= 0 or seconds <= 0 or left < 1:
            return ""
        return f"  at most {clock(seconds * left / self._fresh)} left"


def chosen(
    epoch: int, epochs: int, most: int, metric: str, figure: float | None, *, cooling: int = 0
) -> str:
    """The line at the end of a training; `cooling` is the epoch after which its learning rate fell
    to 0, if it did before the last one it might have had.

    >>> chosen(3, 11, 40, "wf1", 0.899)
    'chose epoch 3 of 11 (dev WF1 89.9), stopped early: 8 epochs without a better one'
    >>> chosen(39, 40, 40, "mae", 0.5)
    'chose epoch 39 of 40 (dev MAE 0.500)'
    >>> chosen(30, 34, 80, "wf1", 0.9, cooling=24)
    'chose epoch 30 of 34 (dev WF1 90.0), the learning rate fell to 0 from epoch 25 on'
    """
    text = f"chose epoch {epoch} of {epochs} (dev {metrics.title(metric)} "
    text += f"{number(metric, figure)})"
    if cooling:
        return f"{text}, the learning rate fell to 0 from epoch {cooling + 1} on"
    early = f", stopped early: {plural(epochs - epoch, 'epoch')} without a better one"
    return text + (early if epochs < most else "")


def rising(model: FusionModel, epochs: int) -> str | None:
    """A line about loss terms whose weights rise during a training, as then the loss may; None
    where none does.
    """
    first, last = model.weights(0.0), model.weights(1.0)
    names = [name for name, weight in last.items() if weight > first.get(name, 0.0)]
    if not names:
        return None

    def settled(share: float) -> bool:
        weights = model.weights(share)
        return all(weights[name] >= last[name] for name in names)

    share = next(step / STEPS for step in range(STEPS + 1) if settled(step / STEPS))
    until = max(math.ceil(share * epochs), 1)
    terms = f"{len(names)} of {plural(len(last), 'loss term')}"
    return (
        f"the weights of {terms} rise until epoch {until} of {epochs}; the loss may rise with "
        "them, which is as it should be"
    )
