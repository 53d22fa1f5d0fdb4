"""One trainer for every model: any run is a function of (store, configuration, seed) on one
machine, and can be killed at any moment.

The trainer is handed a `Split` of training and dev rows. It reads no other rows of the store; dev
chooses the epoch.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib import metadata
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mer.fusion import (
    calibration,
    checkpoint,
    context,
    data,
    files,
    infer,
    metrics,
    optim,
    sinks,
    splits,
    typed,
    unimodal,
)
from mer.fusion.averaging import WeightAverage
from mer.fusion.batch import Batch, DataSpec
from mer.fusion.checkpoint import Run
from mer.fusion.config import OptimConfig, TrainConfig, differences, to_toml, to_tree
from mer.fusion.models import build, reads_summary
from mer.fusion.models.base import FusionModel
from mer.fusion.modules.modality_dropout import drop_modalities
from mer.fusion.parallel import ALONE, Processes
from mer.fusion.records import Epoch, FinishedInfo, GroupInfo, Progress, SingleInfo, SplitIds
from mer.fusion.sinks import Sink
from mer.fusion.splits import Fold, Split
from mer.fusion.tables import loss_title
from mer.fusion.watch import Watch, chosen, rising
from mer.pipeline.errors import DataError
from mer.pipeline.runtime.machine import choose_device
from mer.pipeline.runtime.terminal import amount, did_you_mean, plural, shown
from mer.pipeline.store import FeatureStore

Note = Callable[[str], None]
START_AGAIN = "delete it and train again"  # what helps against damaged progress
CHOSEN = "chosen."  # before the names of weights in last.safetensors that dev chose
AVERAGE = "average."  # before those of the moving average
TOLD_SECONDS = 0.1  # that a check has to take for its time to be told
SAVE_SECONDS = 5.0  # of training that a kill may cost, beside the epoch that it stops


class DivergedError(DataError):
    """A training whose loss is no longer finite."""


def pick_device(name: str = "auto") -> torch.device:
    """The device of a `--device`.

    Args:
        name: auto (CUDA where there is one), cpu, cuda or cuda:N.

    Returns:
        The device.

    Raises:
        DataError: It is not there.
    """
    try:
        device = choose_device(name)
        torch.empty(0, device=device)
    except (DataError, RuntimeError, AssertionError) as error:
        why = str(error).splitlines()[0]
        raise DataError(f"--device {name}: not usable here ({why})") from None
    return device


@dataclass(frozen=True)
class Training:
    """What one training is of. `target` is of all rows of the store, `metric` the dev figure that
    chooses the epoch, `measures` by whose definitions a regression is scored.
    """

    store: FeatureStore
    config: TrainConfig
    folder: Path
    split: Split
    fold: Fold | None
    device: torch.device
    note: Note
    processes: Processes
    spec: DataSpec
    metric: str
    target: np.ndarray
    measures: metrics.Measures
    identity: str
    store_key: str
    command: str | None
    watch: Watch
    remark: Note
    sinks: Sequence[Sink] = ()
    among: int = 1

    @property
    def rows(self) -> dict[str, np.ndarray]:
        """The rows of each part."""
        return {"train": self.split.train, "dev": self.split.dev}

    @property
    def pools(self) -> dict[str, np.ndarray]:
        """The rows of each part, also those without a label: neighbours are among them."""
        return {"train": self.split.train_pool, "dev": self.split.dev_pool}


def fit(
    store: FeatureStore,
    config: TrainConfig,
    folder: Path,
    *,
    split: Split,
    fold: Fold | None = None,
    device: torch.device | str,
    note: Note,
    processes: Processes = ALONE,
    command: str | None = None,
    watch: Watch | None = None,
    log: Sequence[str] = (),
    among: int = 1,
    remark: Note | None = None,
) -> Run:
    """Train one model into a folder, or go on from its last finished epoch.

    Deterministic: epoch e draws its batches and dropout from (seed, e) alone, so that a resumed run
    equals an uninterrupted one. Of several `processes` all make this call; the first one writes.

    Args:
        store: The features.
        config: The model and how it is trained.
        folder: The run folder: new, or of this very training.
        split: The rows to train on and to choose with; the trainer reads no others.
        fold: What the run is evaluated on, in a run over folds.
        device: Where to train.
        note: Told what the user should know, line by line.
        processes: Those that train together.
        command: What was typed, for run.json.
        watch: Told how far it is; None: `note` is told every epoch.
        log: Names of `mer.fusion.sinks` that are told every epoch, besides log.jsonl.
        among: How many trainings share this machine's memory.
        remark: Told of the store and the configuration, which the runs of a group have in common;
            None: `note` is.

    Returns:
        The finished run.

    Raises:
        DataError: The folder holds another run or a damaged one, the configuration does not fit the
            store, or the loss is no longer finite.
    """
    processes.check(config.optim.accumulate)
    batches = -(-len(split.train) // config.train.batch_size)
    if not steps_of(batches, config.optim):
        raise DataError(
            f"optim.accumulate = {config.optim.accumulate}, but an epoch has {batches} batches: "
            "summed, a smaller group takes no step; use a smaller train.batch_size or fewer batches"
        )
    if processes.size > 1 and config.optim.clip_value < math.inf:
        raise DataError("optim.clip_value clips after every batch in turn: train in one process")
    spec, metric = check_config(store, config)
    key = checkpoint.store_key(store)
    target = splits.targets(store.table(), store.header.task, store.header.labels)
    spec = replace(spec, scale=splits.scale(target[split.train], spec.task))
    training = Training(
        store,
        config,
        folder,
        split,
        fold,
        torch.device(device),
        note,
        processes,
        spec,
        metric,
        target,
        measures_of(store, target),
        identity(
            config,
            key,
            None if fold is None else [fold.by, *fold.held],
            *turns_key(store, config),
            *unimodal.key(store, config),
        ),
        key,
        command,
        watch or Watch(note),
        remark or note,
        among=among,
    )
    there = processes.agree(lambda: check_folder(folder, config, key, training.identity))
    if there is not None and there.finished:
        processes.agree(there.sound)
        late = f"; nothing is added for --log {', '.join(log)}" if log else ""
        note(f"{folder}: already trained{late}")
        return there
    for line in (*split.notes, *read_notes(training)):
        training.remark(line)
    if training.measures == "sims":
        training.remark(
            f"{store.header.dataset}: scored by the measures of CH-SIMS, targets within [-1, 1]"
        )

    torch.manual_seed(config.train.seed)
    model: FusionModel = build(config.model, config.model_args, spec).to(training.device)
    optimizer = optim.adamw(model, config)
    info = _begin(training, model, there)
    parts = _parts(training, model.summary)
    said = all(part.resident for part in parts.values())
    if said:
        _say_checked(training, parts)
    keeper = Keeper(training.folder, model, optimizer, config.optim.ema)
    progress = _resume(training, keeper)
    if progress.epoch:
        note(f"{folder}: goes on after epoch {progress.epoch}")
    else:
        _learn_scale(training, model, parts["train"])
    explained = rising(model, config.train.epochs)
    if explained is not None:
        training.remark(explained)
    told = training.watch.training(
        epochs=config.train.epochs,
        rows=len(split.train),
        done=progress.epoch,
        metric=metric,
    )
    with sinks.opened(log, folder) as listening:
        training = replace(training, sinks=listening if processes.first else ())
        for sink in training.sinks:
            sink.begin(info, config, progress.log)
        with deterministic(training.device), announcements(note), told:
            while _goes_on(progress, config):
                progress = _one_epoch(training, keeper, parts, progress)
                if not said:  # by now each row has been read once
                    _say_checked(training, parts)
                    said = True
        return _finish(training, info, progress)


def _goes_on(progress: Progress, config: TrainConfig) -> bool:
    """Whether there is another epoch to train."""
    if progress.cooling:
        return progress.epoch < _end(progress, config)
    return progress.epoch < config.train.epochs and not _patience_ended(progress, config)


def _patience_ended(progress: Progress, config: TrainConfig) -> bool:
    return progress.epoch - progress.best_epoch >= config.train.patience


def _end(progress: Progress, config: TrainConfig) -> int:
    """The last epoch of a training whose learning rate falls."""
    return min(progress.cooling + config.train.cooldown, config.train.epochs)


def _begin(training: Training, model: FusionModel, there: Run | None) -> SingleInfo:
    """Write what a run folder has from its beginning; `there` is the interrupted run, if any."""
    store, config, split = training.store, training.config, training.split
    text, split_json = to_toml(config), _split_json(training)
    config_sha256: str | None = hashlib.sha256(text.encode()).hexdigest()
    if there is not None:
        config_sha256 = there.single.config_sha256
    info = SingleInfo(
        identity=training.identity,
        store_key=training.store_key,
        model=config.model,
        config_sha256=config_sha256,
        split_sha256=hashlib.sha256(split_json).hexdigest(),
        seed=config.train.seed,
        select_metric=training.metric,
        fold=training.fold,
        features=str(Path(store.path).resolve()),
        store=checkpoint.describe_store(store),
        spec=training.spec,
        counts={"train": len(split.train), "dev": len(split.dev)},
        notes=split.notes,
        measures=training.measures,
        label_counts=splits.label_counts(
            training.target[split.train], store.header.task, store.header.labels
        ),
        parameters=sum(map(torch.numel, model.parameters())),
        turns_key=next(iter(turns_key(store, config)), None),
        device=str(training.device),
        **(beginning(training.command) if there is None else beginning_of(there)),
        finished=False,
    )
    if training.processes.first:
        path = training.folder / checkpoint.SPLIT
        if there is None:
            files.write_text(training.folder / checkpoint.CONFIG, text)
            files.write_bytes(path, split_json)
            files.write_json(training.folder / checkpoint.INFO, typed.tree(info))
        elif not path.is_file() or files.digest(path) != info.split_sha256:
            training.note(f"{path}: was not as this training wrote it; written again")
            files.write_bytes(path, split_json)
    return info


def beginning(command: str | None) -> dict[str, Any]:
    """What run.json says of when and by what a run was begun."""
    versions = {name: metadata.version(name) for name in ("mer", "torch", "numpy")}
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "versions": {"python": platform.python_version(), **versions},
    }


def beginning_of(there: Run) -> dict[str, Any]:
    """The same of a run that goes on."""
    return {name: getattr(there.info, name) for name in ("date", "command", "versions")}


def _split_json(training: Training) -> bytes:
    """The content of split.json."""
    ids = np.array(training.store.table()["id"].to_pylist(), dtype=object)
    used = SplitIds(tuple(ids[training.split.train]), tuple(ids[training.split.dev]))
    return files.json_text(typed.tree(used)).encode()


def _parts(training: Training, summary: bool) -> dict[str, data.BatchSource]:
    """The training and dev rows, on the device where they fit in half of its free memory."""
    room = data.free_bytes(training.device) // (2 * training.among)
    if training.device.type == "cpu":
        room //= training.processes.size  # they share it
    parts = {}
    for name, rows in training.rows.items():
        part = parts[name] = data.batch_source(
            training.store,
            training.spec,
            training.config.data,
            rows,
            training.target[rows],
            device=training.device,
            room=room,
            summary=summary,
            pool=training.pools[name],
        )
        if part.neighbours is not None:
            asked = training.spec.context
            assert asked is not None
            training.remark(context.note(part.neighbours, asked, name))
        if part.resident:
            room -= part.nbytes()
        else:
            training.remark(
                f"{name}: {part.nbytes() / 2**30:.1f} GiB are read from the store batch by batch, "
                f"not kept on {training.device}"
            )
    return parts


def _learn_scale(training: Training, model: FusionModel, part: data.BatchSource) -> None:
    """What a model learns from the training rows before its first step: class weights, and the
    scale of the features.
    """
    kind = training.config.train.class_weight
    if kind != "none":
        weights = class_weights(training.target[training.split.train], training.spec, kind)
        model.set_class_weights(weights.to(training.device))
    if training.config.data.standardise:
        model.calibrate(part.passes(infer.BATCH))


def _one_epoch(
    training: Training,
    keeper: Keeper,
    parts: dict[str, data.BatchSource],
    progress: Progress,
) -> Progress:
    """Train for one more epoch, score dev, and save where it is time."""
    model, optimizer = keeper.model, keeper.optimizer
    config, split, processes = training.config, training.split, training.processes
    epoch = progress.epoch + 1
    torch.manual_seed(_mix(config.train.seed, epoch))
    batches = -(-len(split.train) // config.train.batch_size)
    steps = config.train.epochs * steps_of(batches, config.optim)
    plateau = 1.0
    if config.optim.schedule == "plateau":
        losses = [one.dev["loss"] for one in progress.log]
        known = [math.inf if loss is None else loss for loss in losses]
        plateau = optim.plateau(known, config.optim.plateau_factor, config.optim.plateau_patience)
    fall = None
    if progress.cooling:
        per_epoch = steps // config.train.epochs
        fall = (progress.cooling * per_epoch, _end(progress, config) * per_epoch)
    watch = training.watch
    pass_ = run_epoch(
        model,
        optimizer,
        parts["train"],
        config,
        epoch,
        steps,
        processes,
        watch,
        fall,
        keeper.average,
        plateau,
    )
    target = training.target[split.dev]

    def scored() -> tuple[dict[str, float], tuple[float, ...] | None, calibration.Scaling | None]:
        with keeper.chosen_weights():
            answers = infer.infer(model, parts["dev"])
        dev, thresholds = _dev_score(answers, target, training.spec, training.measures)
        wanted = config.train.calibrate == "temperature"
        return dev, thresholds, calibration.fit(answers.scores, target) if wanted else None

    dev, thresholds, scaling = processes.agree(scored)
    entry = pass_.entry(epoch, dev)
    rank = _rank(training.metric, dev)
    best = not progress.best_epoch or rank > progress.best_rank
    if best:
        progress = replace(
            progress,
            best_epoch=epoch,
            best_rank=rank,
            best={**dev},
            thresholds=thresholds,
            scaling=scaling,
        )
    progress = replace(progress, epoch=epoch, step=pass_.step, log=(*progress.log, entry))
    more = config.train.cooldown and not progress.cooling and epoch < config.train.epochs
    if more and _patience_ended(progress, config):
        progress = replace(progress, cooling=epoch)
    if processes.first:
        progress = keeper.keep(progress, last=not _goes_on(progress, config))
    for sink in training.sinks:
        sink.epoch(entry)
    watch.epoch(entry, best, progress.best_epoch, progress.best[training.metric])
    return progress


def _finish(training: Training, info: SingleInfo, progress: Progress) -> Run:
    """Write what a finished run has; run.json, which says so, last."""
    folder = training.folder
    seconds = sum(entry.seconds for entry in progress.log)
    rows = len(training.split.train) * len(progress.log)
    log = sinks.json_lines(progress.log)
    first = training.processes.first
    done = FinishedInfo(
        **{name: getattr(info, name) for name in typed.hints(SingleInfo)} | {"finished": True},
        best_epoch=progress.best_epoch,
        epochs=progress.epoch,
        dev=metrics.jsonable(progress.best),
        thresholds=progress.thresholds,
        scaling=progress.scaling,
        utterances_per_second=round(rows / seconds, 1) if seconds else 0.0,
        model_sha256=progress.model_sha256 if first else None,
        log_sha256=hashlib.sha256(log).hexdigest() if first else None,
    )
    if first:
        if files.digest(folder / checkpoint.MODEL) != progress.model_sha256:
            raise _not_the_weights(folder)
        for sink in training.sinks:
            sink.end(done)
        files.write_json(folder / checkpoint.INFO, typed.tree(done))
    best, epochs, most = done.best_epoch, progress.epoch, training.config.train.epochs
    figure = done.dev[training.metric]
    training.note(chosen(best, epochs, most, training.metric, figure, cooling=progress.cooling))
    if progress.scaling is not None:
        training.note(str(progress.scaling))
    return Run(folder, done)


def read_notes(training: Training) -> list[str]:
    """What of the store is read otherwise than it stands there."""
    store, spec = training.store, training.spec
    rows = np.concatenate([training.split.train, training.split.dev])
    notes = data.join_notes(store, spec, rows)
    notes += unimodal.notes(store, spec, training.config, training.split)
    for name, one in spec.sources.items():
        if one.means or one.stack:
            what = plural(one.means, "layer mean") if one.means else plural(len(one.stack), "layer")
            notes.append(f"{name}: {what} mixed by learned weights (data.layers)")
    if others := data.unread(store, spec):
        notes.append(f"not read: {shown(', '.join(others), 120)} (name them in data.modalities)")
    return notes


def _say_checked(training: Training, parts: dict[str, data.BatchSource]) -> None:
    """Say what the checks of the features have cost; nothing where all were checked before, as for
    the second run of a group.
    """
    size = sum(part.checked.bytes for part in parts.values())
    seconds = sum(part.checked.seconds for part in parts.values())
    if size:
        took = f" in {seconds:.1f} s" if seconds >= TOLD_SECONDS else ""
        training.remark(f"{amount(size)} of features read, sound by their checksums{took}")


def measures_of(store: FeatureStore, target: np.ndarray) -> metrics.Measures:
    """By whose definitions the targets of `store` are scored (fusion.metrics)."""
    if store.header.task != "regression":
        return "mosi"
    return metrics.measures_of(store.header.dataset, target, store.header.labels)


def spec_of(store: FeatureStore, config: TrainConfig) -> DataSpec:
    """What the model of `config` is built for."""
    return data.spec(store, config.data, summary=reads_summary(config.model, config.model_args))


def settled(store: FeatureStore, config: TrainConfig) -> TrainConfig:
    """The configuration with `data.layers` decided, where the store leaves a choice."""
    summary = reads_summary(config.model, config.model_args)
    layers = data.layers_of(store, config.data, summary=summary)
    return replace(config, data=replace(config.data, layers=layers))


def check_config(store: FeatureStore, config: TrainConfig) -> tuple[DataSpec, str]:
    """What the model is built for, and the dev metric that chooses the epoch; reads no features.

    Args:
        store: The features.
        config: The model and how it is trained.

    Returns:
        The spec and the metric.

    Raises:
        DataError: The configuration cannot be trained on such a store.
    """
    spec, loop = spec_of(store, config), config.train
    target = splits.targets(store.table(), spec.task, spec.labels)
    known = infer.names_of_figures(spec.task, spec.labels, measures_of(store, target))
    metric = loop.select_metric
    if metric == "auto":
        metric = metrics.headline(spec.task, known)
    if metric not in (*known, "loss"):
        guess = did_you_mean(metric, (*known, "loss"))
        raise DataError(f"train.select_metric = {metric}: dev has {', '.join(known)}, loss{guess}")
    if loop.class_weight != "none" and spec.task == "regression":
        raise DataError(
            f"train.class_weight = {loop.class_weight}: a regression has no classes; use none"
        )
    if loop.calibrate != "none" and spec.task != "single":
        raise DataError(
            f"train.calibrate = {loop.calibrate}: for one label per utterance; the task here is "
            f"{spec.task}, use none"
        )
    if config.data.soft_labels and splits.soft(store.table(), spec.task, spec.labels) is None:
        raise DataError(
            f"data.soft_labels: {store.path} has no shares of raters, one for each class, as "
            "targets of single labels; prepare it with --soft-labels, or leave the setting out"
        )
    if spec.context is not None:
        context.check(store.table(), spec.context, str(store.path))
    # it says itself what it needs; tens of milliseconds
    unimodal.check(store, spec, config, build(config.model, config.model_args, spec))
    return spec, metric


# ---- One epoch


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
    layers: dict[str, dict[str, float]]
    seconds: float
    waited: float

    def entry(self, epoch: int, dev: dict[str, float]) -> Epoch:
        """The line of the log."""
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
            layers=metrics.jsonable(self.layers) or None,
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

    def __init__(self, part: data.BatchSource, order: list[np.ndarray]) -> None:
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
    part: data.BatchSource,
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
                torch.manual_seed(_mix(loop.seed, epoch, batch_number))
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
        layers=model.layer_weights(),
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


def class_weights(target: np.ndarray, spec: DataSpec, kind: str) -> Tensor:
    """(C,) weights by the training labels. single: 1/n_c (balanced) or its root, with mean 1 over
    the samples; multi: the weight of a positive, n_negative/n_positive or its root. A class without
    samples has no say in it: weight 1.
    """
    single = spec.task == "single"
    if single:
        target = target[target >= 0]  # rows of shares alone have no label to count
    count = np.bincount(target, minlength=spec.outputs) if single else target.sum(0)
    count = count.astype(float)
    seen = np.maximum(count, 1)
    weight = 1 / seen if single else (len(target) - count) / seen
    weight = weight if kind == "balanced" else np.sqrt(weight)
    if single:
        weight *= count.sum() / (weight * count).sum()
    return torch.from_numpy(np.where(count > 0, weight, 1).astype(np.float32))


class _Announcer(logging.Handler):
    """Passes on what is logged."""

    def __init__(self, note: Note) -> None:
        super().__init__(logging.INFO)
        self.note = note

    def emit(self, record: logging.LogRecord) -> None:
        self.note(record.getMessage())


@contextlib.contextmanager
def announcements(note: Note) -> Iterator[None]:
    """Pass on what the fused losses log, once per process: which implementation runs."""
    handler = _Announcer(note)
    logger = logging.getLogger("mer.fusion.ops")
    was = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(was)


@contextlib.contextmanager
def deterministic(device: torch.device) -> Iterator[None]:
    """Deterministic kernels where PyTorch has them; the former settings come back.

    A setting that is there already is not made again: making one imports PyTorch's compiler, which
    costs a training on a CPU more than a second.
    """
    was = torch.are_deterministic_algorithms_enabled()
    warn = torch.is_deterministic_algorithms_warn_only_enabled()
    wanted = device.type == "cuda" or was
    if not wanted or (was and warn):
        yield
        return
    torch.use_deterministic_algorithms(wanted, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was, warn_only=warn)


def _dev_score(
    out: infer.Answers, target: np.ndarray, spec: DataSpec, measures: str
) -> tuple[dict[str, float], tuple[float, ...] | None]:
    """Dev figures, and for multi the threshold of each label."""
    thresholds = None
    if spec.task == "multi":
        thresholds = tuple(metrics.choose_thresholds(target, out.scores))
    pred = infer.decide(out.scores, spec.task, thresholds)
    figures = infer.figures(pred, target, spec.task, spec.labels, measures)
    return {**figures, "loss": out.loss}, thresholds


def _rank(metric: str, dev: dict[str, float]) -> tuple[float, float]:
    """Larger is better; on small dev sets many epochs tie, and the smaller dev loss decides."""
    value = -dev[metric] if metrics.lower_is_better(metric) else dev[metric]
    return (
        value if math.isfinite(value) else -math.inf,
        -dev["loss"] if math.isfinite(dev["loss"]) else -math.inf,
    )


# ---- Progress


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


def _resume(training: Training, keeper: Keeper) -> Progress:
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
            raise _not_the_weights(folder)
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


def _not_the_weights(folder: Path) -> DataError:
    path, last = folder / checkpoint.MODEL, folder / checkpoint.LAST
    return DataError(
        f"{path}: not the weights that this training wrote; delete {last.name} beside it and "
        "train again"
    )


def check_folder(folder: Path, config: TrainConfig, key: str, wanted: str) -> Run | None:
    """The run of this identity that `folder` holds, None if it is free; anything else there is left
    alone (DataError).
    """
    if not (folder / checkpoint.INFO).exists():
        if checkpoint.strangers(folder, checkpoint.CONFIG, checkpoint.SPLIT):
            raise DataError(f"{folder}: not empty and not a run folder; choose another --out")
        return None
    there = Run.open(folder)
    if there.info.identity != wanted:
        raise DataError(
            f"{folder}: holds another run ({explain(there, key, config)}); choose another --out"
        )
    _ = there.config  # raises where it is damaged
    return there


def explain(there: Run, key: str, config: TrainConfig) -> str:
    """Why a run folder is not the one asked for."""
    if isinstance(there.info, GroupInfo):
        return "one over seeds or folds"
    reasons = differences(to_tree(there.config), to_tree(config))[:3]
    if there.info.store_key != key:
        reasons.append("trained on another store, or on other labels or splits of it")
    labels = ", or other unimodal labels" if config.data.unimodal_labels else ""
    return "; ".join(reasons) or f"another fold{labels}"


def identity(config: TrainConfig, key: str, *more: Any) -> str:
    """Two commands with the same identity ask for the same run."""
    return hashlib.sha256(
        json.dumps([to_tree(config), key, *more], sort_keys=True).encode()
    ).hexdigest()


def turns_key(store: FeatureStore, config: TrainConfig) -> list[str]:
    """What belongs to the identity of a run with context beside the key of its store; nothing for
    others, which no order of turns changes.
    """
    return [] if config.data.context == "none" else [context.key(store.table())]


def _mix(*numbers: int) -> int:
    """A 63-bit seed from several numbers, without the collisions of their sum."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
