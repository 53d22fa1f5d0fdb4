"""One pass over the training rows, and what it has shown."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from mer.fusion.batch import Batch
from mer.fusion.config import OptimConfig, TrainConfig
from mer.fusion.data import sources
from mer.fusion.measures import metrics
from mer.fusion.measures.tables import loss_title
from mer.fusion.models.base import FusionModel
from mer.fusion.modules.modality_dropout import drop_modalities
from mer.fusion.runs.records import Epoch
from mer.fusion.runtime.parallel import ALONE, Processes
from mer.fusion.training import optim
from mer.fusion.training.averaging import WeightAverage
from mer.fusion.training.watch import Watch
from mer.pipeline.errors import DataError


class DivergedError(DataError):
    """A training whose loss is no longer finite."""


@dataclass(frozen=True)
class Pass:
    """What one pass over the training rows has shown: `terms` are means of every loss term before
    its weight, `waited` the seconds of `seconds` that went into waiting for data.
    """

    step: int
    lr: float
    gradient_norm: float
    terms: dict[str, float]
    diagnostics: dict[str, float]
    seconds: float
    waited: float

    def entry(
        self, epoch: int, dev: dict[str, float], layers: dict[str, dict[str, float]]
    ) -> Epoch:
        """The line of the log; `dev` figures and weights of mixed `layers` are those of the weights
        that dev scored.
        """
        return Epoch(
            epoch=epoch,
            step=self.step,
            lr=self.lr,
            gradient_norm=self.gradient_norm,
            train=metrics.jsonable(self.terms),
            diagnostics=metrics.jsonable(self.diagnostics),
            seconds=round(self.seconds, 4),
            data_seconds=round(self.waited, 4),
            dev=metrics.jsonable(dev),
            layers=metrics.jsonable(layers) or None,
        )


class Sums:
    """Sums of loss terms over rows. They stay on the device, so that the host never waits for a
    step.
    """

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.rows: dict[str, int] = {}

    def add(self, terms: dict[str, Tensor], rows: int) -> None:
        """Add terms that are means over `rows` rows."""
        for name, value in terms.items():
            weighted = value.detach().float() * rows
            self.sums[name] = self.sums.get(name, 0) + weighted
            self.rows[name] = self.rows.get(name, 0) + rows

    def means(self, processes: Processes) -> dict[str, float]:
        """The mean of every term over the rows of all processes."""
        mine = {name: (float(total), self.rows[name]) for name, total in self.sums.items()}
        found = processes.gather(mine)
        means = {}
        for name in dict.fromkeys(chain.from_iterable(found)):
            totals, rows = zip(*(one[name] for one in found if name in one), strict=True)
            means[name] = sum(totals) / sum(rows)
        return means


class Diagnostics:
    """Means of a model's diagnostics over rows, NaN left out. Tensors stay on the device, as those
    of `Sums` do; what the batches of an epoch have in common is one addition each.
    """

    def __init__(self) -> None:
        self.sums: dict[tuple[str, ...], tuple[Tensor, Tensor]] = {}
        self.plain: list[tuple[str, float, float]] = []

    @torch.no_grad()
    def add(self, model: FusionModel, rows: int) -> None:
        """Add what the last `losses` call on `rows` rows has shown."""
        tensors: dict[str, Tensor] = {}
        for name, value in model.observed().items():
            if isinstance(value, Tensor):
                tensors[name] = value.float()
            elif not math.isnan(value):
                self.plain.append((name, value * rows, float(rows)))
        if tensors:
            values = torch.stack(list(tensors.values()))
            weight = (~values.isnan()) * float(rows)
            sums, weights = self.sums.get(tuple(tensors), (0, 0))
            self.sums[tuple(tensors)] = sums + values.nan_to_num() * weight, weights + weight

    def means(self, processes: Processes) -> dict[str, float]:
        """The mean of each over the rows of all processes; NaN where no batch had it."""
        mine = list(self.plain)
        for names, (sums, weights) in self.sums.items():
            mine += zip(names, sums.tolist(), weights.tolist(), strict=True)
        totals: dict[str, tuple[float, float]] = {}
        for name, value, weight in chain.from_iterable(processes.gather(mine)):
            total, rows = totals.get(name, (0.0, 0.0))
            totals[name] = total + value, rows + weight
        return {n: total / rows if rows else math.nan for n, (total, rows) in totals.items()}


class Feed:
    """The batches of an epoch in their order, and the seconds spent waiting for them."""

    def __init__(self, part: sources.BatchSource, order: list[np.ndarray]) -> None:
        self.batches = part.batches(order)
        self.waited = 0.0

    def next(self) -> Batch:
        asked = time.perf_counter()
        batch = next(self.batches)
        self.waited += time.perf_counter() - asked
        return batch


def run_epoch(
    model: FusionModel,
    optimizer: torch.optim.Optimizer,
    part: sources.BatchSource,
    config: TrainConfig,
    epoch: int,
    steps: int,
    processes: Processes = ALONE,
    watch: Watch | None = None,
    fall: tuple[int, int] | None = None,
    average: WeightAverage | None = None,
    plateau: float = 1.0,
) -> Pass:
    """One pass over the training rows.

    Args:
        model: It is changed.
        optimizer: Its groups have their highest learning rate as `peak`.
        part: The training rows.
        config: How it is trained.
        epoch: Its number, from 1.
        steps: Of the whole training.
        processes: Those that train together.
        watch: Told of every step.
        fall: The steps between which the learning rate falls to 0, whatever its schedule.
        average: Takes in the weights after every step.
        plateau: Factor on the learning rate that earlier epochs have led to.

    Returns:
        What it has shown.

    Raises:
        DataError: The loss or its gradient is no longer finite.
    """
    loop, settings = config.train, config.optim
    started = time.perf_counter()
    order = part.shuffled(loop.batch_size, (loop.seed, epoch))
    groups = [
        order[at : at + settings.accumulate] for at in range(0, len(order), settings.accumulate)
    ]
    groups = groups[: steps_of(len(order), settings)]
    ordered = time.perf_counter() - started
    parameters = list(chain.from_iterable(group["params"] for group in optimizer.param_groups))
    sums, seen, norm = Sums(), Diagnostics(), torch.zeros((), device=part.device)
    model.train()
    feed = Feed(part, list(chain.from_iterable(map(processes.share, groups))))
    done = (epoch - 1) * len(groups)
    for number, group in enumerate(groups):
        step = done + number
        for g in optimizer.param_groups:
            factor = optim.schedule(step, steps, settings.warmup, settings.schedule)
            factor *= plateau if fall is None else plateau * optim.cooldown(step, *fall)
            g["lr"] = g["peak"] * factor
        batches = list(enumerate(group, start=number * settings.accumulate))
        samples = sum(len(index) for index in group)
        summed = settings.accumulate_as == "sum"
        progress = step / max(steps - 1, 1)
        weights = model.weights(progress)
        for batch_number, _ in processes.share(batches):
            if settings.accumulate > 1:  # then another process may have computed the batch before
                torch.manual_seed(mixed_seed(loop.seed, epoch, batch_number))
            batch = drop_modalities(feed.next(), loop.modality_dropout, model.core.modalities)
            whole = len(batch) if summed else samples
            _add_gradient(model, batch, weights, progress, whole, loop.precision, sums)
            if settings.clip_value < math.inf:
                torch.nn.utils.clip_grad_value_(parameters, settings.clip_value)
            seen.add(model, len(batch))
        processes.add_gradients(parameters)
        norm += optim.clip_gradients(parameters, settings.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if average is not None:
            average.update()
        if watch is not None:
            watch.step(samples)
    means, gradient = sums.means(processes), float(norm) / len(groups)
    _check_finite(epoch, means, gradient)
    return Pass(
        step=done + len(groups),
        lr=optimizer.param_groups[0]["lr"],
        gradient_norm=gradient,
        terms=means,
        diagnostics={**model.diagnostics(), **seen.means(processes)},
        seconds=time.perf_counter() - started,
        waited=ordered + feed.waited,
    )


def steps_of(batches: int, settings: OptimConfig) -> int:
    """Steps in an epoch of so many batches."""
    if settings.accumulate_as == "sum":
        return batches // settings.accumulate
    return -(-batches // settings.accumulate)


def _add_gradient(
    model: FusionModel,
    batch: Batch,
    weights: dict[str, float],
    progress: float,
    samples: int,
    precision: str,
    sums: Sums,
) -> None:
    """Add the gradient of one batch, as its share of `samples` rows, and its terms to `sums`."""
    device = batch.row.device.type
    autocast = precision == "bf16" or (precision == "auto" and device == "cuda")
    with torch.autocast(device, dtype=torch.bfloat16, enabled=autocast):
        terms = model.losses(batch, progress)
        total = torch.as_tensor(sum(weights[name] * value for name, value in terms.items()))
    (total * (len(batch) / samples)).backward()
    sums.add({**terms, "total": total}, len(batch))


def _check_finite(epoch: int, means: dict[str, float], gradient: float) -> None:
    """Raise DivergedError when a loss term or the gradient's norm is no longer finite."""
    if math.isfinite(means["total"]) and math.isfinite(gradient):
        return
    bad = [name for name, value in means.items() if not math.isfinite(value)] or ["gradient"]
    raise DivergedError(
        f"epoch {epoch}: the loss is no longer finite ({'; '.join(map(loss_title, bad))}); lower "
        "optim.lr or optim.clip and train again"
    )


def mixed_seed(*numbers: int) -> int:
    """A 63-bit seed from several numbers, without the collisions of their sum."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
