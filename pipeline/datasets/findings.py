"""What `mer prepare` found, against what was expected: nothing is missing, dropped or repaired
without a line here.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations

from mer.pipeline.datasets import folds, unimodal
from mer.pipeline.datasets.folds import FoldCounts
from mer.pipeline.datasets.unimodal import UnimodalCounts
from mer.pipeline.manifest import Manifest, Utterance
from mer.pipeline.runtime.terminal import listed, plural, shown
from mer.pipeline.runtime.terms import SPLITS

UNLABELLED = "(none)"
RATED = "(rated)"  # what a row with several targets counts as
SHOWN = 8  # names listed before "and N more"
# Words from which an identical sentence on both sides of a split is more than small talk.
LONG_TEXT = 4


@dataclass
class Findings:
    """What `mer prepare` found: nothing of it stays unsaid.

    `counts` and `expected`: split -> label -> utterances. `repairs`, `dropped` and `unlabelled`
    (kept, as turns of their dialogues): what -> ids of the rows (or names of the files).
    """

    dataset: str
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    rows: int | None = None  # where a row may count under several labels; None: the sum of counts
    expected: dict[str, dict[str, int]] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)  # ids whose file is absent and not known to be
    unreadable: dict[str, str] = field(default_factory=dict)  # id -> why its file cannot be media
    known_bad: dict[str, str] = field(default_factory=dict)  # id -> why
    orphans: list[str] = field(default_factory=list)  # media files without a row
    repairs: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    dropped: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    folds: dict[str, FoldCounts] = field(default_factory=dict)  # published ones, by name
    unlabelled: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    # modality -> what is known of its unimodal labels
    unimodal: dict[str, UnimodalCounts] = field(default_factory=dict)
    # "train/test" -> texts, long_texts, speakers
    overlaps: dict[str, dict[str, int]] = field(default_factory=dict)
    # "train/test" -> texts, speakers: those of which one of the two has none, so that an overlap
    # is not known
    overlaps_unknown: dict[str, list[str]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    @property
    def utterances(self) -> int:
        if self.rows is not None:
            return self.rows
        return sum(sum(found.values()) for found in self.counts.values())

    @property
    def unexpected(self) -> list[str]:
        """Differences from the expected counts, one line each."""
        lines = []
        for split, wanted in self.expected.items():
            found = self.counts.get(split, {}) if split else self._together()
            labels = dict.fromkeys([*wanted, *found])
            if UNLABELLED not in wanted:
                labels.pop(UNLABELLED, None)
            for label in labels:
                here, there = found.get(label, 0), wanted.get(label, 0)
                if here != there:
                    lines.append(f"{split or 'all'} {label}: {here:,} found, {there:,} expected")
        return lines

    def _together(self) -> dict[str, int]:
        """Utterances by label, whatever their split."""
        total: Counter[str] = Counter()
        for found in self.counts.values():
            total.update(found)
        return total

    def lines(self) -> list[str]:
        """For people: a table of counts, then one line for each finding."""
        lines = [f"{self.dataset}: {plural(self.utterances, 'utterance')}", *_table(self.counts)]
        if self.expected:
            lines.append(self._compared())
        lines += _counted("files missing", self.missing)
        lines += _counted("files without a row (ignored)", self.orphans)
        lines += _counted("files unreadable", _with_reasons(self.unreadable))
        lines += _counted("known-bad clips", _with_reasons(self.known_bad))
        for what, names in self.repairs.items():
            lines += _counted(f"repaired: {what}", names)
        for what, names in self.dropped.items():
            lines += _counted(f"left out: {what}", names)
        for what, names in self.unlabelled.items():
            lines += _counted(f"kept without a label, neither trained on nor scored: {what}", names)
        cut = [self.missing, self.orphans, list(self.unreadable)]
        cut += [*self.repairs.values(), *self.dropped.values(), *self.unlabelled.values()]
        if any(len(names) > SHOWN for names in cut):
            lines.append("the whole lists: the same command with --json")
        lines += folds.lines(self.folds)
        lines += unimodal.lines(self.unimodal)
        lines += _told_overlaps(self.overlaps, self.overlaps_unknown)
        return lines + [f"warning: {warning}" for warning in self.warnings]

    def _compared(self) -> str:
        wrong = self.unexpected
        if not wrong:
            return "counts: as expected"
        return f"counts: {len(wrong)} differ from the expected ones: {some(wrong)}"

    def to_dict(self) -> dict:
        """For machines: every list whole."""
        return {
            "dataset": self.dataset,
            "utterances": self.utterances,
            "counts": self.counts,
            "expected": self.expected,
            "unexpected": self.unexpected,
            "missing": self.missing,
            "unreadable": self.unreadable,
            "known_bad": self.known_bad,
            "orphans": self.orphans,
            "repairs": self.repairs,
            "dropped": self.dropped,
            "folds": {name: asdict(fold) for name, fold in self.folds.items()},
            "unlabelled": self.unlabelled,
            "unimodal": {name: asdict(one) for name, one in self.unimodal.items()},
            "overlaps": self.overlaps,
            "overlaps_unknown": self.overlaps_unknown,
            "warnings": self.warnings,
        }


def _counted(what: str, names: Sequence[str]) -> list[str]:
    """A line with their number and the first of them; none where there are none."""
    return [f"{what}: {len(names):,}: {some(names)}"] if names else []


def _with_reasons(why: Mapping[str, str]) -> list[str]:
    return [f"{name} ({reason})" for name, reason in why.items()]


def _told_overlaps(
    found: Mapping[str, Mapping[str, int]], unknown: Mapping[str, Sequence[str]]
) -> list[str]:
    """Lines on what splits share: the pairs that share nothing together, then each other pair."""
    lines = []
    clean: dict[str, list[str]] = {}  # what is said -> the pairs of which it is said
    for pair, number in found.items():
        if not any(number.values()):
            clean.setdefault(_nothing_shared(unknown.get(pair, ())), []).append(pair)
    for said, pairs in clean.items():
        lines.append(f"overlap {', '.join(pairs)}: {said}")
    for pair, number in found.items():
        if not any(number.values()):
            continue
        left, right = pair.split("/")
        repeated = plural(number["texts"], f"{right} utterance has", f"{right} utterances have")
        speakers = f"{plural(number['speakers'], 'speaker is', 'speakers are')} in both"
        if "speakers" in unknown.get(pair, ()):
            speakers = "speakers are not known"
        texts = (
            f"{repeated} a text that {left} has ({number['long_texts']:,} with a text of at least "
            f"{LONG_TEXT} words)"
        )
        if "texts" in unknown.get(pair, ()):
            texts = "texts are not known"
        lines.append(f"overlap {pair}: {texts}, {speakers}")
    return lines


def _nothing_shared(unknown: Sequence[str]) -> str:
    """What is said of two splits that share nothing that is known."""
    if "texts" in unknown and "speakers" in unknown:
        return "not known, as there are no texts and no speakers in one or both"
    if "texts" in unknown:
        return "no speaker is in both; texts are not known"
    if "speakers" in unknown:
        return "no text is in both; speakers are not known"
    return "no text and no speaker is in both"


def count(manifest: Manifest) -> dict[str, dict[str, int]]:
    """Utterances by split and label.

    Multi-label rows count once per label and once as `(none)` when no label is set; regression rows
    count by sign, with several targets as rated.

    Args:
        manifest: The manifest of a corpus.

    Returns:
        split -> label -> utterances, in the manifest's order of labels.
    """
    pairs: Counter[tuple[str, str]] = Counter()
    for u in manifest.rows:
        pairs.update((u.split, label) for label in _labels(manifest, u))
    counts: dict[str, dict[str, int]] = {}
    for (split, label), number in pairs.items():
        counts.setdefault(split, {})[label] = number
    order = {label: i for i, label in enumerate(manifest.labels)}
    ordered = {}
    for split in SPLITS:
        if split in counts:
            labels = sorted(counts[split], key=lambda label: order.get(label, len(order)))
            ordered[split] = {label: counts[split][label] for label in labels}
    return ordered


def _labels(manifest: Manifest, u: Utterance) -> list[str]:
    """What a row counts as."""
    if manifest.task == "single":
        return [u.label or UNLABELLED]
    if u.targets is None:
        return [UNLABELLED]
    if manifest.task == "regression":
        return [_sign(u.targets[0]) if len(u.targets) == 1 else RATED]
    pairs = zip(manifest.labels, u.targets, strict=True)
    return [label for label, target in pairs if target > 0] or [UNLABELLED]


def _sign(value: float) -> str:
    if value < 0:
        return "negative"
    return "positive" if value > 0 else "zero"


def class_gaps(manifest: Manifest, counts: dict[str, dict[str, int]]) -> list[str]:
    """Lines on classes that cannot be learnt: one class alone, classes without an utterance, and
    those that train lacks.
    """
    if manifest.task == "regression":
        return []
    total: Counter[str] = Counter()
    for found in counts.values():
        total.update(found)
    del total[UNLABELLED]
    if not total:
        return []
    lines = []
    absent = [label for label in manifest.labels if label not in total]
    if manifest.task == "single" and len(total) == 1:
        ((label, number),) = total.items()
        all_are = plural(number, "labelled utterance is", "labelled utterances are")
        lines.append(
            f"a single class: all {all_are} '{shown(label, 40)}', so there is nothing to learn"
        )
    elif absent:
        lines.append(f"no utterance is of class {listed(absent)}")
    if "train" in counts and len(counts) > 1:
        lacking = [label for label in total if label not in counts["train"]]
        lines += _told_lacking(lacking, counts)
        lines += _not_measured(counts)
    return lines


def _not_measured(counts: Mapping[str, Mapping[str, int]]) -> list[str]:
    """A line for dev and for test on the classes of train that the part lacks: a class with a
    single utterance, for example, is lacking somewhere. A part that has none of train's classes is
    left out here, as another line says which classes train lacks.
    """
    lines = []
    learnt = [label for label in counts["train"] if label != UNLABELLED]
    for split, what in (("dev", "no epoch is chosen by it"), ("test", "no figure is of it")):
        there = counts.get(split, {})
        lacking = [shown(label, 40) for label in learnt if label not in there]
        if 0 < len(lacking) < len(learnt) and set(there) - {UNLABELLED}:
            lines.append(f"{split} has no utterance of class {listed(lacking)}: {what}")
    return lines


def _told_lacking(lacking: list[str], counts: Mapping[str, Mapping[str, int]]) -> list[str]:
    """A line on the classes that train lacks, with the splits that have them."""
    classes = []
    for label in lacking:
        where = [split or "no split" for split in SPLITS if label in counts.get(split, ())]
        classes.append(f"{shown(label, 40)} ({', '.join(where)})")
    if not classes:
        return []
    return [f"train has no utterance of class {listed(classes)}: a model cannot learn it"]


def overlaps(rows: Iterable[Utterance], *, language: str = "en") -> dict[str, dict[str, int]]:
    """What two splits share.

    Texts are compared without case and outer or doubled white space. A Chinese character counts as
    a word.

    Args:
        rows: The utterances.
        language: Code of the language that they are in.

    Returns:
        "train/test" -> how many utterances of the later split have a text of the earlier one
        (`texts`, and of those with `LONG_TEXT` or more words `long_texts`), and how many speakers
        are in both; for each pair of splits.
    """
    texts: dict[str, list[str | None]] = {}
    speakers: dict[str, set[str]] = {}
    for u in rows:
        if u.split:
            texts.setdefault(u.split, []).append(u.text)
            if u.speaker:
                speakers.setdefault(u.split, set()).add(u.speaker)
    found = {}
    for left, right in combinations([split for split in SPLITS if split in texts], 2):
        same, long = shared_texts(texts[left], texts[right], language=language)
        both = speakers.get(left, set()) & speakers.get(right, set())
        found[f"{left}/{right}"] = {"texts": same, "long_texts": long, "speakers": len(both)}
    return found


def unknown_overlaps(rows: Iterable[Utterance]) -> dict[str, list[str]]:
    """What cannot be compared between two splits, since one of them has none of it.

    Args:
        rows: The utterances.

    Returns:
        "train/test" -> `texts`, `speakers` or both; pairs of which both are known are left out.
    """
    known: dict[str, set[str]] = {}
    for u in rows:
        if u.split:
            there = known.setdefault(u.split, set())
            there |= {"texts"} if u.text else set()
            there |= {"speakers"} if u.speaker else set()
    unknown = {}
    for left, right in combinations([split for split in SPLITS if split in known], 2):
        lacking = [what for what in ("texts", "speakers") if what not in known[left] & known[right]]
        if lacking:
            unknown[f"{left}/{right}"] = lacking
    return unknown


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
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _table(counts: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Lines of a table: a row per split, a column per label."""
    labels: dict[str, None] = {}
    for found in counts.values():
        labels.update(dict.fromkeys(found))
    rows = [["", *labels]]
    for split, found in counts.items():
        numbers = [f"{found.get(label, 0):,}" for label in labels]
        rows.append([split or "(no split)", *numbers])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [first.ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return lines
