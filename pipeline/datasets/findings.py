"""What `mer prepare` found, against what was expected: nothing is missing, dropped or repaired
without a line here.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import combinations

from mer.pipeline.manifest import Manifest, Utterance
from mer.pipeline.runtime.terminal import listed, shown

UNLABELLED = "(none)"
SHOWN = 8  # names listed before "and N more"
# words from which an identical sentence on both sides of a split is more than small talk
LONG_TEXT = 4


@dataclass
class Findings:
    """`counts` and `expected`: split -> label -> utterances.

    `repairs` and `dropped`: what -> ids of the rows (or names of the files).
    """

    dataset: str
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    expected: dict[str, dict[str, int]] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)  # ids whose file is absent and not known to be
    unreadable: dict[str, str] = field(default_factory=dict)  # id -> why its file cannot be media
    known_bad: dict[str, str] = field(default_factory=dict)  # id -> why
    orphans: list[str] = field(default_factory=list)  # media files without a row
    repairs: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    dropped: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    # "train/test" -> texts, long_texts, speakers
    overlaps: dict[str, dict[str, int]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    @property
    def unexpected(self) -> list[str]:
        """Differences from the expected counts, one line each."""
        lines = []
        for split, labels in self.expected.items():
            found = self.counts.get(split, {})
            for label in labels | {k: 0 for k in found if k != UNLABELLED}:
                if found.get(label, 0) != labels.get(label, 0):
                    lines.append(
                        f"{split or 'all'} {label}: {found.get(label, 0):,} found, "
                        f"{labels.get(label, 0):,} expected"
                    )
        return lines

    def lines(self) -> list[str]:
        """For people: a table of counts, then one line for each finding."""
        out = [f"{self.dataset}: {sum(sum(c.values()) for c in self.counts.values()):,} utterances"]
        out += _table(self.counts)
        if self.expected:
            wrong = self.unexpected
            out.append(
                "counts: as expected"
                if not wrong
                else f"counts: {len(wrong)} differ from the expected ones: " + some(wrong)
            )
        for what, names in (
            ("files missing", self.missing),
            ("files without a row (ignored)", self.orphans),
        ):
            if names:
                out.append(f"{what}: {len(names):,}: {some(names)}")
        if self.unreadable:
            out.append(
                f"files unreadable: {len(self.unreadable):,}: "
                + some([f"{k} ({why})" for k, why in self.unreadable.items()])
            )
        if self.known_bad:
            out.append(
                f"known-bad clips: {len(self.known_bad):,}: "
                + some([f"{k} ({why})" for k, why in self.known_bad.items()])
            )
        out += [
            f"repaired: {what}: {len(names):,}: {some(names)}"
            for what, names in self.repairs.items()
        ]
        out += [
            f"left out: {what}: {len(names):,}: {some(names)}"
            for what, names in self.dropped.items()
        ]
        if any(
            len(x) > SHOWN
            for x in (
                self.missing,
                self.orphans,
                self.unreadable,
                *self.repairs.values(),
                *self.dropped.values(),
            )
        ):
            out.append("the whole lists: the same command with --json")
        clean = [pair for pair, n in self.overlaps.items() if not any(n.values())]
        if clean:
            out.append(f"overlap {', '.join(clean)}: no text and no speaker is in both")
        for pair, n in self.overlaps.items():
            if pair in clean:
                continue
            left, right = pair.split("/")
            out.append(
                f"overlap {pair}: {n['texts']:,} {right} utterances have a text that {left} has "
                f"({n['long_texts']:,} of {LONG_TEXT} or more words), {n['speakers']:,} speakers "
                "are in both"
            )
        return out + [f"warning: {w}" for w in self.warnings]

    def to_dict(self) -> dict:
        return {
            "dataset": self.dataset,
            "utterances": sum(sum(c.values()) for c in self.counts.values()),
            "counts": self.counts,
            "expected": self.expected,
            "unexpected": self.unexpected,
            "missing": self.missing,
            "unreadable": self.unreadable,
            "known_bad": self.known_bad,
            "orphans": self.orphans,
            "repairs": self.repairs,
            "dropped": self.dropped,
            "overlaps": self.overlaps,
            "warnings": self.warnings,
        }


def count(manifest: Manifest) -> dict[str, dict[str, int]]:
    """split -> label -> utterances.

    Multi-label rows count once a label and once as `(none)` when no label is set; regression rows
    count by sign.
    """
    pairs = Counter((u.split, label) for u in manifest.rows for label in _labels(manifest, u))
    counts: dict[str, dict[str, int]] = {}
    for (split, label), n in pairs.items():
        counts.setdefault(split, {})[label] = n
    order = {label: i for i, label in enumerate(manifest.labels)}
    return {
        split: dict(sorted(counts[split].items(), key=lambda item: order.get(item[0], len(order))))
        for split in ("train", "dev", "test", "")
        if split in counts
    }


def _labels(manifest: Manifest, u: Utterance) -> list[str]:
    if manifest.task == "single":
        return [u.label or UNLABELLED]
    if u.targets is None:
        return [UNLABELLED]
    if manifest.task == "regression":
        return ["negative" if u.targets[0] < 0 else "positive" if u.targets[0] > 0 else "zero"]
    return [
        label for label, target in zip(manifest.labels, u.targets, strict=True) if target > 0
    ] or [UNLABELLED]


def class_gaps(manifest: Manifest, counts: dict[str, dict[str, int]]) -> list[str]:
    """Lines on classes that cannot be learnt: one class alone, classes without an utterance, and
    those that train lacks.
    """
    if manifest.task == "regression":
        return []
    total = Counter()
    for found in counts.values():
        total.update({label: n for label, n in found.items() if label != UNLABELLED})
    if not total:
        return []
    out = []
    if manifest.task == "single" and len(total) == 1:
        ((label, n),) = total.items()
        out.append(
            f"a single class: all {n:,} labelled utterances are '{shown(label, 40)}', so there is "
            "nothing to learn"
        )
    elif absent := [label for label in manifest.labels if label not in total]:
        out.append(f"no utterance is of class {listed(absent)}")
    train = counts.get("train", {})
    lacking = [label for label in total if label not in train]
    if len(counts) > 1 and "train" in counts and lacking:
        where = {
            label: [split for split in ("dev", "test", "") if label in counts.get(split, {})]
            for label in lacking
        }
        told = [
            f"{shown(label, 40)} ({', '.join(s or 'no split' for s in where[label])})"
            for label in lacking
        ]
        out.append(f"train has no utterance of class {listed(told)}: a model cannot learn it")
    return out


def overlaps(rows: Iterable[Utterance], *, language: str = "en") -> dict[str, dict[str, int]]:
    """For each pair of splits, how many utterances of the later one have a text of the earlier one,
    and how many speakers are in both. Texts are compared without case and outer or doubled white
    space. A Chinese character counts as a word.
    """
    texts: dict[str, list[str | None]] = {}
    speakers: dict[str, set[str]] = {}
    for u in rows:
        if u.split:
            texts.setdefault(u.split, []).append(u.text)
            if u.speaker:
                speakers.setdefault(u.split, set()).add(u.speaker)
    found = {}
    for left, right in combinations([s for s in ("train", "dev", "test") if s in texts], 2):
        same, long = shared_texts(texts[left], texts[right], language=language)
        both = speakers.get(left, set()) & speakers.get(right, set())
        found[f"{left}/{right}"] = {"texts": same, "long_texts": long, "speakers": len(both)}
    return found


def shared_texts(
    left: Iterable[str | None], right: Iterable[str | None], *, language: str = "en"
) -> tuple[int, int]:
    """(texts of `right` that `left` has, those of them with `LONG_TEXT` or more words)."""
    known = {_plain(text) for text in left if text}
    shared = [text for text in map(_plain, filter(None, right)) if text in known]
    return len(shared), sum(_words(text, language) >= LONG_TEXT for text in shared)


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def _words(text: str, language: str) -> int:
    return len(text.replace(" ", "")) if language == "zh" else len(text.split())


def some(names: Sequence[str]) -> str:
    """The first few names, for a line."""
    return ", ".join(names[:SHOWN]) + (
        f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    )


def _table(counts: dict[str, dict[str, int]]) -> list[str]:
    labels = list(dict.fromkeys(label for split in counts.values() for label in split))
    head = ["", *labels]
    rows = [
        [split or "(no split)", *(f"{found.get(label, 0):,}" for label in labels)]
        for split, found in counts.items()
    ]
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    return [
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in [head, *rows]
    ]
