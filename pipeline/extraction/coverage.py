"""Which parts of a corpus have nothing of a modality that is asked for.

A row may lack a modality: models do without. A part that lacks it altogether is more likely a
column that was not found, and features of it would say little in training.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from mer.pipeline.encoders import configured
from mer.pipeline.extraction.options import ExtractOptions
from mer.pipeline.manifest import Manifest, Utterance
from mer.pipeline.runtime.terminal import plural, shown
from mer.pipeline.runtime.terms import PARTS


def gaps(manifest: Manifest, options: ExtractOptions, named: Collection[str]) -> list[str]:
    """What of a corpus has nothing of the modalities that an extraction asks for.

    Args:
        manifest: The utterances.
        options: Of the extraction.
        named: Modalities whose encoder the user has named. Of another one, which has its encoder
            by default, there need not be any row.

    Returns:
        A line for each modality that no row has, or no row of a split, or no row with a label.
    """
    lines = []
    for modality in configured(options):
        if not modality.wanted:
            continue
        there = [u for u in manifest.rows if modality.has(u)]
        if there:
            lacking = _lacking(manifest.rows, there)
            if lacking:
                count = f"{len(there):,} of {plural(len(manifest.rows), 'row')}"
                lines.append(f"{modality.name}: {count} have it, {lacking}")
        elif modality.name in named:
            lines.append(
                f"{modality.name}: no row of {shown(manifest.dataset, 40)} has it; "
                f"--{modality.name}-encoder {shown(modality.encoder, 80)} is not used"
            )
    return lines


def _lacking(rows: Sequence[Utterance], there: Sequence[Utterance]) -> str:
    """Which part of the rows is not among those that are `there`, as a phrase; "": none."""
    parts = {u.split for u in rows} - {u.split for u in there}
    named = [part for part in PARTS if part in parts]
    if named:
        return f"none of {' and '.join(named)}"
    if any(map(_is_labelled, rows)) and not any(map(_is_labelled, there)):
        return "none of those with a label"
    return ""


def _is_labelled(u: Utterance) -> bool:
    return u.label is not None or u.targets is not None
