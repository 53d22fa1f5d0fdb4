"""How large a batch should be: found by trying a few sizes on the corpus's own items, and
remembered for the device.

Too small a batch wastes launches and reads the weights too often, too large a one falls out of
caches or of memory. Where the best lies depends on device, encoder and precision, so it is
measured. The budget is no part of the recipe: features differ by rounding only.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from pathlib import Path

import numpy as np

from mer.pipeline.encoders.modality import Encoder, Item, Modality
from mer.pipeline.extraction.decoding import open_decoders
from mer.pipeline.extraction.fingerprint import Chosen
from mer.pipeline.extraction.options import ExtractOptions
from mer.pipeline.extraction.plan import Draft, Inputs
from mer.pipeline.extraction.runner import sources, threads_for
from mer.pipeline.runtime.files import publishing
from mer.pipeline.runtime.machine import (
    free_memory,
    is_out_of_memory,
    one_thread,
    processor,
    release_device_memory,
    single_threaded,
)

# The smallest budget that reaches this share of the best rate is taken: it needs least memory.
GOOD_ENOUGH_RATE = 0.98
SLOWER_IN_A_ROW = 2  # budgets below the best rate after which the search ends
SEARCH_SECONDS = 60.0  # after which no larger budget is tried
MEASURED_SECONDS = 0.2  # a measurement should take; shorter ones are repeated
SPARE_MEMORY_SHARE = 0.1  # of the host's memory that must stay free
PLACES = (0.25, 0.6, 0.9, 1.0)  # where in the sorted lengths items are taken from
NEIGHBOURS = 16  # items at each place


class Ended(StrEnum):
    """Why a search ended; the words are told and remembered."""

    LARGEST = "the largest tried"
    SHORT_CORPUS = "the corpus is too short for larger ones, so this is not remembered"
    OUT_OF_MEMORY = "larger ones do not fit into memory"
    NO_FASTER = "larger ones are no faster"
    TIME = f"ended after {SEARCH_SECONDS:g} s"
    NOTHING_FITS = "even the smallest runs out of memory: batches will be split"


@dataclass(frozen=True)
class Trial:
    """What was found.

    `rates[budget]`: seconds or tokens computed per second, None where memory ran out; `why` the
    search ended.
    """

    budget: float
    rates: dict[float, float | None] = field(default_factory=dict)
    why: Ended = Ended.LARGEST

    @property
    def complete(self) -> bool:
        """Whether it says something about the device, and not only about a short corpus."""
        return self.why is not Ended.SHORT_CORPUS

    def line(self, modality: str, unit: str) -> str:
        """What was found, for the user; `unit` is what a budget of the modality is told in."""
        tried = ", ".join(f"{budget:g}: {_rate(rate)}" for budget, rate in self.rates.items())
        return (
            f"{modality}: {self.budget:g} {unit} per batch ({unit} computed per second by budget: "
            f"{tried}; {self.why})"
        )


def _rate(rate: float | None) -> str:
    return "out of memory" if rate is None else f"{rate:,.3g}"


def fixed_budgets(modalities: Sequence[Modality], device: str) -> dict[str, int]:
    """Budgets in samples and tokens: as asked for, else the device's fixed figures."""
    return {modality.name: modality.budget_for(device) for modality in modalities}


def choose_budgets(
    chosen: Sequence[Chosen],
    inputs: Inputs,
    drafted: Draft,
    encoders: Mapping[str, Encoder],
    options: ExtractOptions,
    note: Callable[[str], None],
) -> dict[str, int]:
    """Budgets in samples and tokens, as remembered for this device or else by trying on items that
    are to be encoded; `note` is told which and why.
    """
    found, path = {}, memory_file()
    threads = threads_for(encoders, options)
    for choice in chosen:
        modality, encoder = choice.modality, encoders[choice.name]
        items = drafted.by_length(choice.name)
        if not items:
            continue
        key = device_key(encoder, threads)
        trial = remembered(key, path)
        if trial is not None:
            line = trial.line(choice.name, modality.unit)
            note(f"budget remembered for this device in {path}: {line}")
        else:
            groups = _groups(choice.name, items, inputs, encoders, options)
            if not groups:
                continue
            # beyond it there are threads without a batch
            most = sum(item.length for item in items) / modality.per_unit / (2 * threads)
            trial = try_budget(modality, encoder, groups, most=most, threads=threads)
            note(f"budget {trial.line(choice.name, modality.unit)}")
            _keep(key, trial, path, note)
        found[choice.name] = round(trial.budget * modality.per_unit)
    return found


def _groups(
    modality: str,
    items: Sequence[Item],
    inputs: Inputs,
    encoders: Mapping[str, Encoder],
    options: ExtractOptions,
) -> list[list[np.ndarray]]:
    """Items as the encoder takes them, neighbours in length together."""
    with open_decoders(options, len(items)) as decoders, one_thread():
        read = sources(inputs, encoders, decoders)[modality].read
        groups = []
        for neighbours in places(items):
            groups.append([x.value for x in read(neighbours) if x.problem is None])
    return [group for group in groups if group]


def _keep(key: str, trial: Trial, path: Path, note: Callable[[str], None]) -> None:
    try:
        if trial.complete:
            remember(key, trial, path)
    except OSError as error:
        note(f"{path}: {error.strerror or error}; the next run will try again")


