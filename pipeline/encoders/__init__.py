"""Frozen encoders, by modality and family.

`MODALITIES` is the registry that extraction iterates over: recipe, lengths, plan, budgets and
progress know no modality by name. The order decides that of the modalities in a store. A family of
encoders is a line in the `FAMILIES` of its modality (docs/adding.md).
"""

from __future__ import annotations

from typing import Any

from mer.pipeline.encoders.audio import Audio
from mer.pipeline.encoders.modality import Modality
from mer.pipeline.encoders.text import Text
from mer.pipeline.encoders.vision import Vision

MODALITIES: dict[str, type[Modality]] = {kind.name: kind for kind in (Audio, Text, Vision)}


def configured(options: Any) -> tuple[Modality, ...]:
    """Every registered modality as the options of an extraction ask for it."""
    return tuple(kind.of(options) for kind in MODALITIES.values())
