"""What an extraction did, for people and for machines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from mer.pipeline.extraction.parts import BIT, FLAGS

SHOWN = 10  # failures listed; all are in failures.jsonl
NAMED = 5  # ids of each count; all are in the store


def flagged(ids: Sequence[str], flags: np.ndarray) -> dict[str, list[str]]:
    """Flag -> ids that have it; flags that none has are left out."""
    found = {name: [ids[i] for i in np.flatnonzero(flags & bit)] for name, bit in BIT.items()}
    return {name: those for name, those in found.items() if those}


def count_lines(counts: Mapping[str, int], first: Mapping[str, Sequence[str]]) -> list[str]:
    """What was counted, what it means, and the first ids of each."""
    more = {
        name: f" and {n - len(first[name]):,} more" if n > len(first[name]) else ""
        for name, n in counts.items()
    }
    return [
        f"counted: {n:,} {name} ({FLAGS[name]}): {', '.join(first[name])}{more[name]}"
        for name, n in counts.items()
    ]


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


@dataclass
class ExtractReport:
    """`extracted` utterances were computed by this run (or the killed one that it finished),
    `reused` were there before.
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
    padding: dict[str, float] = field(default_factory=dict)  # padded / valid, a modality
    batches: dict[str, int] = field(default_factory=dict)
    self_test: dict[str, dict] = field(default_factory=dict)
    # utterances that are short, chunked, cut, … (pipeline.parts.FLAGS)
    counts: dict[str, int] = field(default_factory=dict)
    flagged: dict[str, list[str]] = field(default_factory=dict)  # the first ids of each count
    oom_splits: int = 0
    fp32_batches: int = 0
    bytes: int = 0
    shards: int = 0
    untrained: list[str] = field(default_factory=list)

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
        what = {
            "extracted": f"{self.extracted:,} utterances extracted, {self.reused:,} reused",
            "nothing": f"nothing to do: all {self.utterances:,} utterances are there",
            "head": "labels or splits changed: only the head file is written again, all "
            f"{self.utterances:,} utterances are reused",
            "dry-run": f"dry run: {self.extracted:,} utterances to extract, {self.reused:,} reused",
            "part": "this share of the work is done; the run that finishes last writes the store",
        }[self.action]
        size = (
            f"{self.audio_seconds / 3600:.2f} h of audio, {self.bytes / 1e6:,.1f} MB in "
            f"{self.shards} shards"
        )
        out = [f"{what}; {size}, {self.seconds:.1f} s"]
        if self.batches:
            batches = (
                f"{m} {n:,} batches ({self.padding[m]:.3f} padded/valid)"
                for m, n in self.batches.items()
                if n
            )
            out.append(f"plan: {', '.join(batches) or 'no batches'}")
        if self.action == "dry-run":
            out.append(f"disk: {self.bytes / 1e6:,.1f} MB, and up to as much again while it runs")
        for m, test in self.self_test.items():
            half = (
                f", {test['precision']} against fp32 {test['precision_error']:.1e}"
                if "precision_error" in test
                else ""
            )
            out.append(
                f"self-test {m}: batch against single {test['absolute']:.1e}{half} "
                f"({test['items']} items, {test['precision']})"
            )
        if self.counts:
            out += count_lines(self.counts, self.flagged)
            out.append(f"all of a kind: mer inspect {self.out} --flag {next(iter(self.counts))}")
        if self.oom_splits or self.fp32_batches:
            out.append(
                f"{self.oom_splits:,} batches split for memory, {self.fp32_batches:,} computed "
                "again in fp32"
            )
        out += [
            f"{'known bad' if f.known else 'failed'}: {f.id}: {f.stage}: {f.reason}"
            for f in self.failures[:SHOWN]
        ]
        if self.failures:
            more = (
                f"… and {len(self.failures) - SHOWN:,} more; " if len(self.failures) > SHOWN else ""
            )
            count = (
                f"{len(self.failures):,} utterances are not in the store, {self.unexpected:,} of "
                "them unexpected"
            )
            out.append(
                f"{more}{count}"
                + (f": {self.failures_path}" if self.action not in ("dry-run", "part") else "")
            )
        if self.untrained:
            out.append(
                f"untrained encoders ({', '.join(self.untrained)}): these features are for trying "
                "things out"
            )
        return out