def places(items: Sequence) -> list[Sequence]:
    """Neighbours at each of PLACES in what is sorted by length."""
    ends = [max(1, round(place * len(items))) for place in PLACES]
    return [items[max(0, end - NEIGHBOURS) : end] for end in ends]


def search(
    candidates: Sequence[float],
    measure: Callable[[float], float | None],
    *,
    clock: Callable[[], float] = time.monotonic,
) -> Trial:
    """Try `candidates` in ascending order; `measure` gives a rate, or None when memory does not
    suffice.
    """
    rates: dict[float, float | None] = {}
    started, best, slower, why = clock(), 0.0, 0, Ended.LARGEST
    for budget in candidates:
        rates[budget] = rate = measure(budget)
        if rate is None:
            why = Ended.OUT_OF_MEMORY
            break
        slower = slower + 1 if rate < best else 0
        best = max(best, rate)
        if slower == SLOWER_IN_A_ROW:
            why = Ended.NO_FASTER
            break
        if clock() - started > SEARCH_SECONDS:
            why = Ended.TIME
            break
    good = [b for b, rate in rates.items() if rate is not None and rate >= GOOD_ENOUGH_RATE * best]
    if not good:
        return Trial(candidates[0], rates, Ended.NOTHING_FITS)
    return Trial(good[0], rates, why)


def try_budget(
    modality: Modality,
    encoder: Encoder,
    groups: Sequence[Sequence[np.ndarray]],
    *,
    most: float,
    threads: int,
    room: Callable[[], float] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Trial:
    """The budget for an encoder.

    `groups` are inputs of nearly equal length, the groups in order of length: the last group has
    the longest inputs of the corpus, which need most memory. `threads` batches are computed side by
    side, as in a run. Budgets beyond `most` are not tried. `room()` is the share of the memory that
    is free.
    """
    room = room or free_memory
    unit = modality.per_unit
    with ThreadPoolExecutor(threads, initializer=single_threaded) as pool:

        def fits(batch: tuple) -> bool:
            """Compute it, on every thread; False when memory runs out."""
            futures = [pool.submit(encoder.forward, batch) for _ in range(threads)]
            errors = [future.exception() for future in futures]
            for error in filter(None, errors):
                if not is_out_of_memory(error):
                    raise error
            return not any(errors)

        def measure(budget: float) -> float | None:
            limit = round(budget * unit)
            least = getattr(encoder, "window", 0)
            largest = fill(groups[-1], limit, least)
            fitting = fits(encoder.collate(largest)) and room() > SPARE_MEMORY_SHARE
            chosen = [fill(group, limit, least) for group in groups[:-1] or groups]
            length = threads * sum(len(x) for batch in chosen for x in batch) / unit
            batches = [encoder.collate(batch) for batch in chosen] if fitting else []
            started, repeats = clock(), 0
            while fitting and (not repeats or clock() - started < MEASURED_SECONDS):
                fitting = all(fits(batch) for batch in batches)
                repeats += 1
            if not fitting:
                release_device_memory()
                return None
            return length * repeats / max(clock() - started, 1e-9)

        fits(encoder.collate(groups[0][:1]))  # what is slow only once
        candidates = modality.candidate_budgets[encoder.device.type]
        within = [budget for budget in candidates if budget <= most]
        trial = search(within or candidates[:1], measure)
    if trial.why is Ended.LARGEST and len(within) < len(candidates):
        return replace(trial, why=Ended.SHORT_CORPUS)
    return trial


def fill(group: Sequence[np.ndarray], limit: int, least: int = 0) -> list[np.ndarray]:
    """A batch of padded length up to `limit`: the items of a group, taken again as often as it
    needs; each is computed as `least` long at least.
    """
    count = max(1, limit // max(least, *(len(x) for x in group)))
    return (list(group) * -(-count // len(group)))[:count]


def device_key(encoder: Encoder, threads: int) -> str:
    """What a remembered budget is valid for."""
    import torch

    if encoder.device.type == "cuda":
        properties = torch.cuda.get_device_properties(encoder.device)
        device = f"{properties.name}, {properties.total_memory >> 30} GiB"
    else:
        device = f"{processor()}, {threads} threads"
    given = [encoder.checkpoint.hash, encoder.dim, encoder.layer_count]
    given += [getattr(encoder, name, "") for name in ("choice", "window")]
    what = hashlib.sha256(" ".join(map(str, given)).encode()).hexdigest()[:16]
    return (
        f"{device} | {encoder.checkpoint.name} {what} | {encoder.precision} | torch "
        f"{torch.__version__}"
    )


def memory_file() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mer" / "budgets.json"


def remembered(key: str, path: Path) -> Trial | None:
    """What an earlier search on this device found. A file that cannot be read is none."""
    try:
        found = json.loads(path.read_text())[key]
        rates = {float(budget): rate for budget, rate in found["rates"].items()}
        if not found["budget"] > 0:
            return None
        return Trial(float(found["budget"]), rates, Ended(found["why"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def remember(key: str, trial: Trial, path: Path) -> None:
    """Add to the file, atomically. Raises OSError."""
    try:
        known = json.loads(path.read_text())
        known = known if isinstance(known, dict) else {}
    except (OSError, ValueError):
        known = {}
    with publishing(path) as temporary:
        temporary.write_text(json.dumps({**known, key: asdict(trial)}, indent=1))
