"""The epochs of a training for TensorBoard, in the folder `tensorboard` of the run:
`tensorboard --logdir runs` shows all runs side by side.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from mer.fusion.config import TrainConfig, to_toml
from mer.fusion.runs.records import Epoch, FinishedInfo, SingleInfo
from mer.pipeline.runtime.files import naming

FOLDER = "tensorboard"
EVENTS = "events.out.tfevents.*"


class TensorBoard:
    """Scalars by epoch, in the units of log.jsonl: `train/` loss terms before their weights, `dev/`
    figures, `diagnostics/`, `layers/` weights of layers that are mixed, `optim/`, `time/`. Figures
    that are undefined are left out. The configuration is a text.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / FOLDER
        self.writer: SummaryWriter | None = None

    def begin(self, info: SingleInfo, config: TrainConfig, done: Sequence[Epoch]) -> None:
        """The last epoch of an earlier call is written again, in the place of what is there of it
        and of later ones: a kill may have come before it was.
        """
        there = any(self.folder.glob(EVENTS))
        again = list(done[-1:] if there else done)
        first = again[0].epoch if there and again else 0
        with naming(self.folder):
            self.writer = SummaryWriter(str(self.folder), purge_step=first if there else None)
            if not there:
                self.writer.add_text("config", _code(to_toml(config)), 0)
        for entry in again:
            self.epoch(entry)

    def epoch(self, entry: Epoch) -> None:
        assert self.writer is not None
        with naming(self.folder):
            for name, value in scalars(entry):
                self.writer.add_scalar(name, value, entry.epoch)
            self.writer.flush()

    def end(self, info: FinishedInfo) -> None:
        assert self.writer is not None
        chosen = f"epoch {info.best_epoch} of {info.epochs} by dev {info.select_metric}"
        with naming(self.folder):
            self.writer.add_text("chosen", chosen, info.best_epoch)

    def close(self) -> None:
        if self.writer is not None:
            with naming(self.folder):
                self.writer.close()


def scalars(entry: Epoch) -> Iterator[tuple[str, float]]:
    """The figures of an epoch that are defined, by their names in TensorBoard."""
    groups: dict[str, Mapping[str, float | None]] = {
        "train": entry.train,
        "dev": entry.dev,
        "diagnostics": entry.diagnostics,
        "optim": {"lr": entry.lr, "gradient_norm": entry.gradient_norm},
        "time": {"seconds": entry.seconds, "data_seconds": entry.data_seconds},
    }
    for name, weights in (entry.layers or {}).items():
        groups[f"layers/{name}"] = weights
    for group, figures in groups.items():
        for name, value in figures.items():
            if value is not None and math.isfinite(value):
                yield f"{group}/{name}", value


def _code(text: str) -> str:
    """Text as it is in Markdown, which TensorBoard shows."""
    return "".join(f"    {line}\n" for line in text.splitlines())
