"""Where the epochs of a training go as they are trained: log.jsonl always, others when they are
asked for (`mer train --log NAME`).

A sink is a class that is made with the run folder and offers what `Sink` says. Free of torch, so
that a mistyped `--log` is told before it is loaded; a sink's own packages are imported by its
module.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from mer.fusion.runtime import files, typed
from mer.pipeline.errors import DataError, DependencyError
from mer.pipeline.runtime.terminal import did_you_mean, shown

if TYPE_CHECKING:  # these import torch
    from mer.fusion.config import TrainConfig
    from mer.fusion.runs.records import Epoch, FinishedInfo, SingleInfo

# name -> (module, class, extra of mer that brings its packages). Adding a sink is one file and one
# line here.
SINKS = {
    "tensorboard": ("mer.fusion.training.sinks.tensorboard", "TensorBoard", "tensorboard"),
}


class Sink(Protocol):
    """What is told how a training goes. One process calls it; what it raises ends the training,
    which the same command then goes on with.
    """

    def begin(self, info: SingleInfo, config: TrainConfig, done: Sequence[Epoch]) -> None:
        """A training begins, or goes on: `done` are the epochs of earlier calls. A kill may have
        come between the last of them and its call of `epoch`, and may do so again.
        """

    def epoch(self, entry: Epoch) -> None:
        """An epoch is trained and scored on dev. A kill may come before it is saved; then it is
        trained, and told, again.
        """

    def end(self, info: FinishedInfo) -> None:
        """The training is finished; nothing follows but `close`."""

    def close(self) -> None:
        """Called last in every case, also where the training was interrupted."""


class JsonLines:
    """log.jsonl, one epoch a line: written from the start at the beginning of every call, so that
    it lacks nothing that was saved, then appended to, and at the end written whole.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / files.LOG
        self.epochs: list[Epoch] = []

    def begin(self, info: SingleInfo, config: TrainConfig, done: Sequence[Epoch]) -> None:
        self.epochs = list(done)
        files.write_bytes(self.path, json_lines(self.epochs))

    def epoch(self, entry: Epoch) -> None:
        self.epochs.append(entry)
        files.append_line(self.path, json.dumps(typed.tree(entry)))

    def end(self, info: FinishedInfo) -> None:
        files.write_bytes(self.path, json_lines(self.epochs))

    def close(self) -> None:
        pass


def json_lines(epochs: Sequence[Epoch]) -> bytes:
    """The content of log.jsonl."""
    return "".join(json.dumps(typed.tree(entry)) + "\n" for entry in epochs).encode()


def check(names: Sequence[str]) -> None:
    """Raise DataError for a name that is none, and DependencyError where its packages are
    missing.
    """
    for name in names:
        if name not in SINKS:
            raise DataError(
                f"--log {shown(name, 40)}: unknown{did_you_mean(name, SINKS)}; known: "
                f"{', '.join(SINKS)} (log.jsonl is written anyway)"
            )
        module, _, extra = SINKS[name]
        try:
            import_module(module)
        except ImportError as error:
            raise DependencyError(
                f"--log {name}: needs a package that cannot be imported "
                f"({shown(error.name or error, 60)}); run `pip install 'mer[{extra}]'`, or leave "
                "--log out"
            ) from None


@contextmanager
def opened(names: Sequence[str], folder: Path) -> Iterator[list[Sink]]:
    """The sinks of a training into a run folder: log.jsonl, and those of these names, each once."""
    with ExitStack() as stack:
        sinks: list[Sink] = [JsonLines(folder)]
        for name in dict.fromkeys(names):
            module, kind, _ = SINKS[name]
            sink: Sink = getattr(import_module(module), kind)(folder)
            stack.callback(sink.close)
            sinks.append(sink)
        yield sinks
