"""What a training goes on from after a kill: written while it trains, checked when it is read."""

from __future__ import annotations

import contextlib
import hashlib
import math
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from mer.fusion.batch import DataSpec
from mer.fusion.config import TrainConfig
from mer.fusion.models.base import FusionModel
from mer.fusion.runs import checkpoint
from mer.fusion.runs.records import Progress
from mer.fusion.runtime import files, typed
from mer.fusion.training.averaging import WeightAverage
from mer.fusion.training.training_setup import Training
from mer.pipeline.errors import DataError
from mer.pipeline.runtime.terminal import shown

START_AGAIN = "delete it and train again"  # what helps against damaged progress
CHOSEN = "chosen."  # before the names of weights in last.safetensors that dev chose
AVERAGE = "average."  # before those of the moving average
SAVE_SECONDS = 5.0  # of training that a kill may cost, beside the epoch that it stops


class Keeper:
    """Writes what a resume starts from, and the weights that dev chose: at most every SAVE_SECONDS,
    and after the last epoch.

    `last.safetensors` goes first. It names the sha256 of the chosen weights, and holds them where
    they are not those of its own epoch: killed in between, the next call has in it all it needs.
    """

    def __init__(
        self, folder: Path, model: FusionModel, optimizer: torch.optim.Optimizer, ema: float = 0.0
    ) -> None:
        self.folder, self.model, self.optimizer = folder, model, optimizer
        self.average = WeightAverage(model, ema) if ema else None
        self._chosen: dict[str, Tensor] | None = None  # not written yet
        self._saved = time.monotonic()

    def keep(self, progress: Progress, *, last: bool) -> Progress:
        """What an epoch has come to; the progress, with the sha256 of weights that were written."""
        if progress.best_epoch == progress.epoch:
            self._chosen = self.state()
        if last or time.monotonic() - self._saved >= SAVE_SECONDS:
            progress = self._save(progress)
            self._chosen, self._saved = None, time.monotonic()
        return progress

    def chosen_weights(self) -> contextlib.AbstractContextManager[None]:
        """The model has the weights that dev scores, until the block ends: its own, or their moving
        average.
        """
        return contextlib.nullcontext() if self.average is None else self.average.in_place()

    def state(self) -> dict[str, Tensor]:
        """A copy of the model's state with these weights."""
        with self.chosen_weights():
            return {k: v.detach().clone() for k, v in self.model.state_dict().items()}

    def _save(self, progress: Progress) -> Progress:
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        for name, p in self.model.named_parameters():
            moments = self.optimizer.state.get(p, {})
            tensors.update({f"optim.{key}.{name}": value for key, value in moments.items()})
        if self.average is not None:
            tensors |= {f"{AVERAGE}{k}": v for k, v in self.average.weights.items()}
        weights = None
        if self._chosen is not None:
            weights = checkpoint.pack(self._chosen, {"epoch": progress.best_epoch})
            progress = replace(progress, model_sha256=hashlib.sha256(weights).hexdigest())
            if progress.best_epoch < progress.epoch:
                tensors |= {f"{CHOSEN}{name}": value for name, value in self._chosen.items()}
        checkpoint.save_tensors(self.folder / checkpoint.LAST, tensors, typed.tree(progress))
        if weights is not None:
            files.write_bytes(self.folder / checkpoint.MODEL, weights)
        return progress


