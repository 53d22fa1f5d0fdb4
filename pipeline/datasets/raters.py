"""How raters divided over the classes of a label set, of corpora that say what each of them chose:
the shares of a row, which `data.soft_labels` learns.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from mer.pipeline.datasets.findings import Findings
from mer.pipeline.errors import DataError
from mer.pipeline.manifest import Utterance
from mer.pipeline.runtime.terminal import plural

OUTSIDE = ""  # the class of a vote that is for none of the label set
Votes = Mapping[str, float]  # class, or OUTSIDE -> how many chose it


def check_task(name: str, task: str) -> None:
    """Raise DataError for labels that raters cannot divide over."""
    if task != "single":
        raise DataError(
            f"{name}: --raters keeps how raters divided over classes; these labels are of task "
            f"{task}, name another set with --labels"
        )


def with_shares(
    rows: Iterable[Utterance],
    votes_of: Mapping[str, Votes],
    undecided: frozenset[str],
    classes: Sequence[str],
    findings: Findings,
) -> list[Utterance]:
    """The rows with the shares of their raters as targets; labels stay those of the corpus.

    A labelled row has the shares of the votes for classes of the set. A row without a majority has
    shares where all its votes are for classes of the set, and no label. Any other row without a
    label has none: most of its raters chose what is not in the set.

    Args:
        rows: Of the corpus.
        votes_of: Id -> the votes of its raters.
        undecided: Ids of the rows without a majority.
        classes: Of the label set, in order.
        findings: Told how many rows have shares.

    Returns:
        The rows, in their order.
    """
    made, labelled, split, without = [], 0, 0, 0
    for u in rows:
        votes = votes_of.get(u.id, {})
        inside = [votes.get(name, 0.0) for name in classes]
        whole = sum(inside)
        wanted = u.label is not None or (u.id in undecided and not votes.get(OUTSIDE))
        if wanted and whole:
            u = replace(u, targets=tuple(count / whole for count in inside))
            labelled += u.label is not None
            split += u.label is None
        elif u.label is not None:
            without += 1
        made.append(u)
    line = f"raters: shares of {plural(labelled, 'labelled utterance')}"
    if split:
        line += f" and of {split:,} without a majority, for data.soft_labels alone"
    if without:
        line += f"; {plural(without, 'labelled one')} without a vote for a class of the set"
    findings.warnings.append(line)
    return made
