"""Manifest rows → shards, windows, items, batches, parts: the same for every worker and every
resume.

A *shard* holds consecutive rows of the manifest. A *window* is a run of whole shards whose rows are
sorted by length together. An *item* is what an encoder takes at a time: a clip, a piece of a long
clip, or a transcript, however many rows have it. *Batches* of items cut across shards, so work is
done in *parts*, consecutive batches of one modality; when all parts of a window are there, its
shards are assembled.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from mer.pipeline.encoders.geometry import SAMPLE_RATE, Geometry
from mer.pipeline.extraction.batching import cut, group
from mer.pipeline.runtime.limits import PLAN_BYTES
from mer.pipeline.store.arrays import temporary_for
from mer.pipeline.store.schema import demand, is_count, read_json

SHARD_NAME = re.compile(r"shard-\d{5,}-[0-9a-f]{8}\.h5")


@dataclass
class Inputs:
    """The manifest's rows as extraction sees them, a list entry a row.

    `samples` at 16 kHz (0: no audio); `token_ids` of each transcript; `sizes` are bytes of
    features; `seen` is what each audio file looked like when it was hashed.
    """

    ids: list[str]
    paths: list[str | None]
    spans: list[tuple[float | None, float | None]]
    texts: list[str | None]
    contents: tuple[str, ...]
    recipe_key: str
    samples: list[int] = field(default_factory=list)
    token_ids: dict[str, np.ndarray] = field(default_factory=dict)
    cut_texts: set[str] = field(default_factory=set)
    sizes: list[int] = field(default_factory=list)
    seen: dict[str, tuple[int, int, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Settings:
    """What a plan fixes, kept beside the shards until the store is complete.

    Budgets and part lengths in samples and tokens; `one_by_one` names modalities whose encoder is
    not independent of its batch; `left_out` are rows that could not be probed: row → (stage,
    reason); `kept` and `rebuilt` name shards that are there and sound, or there and not; `reused`
    are rows whose features an older shard has: row → (shard, place in it).
    """

    fingerprint: str
    budgets: dict[str, int]
    shard_bytes: int
    window: int
    part_lengths: dict[str, int]
    one_by_one: list[str] = field(default_factory=list)
    left_out: dict[int, tuple[str, str]] = field(default_factory=dict)
    kept: list[str] = field(default_factory=list)
    rebuilt: list[str] = field(default_factory=list)
    reused: dict[int, tuple[str, int]] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Publish the plan with its checksum, so that no resume follows another plan
        than was made.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = temporary_for(path)
        content = asdict(self)
        try:
            with temporary.open("w") as file:
                json.dump({**content, "checksum": _checksum(content)}, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def read(
        cls, path: Path, fingerprint: str, note: Callable[[str], None] = lambda reason: None
    ) -> Settings | None:
        """The plan of an unfinished run for the same fingerprint, if there is one that can be
        relied on; `note` is told if there is one that cannot.
        """
        try:
            raw = _read_plan(path)
        except (OSError, ValueError):
            return None
        if raw.get("fingerprint") != fingerprint:
            return None
        told = raw.pop("checksum", None)
        if told is None:
            note(
                f"{path}: the plan of an unfinished run has no checksum, as mer made them before; "
                "starting again"
            )
            return None
        try:
            demand(told == _checksum(raw), "it differs from its checksum")
            for name in ("left_out", "reused"):
                demand(isinstance(raw.get(name), dict), f"its {name} is not an object")
                raw[name] = {int(row): tuple(value) for row, value in raw[name].items()}
            settings = cls(**raw)
            settings._check()
        except (ValueError, TypeError) as error:
            note(f"{path}: the plan of an unfinished run is damaged ({error}); starting again")
            return None
        return settings

    @staticmethod
    def names(path: Path) -> str | None:
        """The fingerprint that the plan at `path` is for, whether or not it can be relied on; None
        when it says none.
        """
        try:
            found = _read_plan(path).get("fingerprint")
        except (OSError, ValueError):
            return None
        return found if isinstance(found, str) else None

    def _check(self) -> None:
        """Raise ValueError for what no plan says: its checksum tells accidents only."""
        for name in ("budgets", "part_lengths"):
            lengths = getattr(self, name)
            demand(
                isinstance(lengths, dict) and all(map(is_count, lengths.values())),
                f"its {name} are not numbers",
            )
            demand(all(value > 0 for value in lengths.values()), f"its {name} are not above 0")
        demand(
            is_count(self.shard_bytes) and is_count(self.window),
            "its shard_bytes or window is not a number",
        )
        for name in ("one_by_one", "kept", "rebuilt"):
            texts = getattr(self, name)
            demand(
                isinstance(texts, list) and all(isinstance(text, str) for text in texts),
                f"its {name} is not a list of names",
            )
        for why in self.left_out.values():
            demand(
                len(why) == 2 and all(isinstance(text, str) for text in why),
                "its left_out has no reasons",
            )
        for place in self.reused.values():
            demand(
                len(place) == 2 and isinstance(place[0], str) and is_count(place[1]),
                "its reused has no places",
            )
            demand(SHARD_NAME.fullmatch(place[0]) is not None, "its reused names no shard")

    def fits(self, rows: int, modalities: Sequence[str]) -> bool:
        """Whether it speaks of these rows and modalities only."""
        within = all(0 <= row < rows for row in [*self.left_out, *self.reused])
        return (
            within
            and set(modalities) <= self.budgets.keys()
            and set(modalities) <= self.part_lengths.keys()
        )


def _read_plan(path: Path) -> dict:
    """Raises OSError or ValueError for what is no JSON object in a plain file."""
    if not path.is_file() or path.stat().st_size > PLAN_BYTES:
        raise ValueError("no plan")
    raw = read_json(path.read_bytes(), "the plan", limit=PLAN_BYTES)
    demand(isinstance(raw, dict), "the plan is not an object")
    return raw


def _checksum(content: dict) -> str:
    """Of a plan, as JSON has it: numbers of rows are texts there."""
    text = json.dumps(json.loads(json.dumps(content)), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Item:
    """`row` indexes the manifest (for a transcript: the first row that has it).

    `length` in samples or tokens, as the encoder sees it. A clip or a piece of one covers samples
    [first, end); of its frames `keep` are kept after `skip`.
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