def resume(training: Training, keeper: Keeper) -> Progress:
    """Progress so far; loads model, average and optimizer in place when there is some."""
    model, optimizer = keeper.model, keeper.optimizer
    folder, path = training.folder, training.folder / checkpoint.LAST
    fresh = Progress(
        epoch=0,
        step=0,
        best_epoch=0,
        best_rank=(-math.inf, -math.inf),
        best={},
        thresholds=None,
        log=(),
        identity=training.identity,
    )
    if not path.exists():
        return fresh
    tensors, meta = checkpoint.load_tensors(path)
    try:
        progress = typed.convert(Progress, meta)
        _check_progress(progress, training.config, training.spec)
    except ValueError as error:
        raise DataError(f"{path}: damaged checkpoint ({shown(error)}); {START_AGAIN}") from None
    if progress.model_sha256 is None:
        why = "an earlier mer wrote it without checksums"
        training.note(f"{path}: {why}; the training starts again")
        return fresh
    if progress.identity != training.identity:
        raise DataError(f"{path}: of another training; {START_AGAIN}")
    weights = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
    checkpoint.fill(model, weights, f"{path}: does not fit this run's model")
    _fill_optimizer(model, optimizer, tensors, path)
    if keeper.average is not None:
        _fill_average(keeper.average, tensors, progress.step, path)
    best = {k.removeprefix(CHOSEN): v for k, v in tensors.items() if k.startswith(CHOSEN)}
    if progress.best_epoch == progress.epoch:
        best = keeper.state()
    if not best:
        remedy = f"delete {path} and train again"
        if files.digest(folder / checkpoint.MODEL, remedy) != progress.model_sha256:
            raise not_the_weights(folder)
    elif training.processes.first:  # killed before they were written, perhaps
        packed = checkpoint.pack(best, {"epoch": progress.best_epoch})
        if hashlib.sha256(packed).hexdigest() != progress.model_sha256:
            raise DataError(f"{path}: damaged checkpoint (the chosen weights); {START_AGAIN}")
        files.write_bytes(folder / checkpoint.MODEL, packed)
    return progress


def _fill_optimizer(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], path: Path
) -> None:
    """Load the moments of the gradients; raises DataError for one that does not fit."""
    for name, p in model.named_parameters():
        expected = {"step": torch.zeros(()), "exp_avg": p, "exp_avg_sq": p}
        if not any(f"optim.{key}.{name}" in tensors for key in expected):
            continue  # never used so far
        for key, like in expected.items():
            value = tensors.get(f"optim.{key}.{name}")
            if value is None or (value.shape, value.dtype) != (like.shape, like.dtype):
                raise DataError(
                    f"{path}: damaged checkpoint ({key} of {name} does not fit); {START_AGAIN}"
                )
            optimizer.state[p][key] = value.to(p.device)


def _fill_average(
    average: WeightAverage, tensors: dict[str, Tensor], steps: int, path: Path
) -> None:
    """Load the moving average of the weights; raises DataError for one that does not fit."""
    found = {}
    for name, like in average.weights.items():
        value = tensors.get(f"{AVERAGE}{name}")
        if value is None or (value.shape, value.dtype) != (like.shape, like.dtype):
            raise DataError(
                f"{path}: damaged checkpoint (average of {name} does not fit); {START_AGAIN}"
            )
        found[name] = value
    average.fill(found, steps)


def _check_progress(progress: Progress, config: TrainConfig, spec: DataSpec) -> None:
    """Raise ValueError for what cannot be the progress of such a run."""
    epoch, best, epochs = progress.epoch, progress.best_epoch, config.train.epochs
    if not 1 <= best <= epoch <= epochs:
        raise ValueError(f"best epoch {best} of {epoch} of {epochs}")
    if not 0 <= progress.cooling <= epoch or (progress.cooling and not config.train.cooldown):
        raise ValueError(f"cooling since epoch {progress.cooling} of {epoch}")
    if len(progress.log) != epoch or len(progress.best_rank) != 2 or progress.step < 1:
        raise ValueError("its log, rank or step do not fit its epoch")
    if spec.task == "multi" and len(progress.thresholds or ()) != len(spec.labels):
        raise ValueError("thresholds are not one for each label")


def not_the_weights(folder: Path) -> DataError:
    path, last = folder / checkpoint.MODEL, folder / checkpoint.LAST
    return DataError(
        f"{path}: not the weights that this training wrote; delete {last.name} beside it and "
        "train again"
    )
