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
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from mer.pipeline.encoders.geometry import SAMPLE_RATE
from mer.pipeline.extraction.fingerprint import ExtractOptions
from mer.pipeline.extraction.parts import Encoder, is_out_of_memory, release, single_threaded
from mer.pipeline.extraction.work import Work, one_thread, open_decoders
from mer.pipeline.store.arrays import temporary_for

# lengths are in samples and tokens, budgets are told in seconds and tokens
UNIT = {"audio": SAMPLE_RATE, "text": 1}
# seconds and tokens, unless asked for
FIXED = {"cpu": {"audio": 8.0, "text": 512}, "cuda": {"audio": 320.0, "text": 16_384}}
CANDIDATES = {
    ("audio", "cpu"): (5, 10, 20, 40, 80, 160),
    ("audio", "cuda"): (40, 80, 160, 320, 640, 1280),
    ("text", "cpu"): (256, 512, 1024, 2048, 4096),
    ("text", "cuda"): (2048, 4096, 8192, 16_384, 32_768),
}
# of the best rate: the smallest budget that reaches it is taken, because it needs least memory
NEARLY = 0.98
WORSE = 2  # so many in a row below the best end the search
SPENT = 60.0  # seconds after which no larger budget is tried
LEAST = 0.2  # seconds that a measurement should take: shorter ones are repeated
SPARE = 0.1  # part of the host's memory that must stay free
PLACES = (0.25, 0.6, 0.9, 1.0)  # where in the sorted lengths items are taken from
LARGEST, SHORT = (
    "the largest tried",
    "the corpus is too short for larger ones, so this is not remembered",
)
NEIGHBOURS = 16  # items at each place


@dataclass
class Trial:
    """What was found.

    `rates[budget]`: seconds or tokens computed a second, None where memory ran out; `why` the
    search ended.
    """

    budget: float
    rates: dict[float, float | None] = field(default_factory=dict)
    why: str = ""

    @property
    def complete(self) -> bool:
        """Whether it says something about the device, and not only about a short corpus."""
        return self.why != SHORT

    def line(self, modality: str) -> str:
        unit = {"audio": "s", "text": "tokens"}[modality]
        tried = ", ".join(
            f"{b:g}: {'out of memory' if rate is None else f'{rate:,.3g}'}"
            for b, rate in self.rates.items()
        )
        return (
            f"{modality}: {self.budget:g} {unit} a batch ({unit} computed a second by budget: "
            f"{tried}; {self.why})"
        )


def wanted(options: ExtractOptions) -> dict[str, float | str | None]:
    return {"audio": options.budget_seconds, "text": options.budget_tokens}


def fixed(options: ExtractOptions, device: str) -> dict[str, int]:
    """Budgets in samples and tokens: as asked for, else the device's fixed figures."""
    numbers = {m: value for m, value in wanted(options).items() if value not in (None, "auto")}
    return {m: round(value * UNIT[m]) for m, value in (FIXED[device] | numbers).items()}


def choose(work: Work, modalities: Sequence[str], note: Callable[[str], None]) -> dict[str, int]:
    """Budgets in samples and tokens, as remembered for this device or else by trying on items of
    the plan; `note` is told which and why.
    """
    found = {}
    for modality in modalities:
        items, path = work.by_length(modality), memory_file()
        if not items:
            continue
        key = device_key(work.encoders[modality], work.threads)
        trial = remembered(key, path)
        if trial is not None:
            note(f"budget remembered for this device in {path}: {trial.line(modality)}")
        else:
            # else there are threads without a batch
            most = sum(item.length for item in items) / UNIT[modality] / (2 * work.threads)
            with open_decoders(work.options, len(items)) as decoders, one_thread():
                inputs = work.sources(decoders)[modality].inputs
                groups = [
                    [x.waveform for x in inputs(group) if x.stage is None]
                    for group in places(items)
                ]
                groups = [group for group in groups if group]
                if not groups:
                    continue
                trial = try_budget(
                    modality, work.encoders[modality], groups, most=most, threads=work.threads
                )
            note(f"budget {trial.line(modality)}")
            try:
                if trial.complete:
                    remember(key, trial, path)
            except OSError as error:
                note(f"{path}: {error.strerror or error}; the next run will try again")
        found[modality] = round(trial.budget * UNIT[modality])
    return found


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
    started, below, why = clock(), 0, LARGEST
    for budget in candidates:
        rates[budget] = rate = measure(budget)
        if rate is None:
            why = "larger ones do not fit into memory"
            break
        below = below + 1 if rate < max(r for r in rates.values() if r is not None) else 0
        if below == WORSE:
            why = "larger ones are no faster"
            break
        if clock() - started > SPENT:
            why = f"ended after {SPENT:g} s"
            break
    known = {budget: rate for budget, rate in rates.items() if rate is not None}
    if not known:
        return Trial(
            candidates[0], rates, "even the smallest runs out of memory: batches will be split"
        )
    best = max(known.values())
    return Trial(
        next(budget for budget, rate in known.items() if rate >= NEARLY * best), rates, why
    )


