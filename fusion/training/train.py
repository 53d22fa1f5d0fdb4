"""One trainer for every model: any run is a function of (store, configuration, seed) on one
machine, and can be killed at any moment.

The trainer is handed a `Split` of training and dev rows. It reads no other rows of the store; dev
chooses the epoch.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from mer.fusion import infer
from mer.fusion.batch import DataSpec
from mer.fusion.config import TrainConfig, to_toml
from mer.fusion.data import context, feature_sets, sources, splits, unimodal
from mer.fusion.data.splits import Fold, Split
from mer.fusion.measures import calibration, metrics
from mer.fusion.models import build
from mer.fusion.models.base import FusionModel
from mer.fusion.runs import checkpoint
from mer.fusion.runs.checkpoint import Run
from mer.fusion.runs.identity import beginning, beginning_of, check_folder, identity, turns_key
from mer.fusion.runs.records import FinishedInfo, Progress, SingleInfo, SplitIds
from mer.fusion.runtime import files, typed
from mer.fusion.runtime.devices import announcements, deterministic
from mer.fusion.runtime.notes import Note
from mer.fusion.runtime.parallel import ALONE, Processes
from mer.fusion.training import optim, sinks, without_effect
from mer.fusion.training.one_epoch import mixed_seed, run_epoch, steps_of
from mer.fusion.training.resume import Keeper, not_the_weights, resume
from mer.fusion.training.training_setup import Training, check_config, class_weights, measures_of
from mer.fusion.training.watch import Watch, chosen, rising
from mer.pipeline.errors import DataError
from mer.pipeline.runtime.terminal import amount, plural, shown
from mer.pipeline.store import FeatureStore

TOLD_SECONDS = 0.1  # that a check has to take for its time to be told


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
        log: Names of `mer.fusion.training.sinks` that are told every epoch, besides log.jsonl.
        among: How many trainings share this machine's memory.
        remark: Told of the store and the configuration, which the runs of a group have in common;
            None: `note` is.

    Returns:
        The finished run.

    Raises:
        DataError: The folder holds another run or a damaged one, the configuration does not fit the
            store, or the loss is no longer finite.
    """
    _check_steps(config, len(split.train), processes)
    spec, metric = check_config(store, config)
    key = checkpoint.store_key(store)
    target = splits.targets(store.table(), store.header.task, store.header.labels)
    spec = replace(spec, scale=splits.scale(target[split.train], spec.task))
    training = Training(
        store=store,
        config=config,
        folder=folder,
        split=split,
        fold=fold,
        device=torch.device(device),
        note=note,
        processes=processes,
        spec=spec,
        metric=metric,
        target=target,
        measures=measures_of(store, target),
        identity=identity(
            config,
            key,
            None if fold is None else [fold.by, *fold.held],
            *turns_key(store, config),
            *unimodal.key(store, config),
        ),
        store_key=key,
        command=command,
        watch=watch or Watch(note),
        remark=remark or note,
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
    for line in without_effect.lines(training, model):
        training.remark(line)
    optimizer = optim.adamw(model, config)
    info = _begin(training, model, there)
    parts = _parts(training, model.summary)
    checks_noted = all(part.resident for part in parts.values())
    if checks_noted:
        _say_checked(training, parts)
    keeper = Keeper(training.folder, model, optimizer, config.optim.ema)
    progress = resume(training, keeper)
    if progress.epoch:
        note(f"{folder}: goes on after epoch {progress.epoch}")
    else:
        _learn_scale(training, model, parts["train"])
    explained = rising(model, config.train.epochs)
    if explained is not None:
        training.remark(explained)
    watched = training.watch.training(
        epochs=config.train.epochs,
        rows=len(split.train),
        done=progress.epoch,
        metric=metric,
    )
    with sinks.opened(log, folder) as listening:
        training = replace(training, sinks=listening if processes.first else ())
        for sink in training.sinks:
            sink.begin(info, config, progress.log)
        with deterministic(training.device), announcements(note), watched:
            while _goes_on(progress, config):
                progress = _one_epoch(training, keeper, parts, progress)
                if not checks_noted:  # by now each row has been read once
                    _say_checked(training, parts)
                    checks_noted = True
        return _finish(training, info, progress)


def _check_steps(config: TrainConfig, rows: int, processes: Processes) -> None:
    """Raise DataError where an epoch over so many rows takes no step, or several processes cannot
    take steps as one would.
    """
    processes.check(config.optim.accumulate)
    batches = -(-rows // config.train.batch_size)
    if not steps_of(batches, config.optim):
        raise DataError(
            f"optim.accumulate = {config.optim.accumulate}, but an epoch has {batches} batches: "
            "summed, a smaller group takes no step; use a smaller train.batch_size or fewer batches"
        )
    if processes.size > 1 and config.optim.clip_value < math.inf:
        raise DataError("optim.clip_value clips after every batch in turn: train in one process")


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


def _split_json(training: Training) -> bytes:
    """The content of split.json."""
    ids = np.array(training.store.table()["id"].to_pylist(), dtype=object)
    used = SplitIds(tuple(ids[training.split.train]), tuple(ids[training.split.dev]))
    return files.json_text(typed.tree(used)).encode()


def _parts(training: Training, summary: bool) -> dict[str, sources.BatchSource]:
    """The training and dev rows, on the device where they fit in half of its free memory."""
    room = sources.free_bytes(training.device) // (2 * training.among)
    if training.device.type == "cpu":
        room //= training.processes.size  # they share it
    parts = {}
    for name, rows in training.rows.items():
        part = parts[name] = sources.batch_source(
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


def _learn_scale(training: Training, model: FusionModel, part: sources.BatchSource) -> None:
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
    parts: dict[str, sources.BatchSource],
    progress: Progress,
) -> Progress:
    """Train for one more epoch, score dev, and save where it is time."""
    model, optimizer = keeper.model, keeper.optimizer
    config, split, processes = training.config, training.split, training.processes
    epoch = progress.epoch + 1
    torch.manual_seed(mixed_seed(config.train.seed, epoch))
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

    def scored() -> tuple[
        dict[str, float],
        tuple[float, ...] | None,
        calibration.Scaling | None,
        dict[str, dict[str, float]],
    ]:
        with keeper.chosen_weights():
            answers = infer.infer(model, parts["dev"])
            layers = model.layer_weights()
        dev, thresholds = _dev_score(answers, target, training.spec, training.measures)
        wanted = config.train.calibrate == "temperature"
        scaling = calibration.fit(answers.scores, target) if wanted else None
        return dev, thresholds, scaling, layers

    dev, thresholds, scaling, layers = processes.agree(scored)
    entry = pass_.entry(epoch, dev, layers)
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
            raise not_the_weights(folder)
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
    notes = feature_sets.join_notes(store, spec, rows)
    for part, mine in training.rows.items():
        notes += feature_sets.absent_notes(store, spec, mine, f"{part} row")
    notes += unimodal.notes(store, spec, training.config, training.split)
    for name, one in spec.sources.items():
        if one.means or one.stack:
            what = plural(one.means, "layer mean") if one.means else plural(len(one.stack), "layer")
            notes.append(f"{name}: {what} mixed by learned weights (data.layers)")
    if others := feature_sets.unread(store, spec):
        notes.append(f"not read: {shown(', '.join(others), 120)} (name them in data.modalities)")
    return notes


def _say_checked(training: Training, parts: dict[str, sources.BatchSource]) -> None:
    """Say what the checks of the features have cost; nothing where all were checked before, as for
    the second run of a group.
    """
    size = sum(part.checked.bytes for part in parts.values())
    seconds = sum(part.checked.seconds for part in parts.values())
    if size:
        took = f" in {seconds:.1f} s" if seconds >= TOLD_SECONDS else ""
        training.remark(f"{amount(size)} of features read, sound by their checksums{took}")


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
