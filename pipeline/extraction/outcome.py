"""What an extraction did, for people and for machines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from mer.pipeline.errors import FailuresError
from mer.pipeline.media.stages import Flag
from mer.pipeline.runtime.terminal import plural

SHOWN = 10  # failures listed; all are in failures.jsonl
NAMED = 5  # ids of each count; all are in the store


def flagged(ids: Sequence[str], flags: np.ndarray) -> dict[str, list[str]]:
    """Name of a flag → ids that have it; flags that none has are left out."""
    found = {}
    for name, flag in Flag.__members__.items():
        rows = np.flatnonzero(flags & flag.value)
        if len(rows):
            found[name] = [ids[row] for row in rows]
    return found


def count_lines(counts: Mapping[str, int], first: Mapping[str, Sequence[str]]) -> list[str]:
    """What was counted, what it means, and the first ids of each."""
    lines = []
    for name, count in counts.items():
        rest = count - len(first[name])
        more = f" and {rest:,} more" if rest > 0 else ""
        ids = ", ".join(first[name])
        lines.append(f"counted: {count:,} {name} ({Flag[name].meaning}): {ids}{more}")
    return lines


@dataclass(frozen=True)
class Failure:
    """An utterance that is not in the store.

    `stage`: open, decode, empty, timeout, oom, nan, …; `known`: the corpus's list names it.
    """

    id: str
    path: str | None
    stage: str
    reason: str
    known: bool


@dataclass(frozen=True)
class ExtractReport:
    """What an extraction did.

    `extracted` utterances were computed by this run (or the killed one that it finished), `reused`
    were there before. Of some of the extracted ones a modality was `taken_over` and others were
    computed: their number, by modality. `padding` is padded over valid length, by modality.
    """

    out: Path
    fingerprint: str
    action: str  # extracted | nothing | head | dry-run | part
    utterances: int = 0
    extracted: int = 0
    reused: int = 0
    failures: list[Failure] = field(default_factory=list)
    failures_path: Path | None = None
    audio_seconds: float = 0.0
    seconds: float = 0.0
    padding: dict[str, float] = field(default_factory=dict)
    batches: dict[str, int] = field(default_factory=dict)
    self_test: dict[str, dict] = field(default_factory=dict)
    # utterances that are short, chunked, cut, … (media.stages.Flag)
    counts: dict[str, int] = field(default_factory=dict)
    flagged: dict[str, list[str]] = field(default_factory=dict)  # the first ids of each count
    oom_splits: int = 0
    fp32_batches: int = 0
    bytes: int = 0
    shards: int = 0
    untrained: list[str] = field(default_factory=list)
    taken_over: dict[str, int] = field(default_factory=dict)

    @property
    def unexpected(self) -> int:
        """Failures that nobody knew of."""
        return sum(not failure.known for failure in self.failures)

    def to_dict(self) -> dict:
        return {
            **asdict(self),
            "out": str(self.out),
            "failures_path": str(self.failures_path) if self.failures else None,
            "failed": len(self.failures),
            "unexpected_failures": self.unexpected,
        }

    def lines(self) -> list[str]:
        """For people: what was done, what went wrong, where it is."""
        size = (
            f"{_spoken(self.audio_seconds)} of audio, {self.bytes / 1e6:,.1f} MB in "
            f"{plural(self.shards, 'shard')}"
        )
        took = f"{'planned in ' if self.action == 'dry-run' else ''}{self.seconds:.1f} s"
        out = [f"{self._done()}; {size}, {took}", *self._plan_lines()]
        out += [_self_test_line(m, test) for m, test in self.self_test.items()]
        out += [f"{m}: {test['note']}" for m, test in self.self_test.items() if "note" in test]
        if self.counts:
            out += count_lines(self.counts, self.flagged)
            out.append(f"all of a kind: mer inspect {self.out} --flag {next(iter(self.counts))}")
        if self.oom_splits or self.fp32_batches:
            out.append(
                f"{plural(self.oom_splits, 'batch', 'batches')} split for memory, "
                f"{self.fp32_batches:,} computed again in fp32"
            )
        out += self._failure_lines()
        if self.untrained and self.action != "extracted":  # then it was said at the beginning
            out.append(untrained_line(self.untrained))
        return out

    def _done(self) -> str:
        taken = ", ".join(f"{m} of {n:,}" for m, n in self.taken_over.items())
        over = f", {taken} taken over" if taken else ""
        extracted = plural(self.extracted, "utterance")
        all_are = f"all {self.utterances:,} utterances are"
        if self.utterances == 1:
            all_are = "the one utterance is"
        return {
            "extracted": f"{extracted} extracted{over}, {self.reused:,} reused",
            "nothing": f"nothing to do: {all_are} there",
            "head": "labels or splits changed: only the head file is written again, "
            f"{all_are} reused",
            "dry-run": f"dry run: {extracted} to extract{over}, {self.reused:,} reused",
            "part": "this share of the work is done; the run that finishes last writes the store",
        }[self.action]

    def _plan_lines(self) -> list[str]:
        lines = []
        if self.batches:
            batches = (
                f"{m} {plural(n, 'batch', 'batches')} ({self.padding[m]:.3f} padded/valid)"
                for m, n in self.batches.items()
                if n
            )
            lines.append(f"plan: {', '.join(batches) or 'no batches'}")
        if self.action == "dry-run":
            size = f"{self.bytes / 1e6:,.1f} MB"
            lines.append(f"disk: {size}, and up to as much again while it runs")
        return lines

    def _failure_lines(self) -> list[str]:
        lines = []
        for failure in self.failures[:SHOWN]:
            what = "known bad" if failure.known else "failed"
            lines.append(f"{what}: {failure.id}: {failure.stage}: {failure.reason}")
        if not self.failures:
            return lines
        rest = len(self.failures) - SHOWN
        more = f"… and {rest:,} more; " if rest > 0 else ""
        count = (
            f"not in the store: {plural(len(self.failures), 'utterance')}, {self.unexpected:,} of "
            "them unexpected"
        )
        written = self.action not in ("dry-run", "part")
        where = f": {self.failures_path}" if written else ""
        return [*lines, f"{more}{count}{where}"]


def _spoken(seconds: float) -> str:
    """A length of audio.

    >>> _spoken(72.0), _spoken(36_000.0)
    ('1.2 minutes', '10.00 h')
    """
    return f"{seconds / 60:.1f} minutes" if seconds < 3600 else f"{seconds / 3600:,.2f} h"


def untrained_line(names: Sequence[str]) -> str:
    """What must be known of features from untrained encoders."""
    return f"untrained encoders ({', '.join(names)}): these features are for trying things out"


def _self_test_line(modality: str, test: dict) -> str:
    half = ""
    if "precision_error" in test:
        half = f", {test['precision']} against fp32 {test['precision_error']:.1e}"
    if "window_distance" in test:
        half += f", frames {test['window_distance']:.1%} from the encoder's full window (median)"
    return (
        f"self-test {modality}: batch against single {test['relative']:.1e} of the largest "
        f"feature{half} "
        f"({test['items']} items, {test['precision']})"
    )


class TooManyFailures(FailuresError):
    """The run finished, but more clips failed than allowed; `report` is what it did."""

    def __init__(self, message: str, report: ExtractReport):
        super().__init__(message)
        self.report = report
