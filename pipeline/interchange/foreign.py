"""What every reader of a foreign format is told, and what it hands over."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mer.pipeline.errors import DataError
from mer.pipeline.runtime.terminal import shown
from mer.pipeline.store import Header
from mer.pipeline.store.schema import LAYERS

# The features of one utterance by modality: (T, D), (D,), or None where it has none; and by
# `layers_of` a modality its layer means (L, width).
Features = Mapping[str, np.ndarray | None]


@dataclass(frozen=True)
class ImportOptions:
    """What the user says of a foreign file; None and empty leave it to the file. Raises DataError,
    when it is made, for names that are no names of classes, and rates that are none.
    """

    dataset: str | None = None
    task: str | None = None  # single | multi | regression
    # Names of the classes; for labels given as numbers, in the order of the numbers.
    labels: tuple[str, ...] = ()
    language: str | None = None
    # Field of the store -> name in the file (`columns.FIELDS`).
    columns: Mapping[str, str] = field(default_factory=dict)
    features: Mapping[str, str] = field(default_factory=dict)  # modality -> name in the file
    frame_rates: Mapping[str, float] = field(default_factory=dict)  # modality -> steps per second
    # float16 | float32; by default as an exported store says, else float32.
    dtype: str | None = None
    # The label that means there is none; "none": every label is a class.
    unlabelled: str | None = None

    def __post_init__(self) -> None:
        if len(set(self.labels)) < len(self.labels) or "" in self.labels:
            given = shown(",".join(self.labels), 100)
            raise DataError(
                f"--labels {given}: a label is empty or there twice; give each class a name of its "
                "own"
            )
        for modality, rate in self.frame_rates.items():
            if not 0 < rate < math.inf:
                given = f"{shown(modality, 40)}={rate:g}"
                raise DataError(f"--frame-rate {given}: expected steps per second, above 0")


@dataclass
class Foreign:
    """A foreign file, read but not yet stored."""

    path: Path
    kind: str
    dataset: str
    task: str
    labels: tuple[str, ...]
    language: str
    rows: list[dict]  # columns of the store's table, and duration
    dims: dict[str, int]  # modality -> numbers per step
    frames: Callable[[], Iterable[Features]]  # a new pass over the features, in the rows' order
    # modality -> layer means of each utterance
    layers: dict[str, int] = field(default_factory=dict)
    header: Header | None = None  # of the store that this was exported from
    notes: list[str] = field(default_factory=list)  # lines for the user
    source: dict = field(default_factory=dict)  # for the store's provenance
    flags: list[int] = field(default_factory=list)  # of each row; empty: none is known
    padded: frozenset[str] = frozenset()  # modalities whose padding the reader has looked at


def layers_of(modality: str) -> str:
    """What the layer means of a modality are called in foreign files and in `Features`."""
    return f"{modality}.{LAYERS}"