@dataclass(frozen=True)
class Part:
    """`key` names the plan and the items: a file with this key holds exactly these."""

    modality: str
    window: int
    number: int
    batches: list[list[Item]]
    key: str

    @property
    def name(self) -> str:
        return f"{self.modality}-{self.window:05d}-{self.number:05d}.h5"

    @property
    def begun(self) -> str:
        """Name of the file that holds its first batches, after a run that was asked to end."""
        return self.name.removesuffix(".h5") + ".begun"

    @property
    def items(self) -> Iterator[Item]:
        return (item for batch in self.batches for item in batch)

    @property
    def length(self) -> int:
        return sum(item.length for item in self.items)


@dataclass(frozen=True)
class ShardPlan:
    """`key` names the recipe and the ids and contents of the rows."""

    number: int
    rows: list[int]
    key: str

    @property
    def name(self) -> str:
        return f"shard-{self.number:05d}-{self.key[:8]}.h5"


@dataclass(frozen=True)
class Plan:
    """`windows[w]` are shards, `parts[w]` the parts that they are made of.

    `pieces[row]` counts the pieces of a clip, `text_rows[w]` maps a transcript to the row that its
    item is named by.
    """

    settings: Settings
    windows: list[list[ShardPlan]]
    parts: list[list[Part]]
    pieces: Counter
    text_rows: list[dict[str, int]]

    @property
    def shards(self) -> list[ShardPlan]:
        return [shard for window in self.windows for shard in window]

    def length(self, modality: str) -> int:
        """Samples or tokens to encode."""
        return sum(
            part.length for parts in self.parts for part in parts if part.modality == modality
        )

    def padding(self) -> dict[str, float]:
        """Padded over valid length, a modality."""
        padded: Counter = Counter()
        for part in (part for parts in self.parts for part in parts):
            padded[part.modality] += sum(
                len(batch) * max(item.length for item in batch) for batch in part.batches
            )
        return {
            modality: round(total / self.length(modality), 4) for modality, total in padded.items()
        }

    def batches(self) -> dict[str, int]:
        found: Counter = Counter()
        for part in (part for parts in self.parts for part in parts):
            found[part.modality] += len(part.batches)
        return dict(found)