def try_budget(
    modality: str,
    encoder: Encoder,
    groups: Sequence[Sequence[np.ndarray]],
    *,
    most: float,
    threads: int,
    room: Callable[[], float] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Trial:
    """The budget for an encoder.

    `groups` are inputs of nearly one length each, in the order of their length; the last are the
    longest of the corpus, which need most memory. `threads` batches are computed side by side, as
    in a run. Budgets beyond `most` are not tried. `room()` is the part of the memory that is free.
    """
    room = room or free_memory
    unit = UNIT[modality]
    with ThreadPoolExecutor(threads, initializer=single_threaded) as pool:

        def fits(batch: tuple) -> bool:
            """Compute it, on every thread; False when memory runs out."""
            errors = [
                future.exception()
                for future in [pool.submit(encoder.forward, batch) for _ in range(threads)]
            ]
            for error in filter(None, errors):
                if not is_out_of_memory(error):
                    raise error
            return not any(errors)

        def measure(budget: float) -> float | None:
            limit = round(budget * unit)
            fitting = fits(encoder.collate(fill(groups[-1], limit))) and room() > SPARE
            chosen = [fill(group, limit) for group in groups[:-1] or groups]
            length = threads * sum(len(x) for batch in chosen for x in batch) / unit
            batches = [encoder.collate(batch) for batch in chosen] if fitting else []
            started, repeats = clock(), 0
            while fitting and (not repeats or clock() - started < LEAST):
                fitting = all(fits(batch) for batch in batches)
                repeats += 1
            if not fitting:
                release()
                return None
            return length * repeats / max(clock() - started, 1e-9)

        fits(encoder.collate(groups[0][:1]))  # what is slow only once
        candidates = CANDIDATES[modality, encoder.device.type]
        within = [budget for budget in candidates if budget <= most]
        trial = search(within or candidates[:1], measure)
        return (
            replace(trial, why=SHORT)
            if trial.why == LARGEST and len(within) < len(candidates)
            else trial
        )


def fill(group: Sequence[np.ndarray], limit: int) -> list[np.ndarray]:
    """A batch of padded length up to `limit`: the items of a group, taken again as often as it
    needs.
    """
    count = max(1, limit // max(len(x) for x in group))
    return (list(group) * -(-count // len(group)))[:count]


def free_memory() -> float:
    """The part of this machine's (or container's) memory that is free, 0 to 1; 1 where it cannot be
    told.
    """
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        total, free = (int(lines[name].split()[0]) for name in ("MemTotal", "MemAvailable"))
    except (OSError, ValueError, KeyError):
        return 1.0
    try:
        limit, used = (
            int(Path(f"/sys/fs/cgroup/memory.{name}").read_text()) for name in ("max", "current")
        )
        return min(free / total, 1 - used / limit)
    except (OSError, ValueError):  # "max": no limit
        return free / total


def device_key(encoder, threads: int) -> str:
    """What a remembered budget is valid for."""
    import torch

    if encoder.device.type == "cuda":
        properties = torch.cuda.get_device_properties(encoder.device)
        device = f"{properties.name}, {properties.total_memory >> 30} GiB"
    else:
        lines = (
            Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
        )
        device = (
            next(
                (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")),
                "cpu",
            )
            + f", {threads} threads"
        )
    layer = getattr(encoder, "layers", ())
    what = hashlib.sha256(f"{encoder.checkpoint.hash} {layer}".encode()).hexdigest()[:16]
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
        return (
            Trial(float(found["budget"]), rates, str(found["why"])) if found["budget"] > 0 else None
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def remember(key: str, trial: Trial, path: Path) -> None:
    """Add to the file, atomically. Raises OSError."""
    try:
        known = json.loads(path.read_text())
        known = known if isinstance(known, dict) else {}
    except (OSError, ValueError):
        known = {}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_for(path)
    try:
        temporary.write_text(json.dumps({**known, key: asdict(trial)}, indent=1))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
