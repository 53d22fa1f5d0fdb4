"""What extraction needs to know of a modality: the contract that every entry of the registry keeps.

A *modality* (audio, text, …) says which rows of a manifest have it, how an item of it is read, in
what its length is counted, how many steps a length gives, how it is cut into pieces, what of it
belongs to the recipe, and which encoder families can take it. An instance is frozen and holds what
one extraction asks of the modality (encoder, layer, budget, …), so that it can be sent to a
worker.

A *family* is an architecture of encoders: it has a module whose `load` gives an `Encoder`.

Everything here is free of torch; encoders are imported when they are loaded.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

import numpy as np

from mer.pipeline.encoders.loading import Checkpoint, resolve
from mer.pipeline.errors import DataError, EncoderError
from mer.pipeline.manifest import Utterance
from mer.pipeline.media.stages import Flag, Problem, Stage
from mer.pipeline.media.workers import Decoded, Decoders, Job
from mer.pipeline.runtime.files import sha256_file

if TYPE_CHECKING:
    import torch

# whether a file has sound, and whether it has a picture
Streams = tuple[bool, bool]
NONE = ("", "none")  # values of an encoder option that ask for no features of the modality
NOTHING = np.empty(0, np.float32)  # what was read where there is a problem
# (inode, size, mtime_ns) of a file when it was hashed
Identity = tuple[int, int, int]
# the steps of an item that will be kept: the first, and how many
Kept = tuple[int, int]


@dataclass(frozen=True, slots=True)
class States:
    """What an encoder gives for one item: its steps (T, dim) float32, without padding, and the mean
    of every layer over the steps that are kept (layers, width) float32; None where it gives none.
    """

    frames: np.ndarray
    layer_means: np.ndarray | None = None


class Encoder(Protocol):
    """A frozen network that turns items into steps.

    `collate` pads items on the host, `forward` computes a collated batch, `encode` does both, and
    no result depends on what else is in the batch. `kept[i]` are the steps of item i that will be
    kept (None: all), which layer means are over. A step is `dim` numbers: `width`, those of a
    hidden state, for each layer that is stacked. `layer_count` is the number of layer means an item
    gets, blocks and one; 0: none.

    An encoder may have two things more: `self_test(items)`, which gives figures for the self-test
    (`note`: a line for the user), and `window`, a length that every item is computed as at least.
    """

    checkpoint: Checkpoint
    dim: int
    width: int
    layer_count: int
    device: torch.device
    precision: str

    def collate(
        self, items: Sequence[np.ndarray], kept: Sequence[Kept | None] | None = None
    ) -> tuple: ...
    def forward(self, batch: tuple, *, precision: str | None = None) -> list[States]: ...
    def encode(
        self,
        items: Sequence[np.ndarray],
        kept: Sequence[Kept | None] | None = None,
        *,
        precision: str | None = None,
    ) -> list[States]: ...


@dataclass(frozen=True)
class Family:
    """An architecture of encoders.

    `module` is imported when an encoder is loaded; its `load(checkpoint, modality, device,
    precision)` returns an Encoder. `takes` tells from a checkpoint's configuration whether it is of
    this family. `geometry`, for what is cut into frames, gives the arithmetic of a checkpoint's
    frames (see `Geometry`).
    """

    name: str
    module: str
    takes: Callable[[dict], bool] = lambda config: True
    geometry: Callable[[Checkpoint], Any] | None = None

    def load(
        self, checkpoint: Checkpoint, modality: Modality, device: str, precision: str
    ) -> Encoder:
        """The encoder on its device. Raises EncoderError and DataError."""
        return import_module(self.module).load(checkpoint, modality, device, precision)


@dataclass(frozen=True, slots=True)
class Item:
    """What an encoder takes at a time: a clip, a piece of a long clip, or a transcript.

    `row` is its place in the manifest (for an item that several rows share: the first of them).
    `length` is counted as the encoder sees it, in samples or tokens. A clip or a piece of one
    covers the samples [first, end); of its frames `keep` are kept after the first `skip`.
    """

    row: int
    length: int
    piece: int = 0
    first: int = 0
    end: int = 0
    skip: int = 0
    keep: int = 0

    @property
    def key(self) -> str:
        return f"{self.row}.{self.piece}"


@dataclass(frozen=True, slots=True)
class ReadItem:
    """An item as its encoder takes it, with what was noted of it; or the problem it met."""

    value: np.ndarray = field(default_factory=lambda: NOTHING)
    flags: Flag = Flag(0)
    problem: Problem | None = None


def problem_of(clip: Decoded, expected: int, path: Path | str, unit: str) -> Problem | None:
    """What is wrong with a decoded clip, if anything is.

    Args:
        clip: What a decoder answered.
        expected: The length that was found before.
        path: Of its file.
        unit: What its length is counted in: samples, pictures.

    Raises:
        DataError: The file has changed since it was hashed.
    """
    if clip.stage == Stage.CHANGED:
        raise DataError(f"{clip.reason}; run the same command again")
    if clip.stage is not None:
        return Problem(Stage(clip.stage), clip.reason or "")
    if clip.samples != expected:
        reason = f"{path}: {clip.samples:,} {unit} decoded, {expected:,} expected"
        return Problem(Stage.DECODE, reason)
    return None


@dataclass(frozen=True)
class Rows:
    """The rows of a manifest, and where their media are.

    `seen` is what each file looked like when it was hashed, by its path.
    """

    utterances: tuple[Utterance, ...]
    root: Path
    seen: Mapping[str, Identity] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.utterances)


@dataclass(frozen=True)
class Lengths:
    """What each row gives to one modality.

    `lengths[row]` is counted in the modality's unit of length (samples, tokens; 0: nothing),
    `steps[row]` are the steps that will be stored, `flags[row]` what is known without reading.
    `prepared` is what the modality needs again when it reads, e.g. the token ids.
    """

    lengths: tuple[int, ...]
    steps: tuple[int, ...]
    flags: tuple[Flag, ...]
    prepared: Any = None


@dataclass(frozen=True)
class Described:
    """What a store's header says of features: steps per second (None: no rate), layer, extra, and
    the layers that stand side by side in a step (): one.
    """

    frame_rate: float | None
    layer: str
    extra: dict = field(default_factory=dict)
    stack: tuple[int, ...] = ()


@dataclass(frozen=True)
class Modality(ABC):
    """One kind of features, as one extraction asks for it.

    `encoder` is a hub id, a folder or a built-in ("" or "none": no features of this kind). Budget
    and part are counted in `unit`: `budget` is the padded length of a batch ("auto": found by
    trying; None: the device's fixed figure), `part` the length that is published at a time.
    """

    name: ClassVar[str]
    unit: ClassVar[str]  # in which budgets and progress are told, e.g. "s"
    per_unit: ClassVar[int]  # lengths are counted in this many to a unit, e.g. 16,000 samples
    # padded units of a batch when nothing was asked for, by type of device
    fixed_budget: ClassVar[Mapping[str, float]]
    # budgets that are tried, in ascending order, by type of device
    candidate_budgets: ClassVar[Mapping[str, Sequence[float]]]
    families: ClassVar[Sequence[Family]]  # the first that takes a checkpoint gets it
    # What stands in the key of a row's content where it has nothing of this modality. Empty for
    # modalities that were added after the first two: they leave the keys of older stores alone.
    absent: ClassVar[tuple[str, ...]] = ()
    # Whether its files are read by the sound decoder, whose version then belongs to the key.
    sound: ClassVar[bool] = False
    built_in: ClassVar[str] = ""  # an untrained encoder to try things out
    # Whether it is extracted only where its encoder is named: it has no default.
    optional: ClassVar[bool] = False
    clip_option: ClassVar[str] = ""  # how `mer predict` is given it, e.g. "--audio FILE"
    # What is noted of an utterance that is encoded in several pieces.
    cut: ClassVar[Flag] = Flag.chunked

    encoder: str
    budget: float | str | None
    part: float

    @classmethod
    @abstractmethod
    def of(cls, options: Any) -> Self:
        """What the options of an extraction ask of this modality."""

    # --- rows and recipe: what `mer fingerprint` needs

    @property
    def wanted(self) -> bool:
        return self.encoder not in NONE

    @abstractmethod
    def has(self, u: Utterance) -> bool:
        """Whether an utterance has something of this modality."""

    def file(self, u: Utterance) -> str | None:
        """The media file it is read from, relative to the manifest's root; None: from no file."""
        return None

    def found_in(self, u: Utterance, streams: Mapping[str, Streams]) -> bool:
        """Whether an utterance has something of this modality, where `streams` says what is in some
        of the files; what is in others is not known, and then it has.
        """
        return self.has(u)

    @abstractmethod
    def content(self, u: Utterance, digest: str) -> tuple[str, ...]:
        """What decides the features of an utterance besides the recipe, as texts for its key.

        `digest` is the sha256 of `file(u)`, or the word for why it cannot be read; "" without file.
        """

    def resolve(
        self,
        encoder: str,
        *,
        offline: bool = False,
        sha256: Callable[[Path], str] = sha256_file,
    ) -> Checkpoint:
        """The files of an encoder. Raises EncoderError."""
        return resolve(self.name, encoder, offline=offline, sha256=sha256)

    def check(self, checkpoint: Checkpoint) -> None:
        """Raise EncoderError or DataError for a checkpoint or option that cannot be used, before
        anything is hashed.
        """
        return None

    @abstractmethod
    def recipe(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """Everything of this modality that decides a feature, given its content."""

    @classmethod
    def options_of(cls, recipe: Mapping[str, Any]) -> dict[str, Any]:
        """The options that give this part of a recipe again, without the encoder."""
        return {}

    # --- lengths

    def probe_job(self, row: int, rows: Rows) -> Job | None:
        """What a decoder must do to tell the length of a row; None: no decoder is needed."""
        return None

    def span(self, u: Utterance) -> str:
        """The part of its file that an utterance is, as text: a length is remembered by it."""
        return ""

    def seconds(self, length: int) -> float | None:
        """How long an utterance of that length lasts; None: this modality cannot tell."""
        return None

    @abstractmethod
    def measure(self, rows: Rows, probed: Sequence[int], encoder: Encoder) -> Lengths:
        """Lengths, steps and flags of every row.

        `probed[row]` is the length that a decoder told, 0 where it told none. Rows that cannot be
        read have no length.
        """

    def check_lengths(self, rows: Rows, lengths: Lengths, readable: Sequence[int]) -> None:
        """Raise DataError when what was asked for is in none of the rows that can be read."""
        return None

    # --- encoding

    def family(self, checkpoint: Checkpoint) -> Family:
        """The family a checkpoint is of. Raises EncoderError."""
        for family in self.families:
            if family.takes(checkpoint.config):
                return family
        known = ", ".join(family.name for family in self.families)
        raise EncoderError(
            f"{self.name} encoder {checkpoint.name}: model type "
            f"'{checkpoint.config.get('model_type')}' is of no known family ({known})"
        )

    def load(self, checkpoint: Checkpoint, *, device: str, precision: str) -> Encoder:
        """The encoder on its device. Raises EncoderError and DataError."""
        return self.family(checkpoint).load(checkpoint, self, device, precision)

    @property
    def pool(self) -> int:
        """Steps that are averaged into one before they are stored."""
        return 1

    @abstractmethod
    def items(
        self, chosen: Sequence[int], rows: Rows, lengths: Lengths, checkpoint: Checkpoint
    ) -> list[Item]:
        """What is to be encoded for the `chosen` rows, which are of one window."""

    def owners(self, chosen: Sequence[int], rows: Rows) -> dict[int, int]:
        """Row → the row that its item is named by, for rows that share an item with another."""
        return {}

    @abstractmethod
    def read(
        self,
        items: Iterable[Item],
        rows: Rows,
        lengths: Lengths,
        encoder: Encoder,
        decoders: Decoders,
    ) -> Iterator[ReadItem]:
        """The items in their order, as the encoder takes them."""

    # --- what is said of it

    @abstractmethod
    def describe(self, checkpoint: Checkpoint) -> Described:
        """What a store's header says of the features."""

    @classmethod
    def differs(cls, key: str, old: Any, new: Any) -> str:
        """How two recipes differ in `key`, as a phrase."""
        return f"{cls.name} {key.replace('_', '-')}: {old} there, {new} now"

    # --- units

    def budget_for(self, device: str) -> int:
        """The budget of a batch in the unit of length, without trying."""
        asked = self.fixed_budget[device] if self.budget in (None, "auto") else self.budget
        return round(float(asked) * self.per_unit)

    def part_length(self) -> int:
        """What is published at a time, in the unit of length."""
        return round(self.part * self.per_unit)