def build(
    settings: Settings,
    inputs: Inputs,
    modalities: Sequence[str],
    geometry: Geometry | None,
    *,
    max_seconds: float,
    pool: int,
) -> Plan:
    """The plan that follows from `settings`: a pure function of its arguments."""
    shards = cut_shards(inputs, set(settings.left_out), settings.shard_bytes)
    windows = cut_windows(shards, settings.window)
    parts: list[list[Part]] = []
    pieces: Counter = Counter()
    text_rows: list[dict[str, int]] = []
    for number, window in enumerate(windows):
        rows = [
            row
            for shard in window
            if shard.name not in settings.kept
            for row in shard.rows
            if row not in settings.reused
        ]
        items = {}
        if "audio" in modalities:
            items["audio"] = audio_items(
                rows, inputs.samples, geometry, max_seconds=max_seconds, pool=pool
            )
            pieces.update(item.row for item in items["audio"])
        if "text" in modalities:
            items["text"] = text_items(rows, inputs.texts, inputs.token_ids)
        text_rows.append({inputs.texts[item.row]: item.row for item in items.get("text", ())})
        parts.append(
            [
                part
                for modality in modalities
                for part in make_parts(modality, number, items[modality], settings)
            ]
        )
    return Plan(settings, windows, parts, pieces, text_rows)


def cut_shards(inputs: Inputs, left_out: set[int], shard_bytes: int) -> list[ShardPlan]:
    """Consecutive rows until `shard_bytes` of features are together."""
    shards: list[list[int]] = []
    held = shard_bytes
    for row, size in enumerate(inputs.sizes):
        if row in left_out:
            continue
        if held >= shard_bytes:
            shards.append([])
            held = 0
        shards[-1].append(row)
        held += size
    return [ShardPlan(number, rows, _shard_key(inputs, rows)) for number, rows in enumerate(shards)]


def _shard_key(inputs: Inputs, rows: Sequence[int]) -> str:
    h = hashlib.sha256(inputs.recipe_key.encode())
    for row in rows:
        h.update(f"{json.dumps(inputs.ids[row])} {inputs.contents[row]}\n".encode())
    return h.hexdigest()


def cut_windows(shards: Sequence[ShardPlan], size: int) -> list[list[ShardPlan]]:
    """Runs of whole shards of at most `size` rows (a larger shard is a window of its own)."""
    out: list[list[ShardPlan]] = []
    held = 0
    for shard in shards:
        if not out or held + len(shard.rows) > size:
            out.append([])
            held = 0
        out[-1].append(shard)
        held += len(shard.rows)
    return out


def audio_items(
    rows: Sequence[int],
    samples: Sequence[int],
    geometry: Geometry,
    *,
    max_seconds: float,
    pool: int,
) -> list[Item]:
    """One item a clip, several for a clip longer than `max_seconds` (0: never)."""
    items = []
    for row in rows:
        if samples[row]:
            longest = round(max_seconds * SAMPLE_RATE) or samples[row]
            for piece, (first, end, skip, keep) in enumerate(
                geometry.pieces(samples[row], longest, multiple=pool)
            ):
                items.append(
                    Item(row, max(end - first, geometry.field), piece, first, end, skip, keep)
                )
    return items


def text_items(
    rows: Sequence[int], texts: Sequence[str | None], token_ids: dict[str, np.ndarray]
) -> list[Item]:
    """One item a distinct transcript."""
    first: dict[str, int] = {}
    for row in rows:
        if texts[row]:
            first.setdefault(texts[row], row)
    return [Item(row, len(token_ids[text])) for text, row in first.items()]


def make_parts(modality: str, window: int, items: list[Item], settings: Settings) -> list[Part]:
    """Items → batches within the budget of padded length → parts."""
    lengths = [item.length for item in items]
    budget = settings.budgets[modality]
    parts = []
    for number, batches in enumerate(
        group(lengths, cut(lengths, budget), settings.part_lengths[modality])
    ):
        chosen = [[items[i] for i in batch] for batch in batches]
        h = hashlib.sha256(
            f"{settings.fingerprint} {modality} {window} {budget} {settings.one_by_one}".encode()
        )
        for batch in chosen:
            h.update(
                (
                    " ".join(f"{item.key}:{item.first}-{item.end}:{item.length}" for item in batch)
                    + "\n"
                ).encode()
            )
        parts.append(Part(modality, window, number, chosen, h.hexdigest()))
    return parts
