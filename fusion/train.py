"""One trainer for every model: any run is a function of (store, configuration, seed) on one
machine, and can be killed at any moment.

The trainer is handed a `Plan` of training and dev rows. It reads no other rows of the store; dev
chooses the epoch.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import platform
import re
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mer.fusion import checkpoint, data, files, infer, metrics, shapes, splits
from mer.fusion.batch import DataSpec
from mer.fusion.checkpoint import Run
from mer.fusion.config import TrainConfig, differences, to_toml, to_tree
from mer.fusion.models import build
from mer.fusion.parallel import ALONE, Processes
from mer.fusion.splits import Fold, Plan
from mer.pipeline.errors import DataError
from mer.pipeline.store import FeatureStore

Note = Callable[[str], None]


def pick_device(name: str = "auto") -> torch.device:
    """`auto`: CUDA where there is one. Raises DataError for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d{1,3})?", name):
        raise DataError(f"--device {name}: expected auto, cpu, cuda or cuda:N")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise DataError(
            f"--device {name}: not usable here ({str(error).splitlines()[0]})"
        ) from None
    return device


def fit(
    store: FeatureStore,
    config: TrainConfig,
    folder: Path,
    *,
    plan: Plan,
    fold: Fold | None = None,
    device: torch.device | str,
    note: Note,
    processes: Processes = ALONE,
) -> Run:
    """Train one model into `folder`, or go on from its last finished epoch.

    Returns the finished run.

    Deterministic: epoch e draws its batches and dropout from (seed, e) alone, so that a resumed run
    equals an uninterrupted one. Of several `processes` all make this call; the first one writes.
    """
    processes.check(config.optim.accumulate)
    device = torch.device(device)
    spec, metric = check(store, config)
    loop, key = config.train, checkpoint.store_key(store)
    wanted = identity(config, key, None if fold is None else [fold.by, *fold.held])
    there = processes.agree(lambda: check_folder(folder, config, key, wanted))
    if there is not None and there.finished:
        processes.agree(there.sound)
        note(f"{folder}: already trained")
        return there
    for line in plan.notes:
        note(line)
    table = store.table()
    target = splits.targets(table, store.header.task, store.header.labels)
    measures = measures_of(store, target)
    if measures == "sims":
        note(f"{store.header.dataset}: scored by the measures of CH-SIMS, targets within [-1, 1]")

    torch.manual_seed(loop.seed)
    model = build(config.model, config.model_args, spec).to(device)
    optimizer = torch.optim.AdamW(parameter_groups(model, config), betas=config.optim.betas)
    text = to_toml(config)
    made_of = (
        hashlib.sha256(text.encode()).hexdigest()
        if there is None
        else there.info.get("config_sha256")
    )
    ids = table["id"].to_pylist()
    parted = {name: [ids[r] for r in getattr(plan, name)] for name in ("train", "dev")}
    split = files.json_text(parted).encode()
    info = {
        "format": "mer-run",
        "version": checkpoint.VERSION,
        "kind": "single",
        "identity": wanted,
        "store_key": key,
        "model": config.model,
        "config_sha256": made_of,
        "split_sha256": hashlib.sha256(split).hexdigest(),
        "seed": loop.seed,
        "select_metric": metric,
        "fold": None
        if fold is None
        else {"name": fold.name, "by": fold.by, "held": list(fold.held)},
        "features": str(Path(store.path).resolve()),
        "store": checkpoint.describe_store(store),
        "spec": checkpoint.spec_tree(spec),
        "counts": {"train": len(plan.train), "dev": len(plan.dev)},
        "notes": list(plan.notes),
        "measures": measures,
        "label_counts": splits.label_counts(
            target[plan.train], store.header.task, store.header.labels
        ),
        "parameters": sum(p.numel() for p in model.parameters()),
        "device": str(device),
        "versions": {
            "python": platform.python_version(),
            **{p: metadata.version(p) for p in ("torch", "numpy")},
        },
        "finished": False,
    }
    if processes.first:
        path = folder / checkpoint.SPLIT
        if there is None:
            files.write_text(folder / checkpoint.CONFIG, text)
            files.write_bytes(path, split)
            files.write_json(folder / checkpoint.INFO, info)
        elif not path.is_file() or files.digest(path) != info["split_sha256"]:
            note(f"{path}: was not as this training wrote it; written again")
            files.write_bytes(path, split)

    room = data.free_bytes(device) // 2
    if device.type == "cpu":
        room //= processes.size  # they share it
    parts = {}
    for name in ("train", "dev"):
        rows = getattr(plan, name)
        parts[name] = data.part(
            store,
            spec,
            config.data,
            rows,
            target[rows],
            device=device,
            room=room,
            summary=model.summary,
        )
        if parts[name].resident:
            room -= parts[name].nbytes()
        else:
            note(
                f"{name}: {parts[name].nbytes() / 2**30:.1f} GiB are read from the store batch by "
                f"batch, not kept on {device}"
            )

    said = all(part.resident for part in parts.values())
    if said:
        note(checked_line(parts))
    state = _resume(folder, model, optimizer, config, spec, wanted, processes, note)
    if state["epoch"]:
        note(f"{folder}: goes on after epoch {state['epoch']}")
    else:
        if loop.class_weight != "none":
            model.set_class_weights(
                class_weights(target[plan.train], spec, loop.class_weight).to(device)
            )
        if config.data.standardise:
            model.calibrate(parts["train"].batches(parts["train"].in_order(infer.BATCH)))
    batches = -(-len(plan.train) // loop.batch_size)
    steps = loop.epochs * -(-batches // config.optim.accumulate)
    with deterministic(device), announcements(note):
        while state["epoch"] < loop.epochs and state["epoch"] - state["best_epoch"] < loop.patience:
            epoch = state["epoch"] + 1
            torch.manual_seed(_mix(loop.seed, epoch))
            entry = {
                "epoch": epoch,
                **run_epoch(model, optimizer, parts["train"], config, epoch, steps, processes),
            }
            entry["dev"], thresholds = processes.agree(
                lambda: _dev_score(
                    infer.infer(model, parts["dev"]), target[plan.dev], spec, measures
                )
            )
            rank = _rank(metric, entry["dev"])
            if not state["best_epoch"] or rank > tuple(state["best_rank"]):
                state.update(
                    best_epoch=epoch, best_rank=list(rank), best=entry["dev"], thresholds=thresholds
                )
            state.update(
                epoch=epoch, step=entry["step"], log=[*state["log"], metrics.jsonable(entry)]
            )
            if processes.first:
                _save(folder, model, optimizer, state)
            note(_line(entry, metric, state["best_epoch"] == epoch))
            if not said:  # by now each row has been read once
                note(checked_line(parts))
                said = True
    info.update(
        finished=True,
        best_epoch=state["best_epoch"],
        epochs=state["epoch"],
        dev=metrics.jsonable(state["best"]),
        thresholds=state["thresholds"],
        utterances_per_second=_rate(state["log"], len(plan.train)),
    )
    if processes.first:
        info["model_sha256"] = state["model_sha256"]
        if files.digest(folder / checkpoint.MODEL) != state["model_sha256"]:
            raise _not_the_weights(folder)
        log = "".join(json.dumps(e) + "\n" for e in state["log"]).encode()
        info["log_sha256"] = hashlib.sha256(log).hexdigest()
        files.write_bytes(folder / checkpoint.LOG, log)
        files.write_json(folder / checkpoint.INFO, info)
    return Run(folder, info)


def checked_line(parts: dict[str, data.Part]) -> str:
    """What the checks of the features have cost."""
    size, seconds = (
        sum(getattr(part.checked, what) for part in parts.values()) for what in ("bytes", "seconds")
    )
    shown = f"{size / 1e6:,.1f} MB" if size >= 1e6 else f"{size / 1e3:,.1f} kB"
    return f"{shown} of features held against their checksums in {seconds:.2f} s, once"


def measures_of(store: FeatureStore, target: np.ndarray) -> str:
    """By whose definitions the targets of `store` are scored (fusion.metrics)."""
    return (
        metrics.measures_of(store.header.dataset, target)
        if store.header.task == "regression"
        else "mosi"
    )


def check(store: FeatureStore, config: TrainConfig) -> tuple[DataSpec, str]:
    """What the model is built for, and the dev metric that chooses the epoch.

    Raises DataError for a configuration that cannot be trained on such a store; reads no features.
    """
    spec, loop = data.spec(store, config.data), config.train
    metric = infer.headline(spec.task) if loop.select_metric == "auto" else loop.select_metric
    target = splits.targets(store.table(), spec.task, spec.labels)
    known = infer.scalars(spec.task, spec.labels, measures_of(store, target))
    if metric not in (*known, "loss"):
        raise DataError(f"train.select_metric = {metric}: dev has {', '.join(known)}, loss")
    if loop.class_weight != "none" and spec.task == "regression":
        raise DataError(
            f"train.class_weight = {loop.class_weight}: a regression has no classes; use none"
        )
    # it says itself what it needs; tens of milliseconds
    build(config.model, config.model_args, spec)
    return spec, metric


def run_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    part: data.Part,
    config: TrainConfig,
    epoch: int,
    steps: int,
    processes: Processes = ALONE,
) -> dict[str, Any]:
    """One pass over the training rows.

    Sums stay on the device, so that the host never waits for a step.
    """
    loop, optim, device = config.train, config.optim, part.device
    started = time.perf_counter()
    order = part.shuffled(loop.batch_size, (loop.seed, epoch))
    groups = [order[i : i + optim.accumulate] for i in range(0, len(order), optim.accumulate)]
    waited = time.perf_counter() - started  # for data
    done = (epoch - 1) * len(groups)
    parameters = [p for g in optimizer.param_groups for p in g["params"]]
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    norm = torch.zeros((), device=device)
    autocast = loop.precision == "bf16" or (loop.precision == "auto" and device.type == "cuda")
    model.train()
    feed = part.batches([index for group in groups for index in processes.share(group)])
    for k, group in enumerate(groups):
        step = done + k
        progress = step / max(steps - 1, 1)
        for g in optimizer.param_groups:
            g["lr"] = g["peak"] * schedule(step, steps, optim.warmup, optim.schedule)
        weights = model.weights(progress)
        samples = sum(len(i) for i in group)
        for number, index in processes.share(list(enumerate(group, start=k * optim.accumulate))):
            if optim.accumulate > 1:  # then another process may have computed the batch before
                torch.manual_seed(_mix(loop.seed, epoch, number))
            asked = time.perf_counter()
            batch = next(feed)
            waited += time.perf_counter() - asked
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=autocast):
                terms = model.losses(batch, progress)
                total = sum(weights[name] * value for name, value in terms.items())
            (total * (len(index) / samples)).backward()
            for name, value in {**terms, "total": total}.items():
                sums[name] = sums.get(name, 0) + value.detach().float() * len(index)
                counts[name] = counts.get(name, 0) + len(index)
        processes.add_gradients(parameters)
        norm += torch.nn.utils.clip_grad_norm_(parameters, optim.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    found = processes.gather({name: (float(value), counts[name]) for name, value in sums.items()})
    names = dict.fromkeys(name for one in found for name in one)
    means = {
        n: sum(one[n][0] for one in found if n in one) / sum(one[n][1] for one in found if n in one)
        for n in names
    }
    gradient = float(norm) / len(groups)
    if not math.isfinite(means["total"]) or not math.isfinite(gradient):
        bad = [n for n, v in means.items() if not math.isfinite(v)] or ["gradient"]
        raise DataError(
            f"epoch {epoch}: the loss is no longer finite ({', '.join(bad)}); lower optim.lr or "
            "optim.clip and train again"
        )
    seconds = time.perf_counter() - started
    return {
        "step": done + len(groups),
        "lr": optimizer.param_groups[0]["lr"],
        "gradient_norm": gradient,
        "train": means,
        "diagnostics": {k: float(v) for k, v in model.diagnostics().items()},
        "seconds": round(seconds, 4),
        "data_seconds": round(waited, 4),
    }


def parameter_groups(model: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """AdamW groups: no decay on one-dimensional parameters (biases, norms), nor on those to which
    `model.lr_scale` gives a rate of their own.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, p in model.named_parameters():
        if p.requires_grad:
            decay = config.optim.weight_decay if p.ndim > 1 and name not in model.lr_scale else 0.0
            groups.setdefault((config.optim.lr * model.lr_scale.get(name, 1.0), decay), []).append(
                p
            )
    return [
        {"params": p, "lr": lr, "peak": lr, "weight_decay": decay}
        for (lr, decay), p in groups.items()
    ]


def schedule(step: int, steps: int, warmup: float, shape: str) -> float:
    """Factor on the learning rate at `step` of `steps`: linear warm-up over a share of them, then a
    cosine to 0, or constant.
    """
    rising = max(round(warmup * steps), 1)
    if step < rising:
        return (step + 1) / rising
    return (
        0.5 * (1 + math.cos(math.pi * (step - rising) / max(steps - rising, 1)))
        if shape == "cosine"
        else 1.0
    )


def class_weights(target: np.ndarray, spec: DataSpec, kind: str) -> Tensor:
    """(C,) weights by the training labels. single: 1/n_c (balanced) or its root, with mean 1 over
    the samples; multi: the weight of a positive, n_negative/n_positive or its root. A class without
    samples has no say in it: weight 1.
    """
    count = (
        np.bincount(target, minlength=spec.outputs).astype(float)
        if spec.task == "single"
        else target.sum(0).astype(float)
    )
    seen = np.maximum(count, 1)
    weight = 1 / seen if spec.task == "single" else (len(target) - count) / seen
    weight = weight if kind == "balanced" else np.sqrt(weight)
    if spec.task == "single":
        weight *= count.sum() / (weight * count).sum()
    return torch.from_numpy(np.where(count > 0, weight, 1).astype(np.float32))


@contextlib.contextmanager
def announcements(note: Note) -> Iterator[None]:
    """Pass on what the fused losses log: which implementation runs. They say it once a process."""
    handler = logging.Handler(logging.INFO)
    handler.emit = lambda record: note(record.getMessage())
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
    """Deterministic kernels where PyTorch has them; the former settings come back."""
    was, warn = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    torch.use_deterministic_algorithms(device.type == "cuda" or was, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was, warn_only=warn)


def _dev_score(
    out: infer.Outputs, target: np.ndarray, spec: DataSpec, measures: str
) -> tuple[dict[str, float], list[float] | None]:
    thresholds = metrics.choose_thresholds(target, out.scores) if spec.task == "multi" else None
    figures = infer.score(
        infer.decide(out.scores, spec.task, thresholds), target, spec.task, spec.labels, measures
    )
    return {
        **{k: v for k, v in figures.items() if isinstance(v, float)},
        "loss": out.loss,
    }, thresholds


def _rank(metric: str, dev: dict[str, float]) -> tuple[float, float]:
    """Larger is better; on small dev sets many epochs tie, and the smaller dev loss decides."""
    value = dev[metric] if metric not in metrics.LOWER_IS_BETTER else -dev[metric]
    return (
        value if math.isfinite(value) else -math.inf,
        -dev["loss"] if math.isfinite(dev["loss"]) else -math.inf,
    )


def _save(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]
) -> None:
    """What a resume starts from, and the weights that dev chose when this epoch's are those.

    `last.safetensors` goes first and names the sha256 of the weights: killed in between, the next
    call has in it all it needs to write these again.
    """
    chosen = state["best_epoch"] == state["epoch"]
    if chosen:
        weights = checkpoint.pack(model.state_dict(), {"epoch": state["epoch"]})
        state["model_sha256"] = hashlib.sha256(weights).hexdigest()
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    for name, p in model.named_parameters():
        tensors.update(
            {f"optim.{key}.{name}": value for key, value in optimizer.state.get(p, {}).items()}
        )
    checkpoint.save_tensors(folder / checkpoint.LAST, tensors, state)
    if chosen:
        files.write_bytes(folder / checkpoint.MODEL, weights)


def _resume(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    config: TrainConfig,
    spec: DataSpec,
    wanted: str,
    processes: Processes,
    note: Note,
) -> dict[str, Any]:
    """Progress so far; loads model and optimizer in place when there is some."""
    path = folder / checkpoint.LAST
    fresh = {
        "epoch": 0,
        "step": 0,
        "best_epoch": 0,
        "best_rank": [-math.inf, -math.inf],
        "best": {},
        "thresholds": None,
        "log": [],
        "identity": wanted,
    }
    if not path.exists():
        return fresh
    tensors, state = checkpoint.load_tensors(path)
    remedy = "delete it and train again"
    if found := shapes.fault(state, shapes.PROGRESS) or _odd_progress(state, config, spec):
        raise DataError(f"{path}: damaged checkpoint ({shapes.brief(found)}); {remedy}")
    if "model_sha256" not in state:
        note(f"{path}: an earlier mer wrote it without checksums; the training starts again")
        return fresh
    if state["identity"] != wanted:
        raise DataError(f"{path}: of another training; {remedy}")
    weights = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
    checkpoint.fill(model, weights, f"{path}: does not fit this run's model")
    for name, p in model.named_parameters():
        moments = {
            key: tensors.get(f"optim.{key}.{name}") for key in ("step", "exp_avg", "exp_avg_sq")
        }
        if all(value is None for value in moments.values()):
            continue  # never used so far
        expected = {"step": torch.zeros(()), "exp_avg": p, "exp_avg_sq": p}
        for key, value in moments.items():
            if value is None or (value.shape, value.dtype) != (
                expected[key].shape,
                expected[key].dtype,
            ):
                raise DataError(
                    f"{path}: damaged checkpoint ({key} of {name} does not fit); {remedy}"
                )
            optimizer.state[p][key] = value if key == "step" else value.to(p.device)
    if state["best_epoch"] < state["epoch"]:
        if (
            files.digest(folder / checkpoint.MODEL, f"delete {path} and train again")
            != state["model_sha256"]
        ):
            raise _not_the_weights(folder)
    # the last epoch is the best: killed before its weights were written, perhaps
    elif processes.first:
        files.write_bytes(
            folder / checkpoint.MODEL,
            checkpoint.pack(model.state_dict(), {"epoch": state["epoch"]}),
        )
    return state


def _odd_progress(state: dict[str, Any], config: TrainConfig, spec: DataSpec) -> str | None:
    """What cannot be in the progress of such a run; None: nothing."""
    if not 1 <= state["best_epoch"] <= state["epoch"] <= config.train.epochs:
        return f"best epoch {state['best_epoch']} of {state['epoch']} of {config.train.epochs}"
    if len(state["log"]) != state["epoch"] or len(state["best_rank"]) != 2 or state["step"] < 1:
        return "its log, rank or step do not fit its epoch"
    if spec.task == "multi" and len(state["thresholds"] or ()) != len(spec.labels):
        return "thresholds are not one for each label"
    return None


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
    if there.info.get("identity") != wanted:
        raise DataError(
            f"{folder}: holds another run ({explain(there, key, config)}); choose another --out"
        )
    _ = there.config  # raises where it is damaged
    return there


def explain(there: Run, key: str, config: TrainConfig) -> str:
    """Why a run folder is not the one asked for."""
    if there.info["kind"] == "group":
        return "one over seeds or folds"
    reasons = differences(to_tree(there.config), to_tree(config))[:3]
    if there.info["store_key"] != key:
        reasons.append("trained on another store, or on other labels or splits of it")
    return "; ".join(reasons) or "another fold"


def identity(config: TrainConfig, key: str, *more: Any) -> str:
    """Two commands with the same identity ask for the same run."""
    return hashlib.sha256(
        json.dumps([to_tree(config), key, *more], sort_keys=True).encode()
    ).hexdigest()


def _mix(*numbers: int) -> int:
    """A 63-bit seed from several numbers, without the collisions of their sum."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def _rate(log: list[dict], rows: int) -> float:
    seconds = sum(e["seconds"] for e in log)
    return round(rows * len(log) / seconds, 1) if seconds else 0.0


def _line(entry: dict[str, Any], metric: str, best: bool) -> str:
    return (
        f"epoch {entry['epoch']:3d}  loss {entry['train']['total']:.4f}  dev {metric} "
        f"{entry['dev'][metric]:.4f}{'  *' if best else ''}"
    )
