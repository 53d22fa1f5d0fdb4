"""Manifest rows → shards, windows, items, batches, parts: the same for every worker and every
resume.

A *shard* holds consecutive rows of the manifest. A *window* is a run of whole shards whose rows are
sorted by length together. An *item* is what an encoder takes at a time: a clip, a piece of a long
clip, or a transcript, however many rows have it. *Batches* of items cut across shards, so work is
done in *parts*, consecutive batches of one modality; when all parts of a window are there, its
shards are assembled.

`draft` says what is to be encoded, `finish_plan` cuts it into batches and parts once the budgets
are settled. Both are pure functions of their arguments.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

from mer.pipeline.encoders.modality import Item, Lengths, Rows
from mer.pipeline.extraction.batching import cut, group
from mer.pipeline.extraction.fingerprint import Chosen
from mer.pipeline.media.stages import Problem, Stage
from mer.pipeline.runtime.files import publishing

SHARD_NAME = re.compile(r"shard-\d{5,}-[0-9a-f]{8}\.h5")
PLAN_NAME = "plan.json"


@dataclass(frozen=True)
class Inputs:
    """The manifest's rows as extraction sees them, one entry of each sequence for each row.

    `lengths` by modality; `contents` are the keys of what the features are made from; `sizes` are
    the bytes of features.
    """

    rows: Rows
    chosen: tuple[Chosen, ...]
    lengths: Mapping[str, Lengths]
    contents: tuple[str, ...]
    recipe_key: str
    sizes: tuple[int, ...]

    @property
    def modalities(self) -> tuple[str, ...]:
        return tuple(one.name for one in self.chosen)

    def seconds(self, row: int) -> float | None:
        """How long the utterance lasts; None where no modality tells."""
        for one in self.chosen:
            length = self.lengths[one.name].lengths[row]
            seconds = one.modality.seconds(length) if length else None
            if seconds is not None:
                return seconds
        return None


class Copy(NamedTuple):
    """Where a row's features are already: the name of an older shard, and the place in it."""

    shard: str
    at: int


@dataclass(frozen=True)
class Settings:
    """What a plan fixes, kept beside the shards until the store is complete.

    Budgets and part lengths are in samples and tokens. `one_by_one` names modalities whose encoder
    is not independent of its batch; `left_out` are rows that could not be probed, and why; `kept`
    and `rebuilt` name shards that are there and sound, or there and not; `reused` are rows whose
    features an older shard has.
    """

    fingerprint: str
    budgets: dict[str, int]
    shard_bytes: int
    window: int
    part_lengths: dict[str, int]
    one_by_one: list[str] = field(default_factory=list)
    left_out: dict[int, Problem] = field(default_factory=dict)
    kept: list[str] = field(default_factory=list)
    rebuilt: list[str] = field(default_factory=list)
    reused: dict[int, Copy] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Publish the plan, so that a resume follows it."""
        why = {row: (problem.stage, problem.reason) for row, problem in self.left_out.items()}
        with publishing(path) as temporary:
            temporary.write_text(json.dumps({**asdict(self), "left_out": why}))

    @classmethod
    def read(cls, path: Path, fingerprint: str) -> Settings | None:
        """The plan of an unfinished run for the same fingerprint, if there is one."""
        try:
            raw = json.loads(path.read_text())
            if raw["fingerprint"] != fingerprint:
                return None
            left_out = {int(row): _problem(*why) for row, why in raw["left_out"].items()}
            reused = {int(row): Copy(*where) for row, where in raw["reused"].items()}
            return cls(**{**raw, "left_out": left_out, "reused": reused})
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None


def _problem(stage: str, reason: str) -> Problem:
    return Problem(Stage(stage), reason)


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
class WindowItems:
    """What is to be encoded for one window.

    `items` by modality; `owners[modality]` maps a row to the one that its item is named by, where
    several rows share an item.
    """

    items: dict[str, list[Item]]
    owners: dict[str, dict[int, int]]


@dataclass(frozen=True)
class Draft:
    """What is to be encoded, before it is cut into batches: `windows[w]` are shards."""

    windows: list[list[ShardPlan]]
    work: list[WindowItems]

    @property
    def shards(self) -> list[ShardPlan]:
        return [shard for window in self.windows for shard in window]

    def by_length(self, modality: str) -> list[Item]:
        """Everything of a modality that is to be encoded, shortest first."""
        items = [item for window in self.work for item in window.items[modality]]
        return sorted(items, key=lambda item: (item.length, item.key))


@dataclass(frozen=True)
class Plan:
    """`windows[w]` are shards, `parts[w]` the parts that they are made of.

    `pieces[modality]` counts the pieces of the items named by a row; `owners[w]` is that of the
    window's items.
    """

    settings: Settings
    windows: list[list[ShardPlan]]
    parts: list[list[Part]]
    pieces: dict[str, Counter]
    owners: list[dict[str, dict[int, int]]]

    @property
    def shards(self) -> list[ShardPlan]:
        return [shard for window in self.windows for shard in window]

    @property
    def all_parts(self) -> Iterator[Part]:
        return (part for parts in self.parts for part in parts)

    def keys_of(self, modality: str, window: int, row: int) -> list[str]:
        """The keys of the items that a row's features are joined from."""
        owner = self.owners[window].get(modality, {}).get(row, row)
        return [f"{owner}.{piece}" for piece in range(self.pieces[modality][owner])]

    def length(self, modality: str) -> int:
        """Samples or tokens to encode."""
        return sum(part.length for part in self.all_parts if part.modality == modality)

    def padding(self) -> dict[str, float]:
        """Modality → padded over valid length."""
        padded: Counter = Counter()
        for part in self.all_parts:
            longest = (len(batch) * max(item.length for item in batch) for batch in part.batches)
            padded[part.modality] += sum(longest)
        return {m: round(total / self.length(m), 4) for m, total in padded.items()}

    def batches(self) -> dict[str, int]:
        found: Counter = Counter()
        for part in self.all_parts:
            found[part.modality] += len(part.batches)
        return dict(found)


def draft(settings: Settings, inputs: Inputs) -> Draft:
    """What follows from the settings apart from budgets: shards, windows, items."""
    shards = cut_shards(inputs, settings.left_out, settings.shard_bytes)
    windows = cut_windows(shards, settings.window)
    return Draft(windows, [_window_items(window, settings, inputs) for window in windows])


def _window_items(window: Sequence[ShardPlan], settings: Settings, inputs: Inputs) -> WindowItems:
    absent = (shard for shard in window if shard.name not in settings.kept)
    needed = (row for shard in absent for row in shard.rows)
    rows = [row for row in needed if row not in settings.reused]
    items, owners = {}, {}
    for one in inputs.chosen:
        lengths = inputs.lengths[one.name]
        items[one.name] = one.modality.items(rows, inputs.rows, lengths, one.checkpoint)
        owners[one.name] = one.modality.owners(rows, inputs.rows)
    return WindowItems(items, owners)


def finish_plan(settings: Settings, drafted: Draft) -> Plan:
    """The plan: the drafted items in batches within the budgets, the batches in parts."""
    parts: list[list[Part]] = []
    pieces: dict[str, Counter] = {}
    for number, window in enumerate(drafted.work):
        made: list[Part] = []
        for modality, items in window.items.items():
            made += make_parts(modality, number, items, settings)
            pieces.setdefault(modality, Counter()).update(item.row for item in items)
        parts.append(made)
    owners = [window.owners for window in drafted.work]
    return Plan(settings, drafted.windows, parts, pieces, owners)


def cut_shards(inputs: Inputs, left_out: Iterable[int], shard_bytes: int) -> list[ShardPlan]:
    """Consecutive rows until `shard_bytes` of features are together."""
    shards: list[list[int]] = []
    held, without = shard_bytes, frozenset(left_out)
    for row, size in enumerate(inputs.sizes):
        if row in without:
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
        id = inputs.rows.utterances[row].id
        h.update(f"{json.dumps(id)} {inputs.contents[row]}\n".encode())
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


def make_parts(modality: str, window: int, items: list[Item], settings: Settings) -> list[Part]:
    """Items → batches within the budget of padded length → parts."""
    lengths = [item.length for item in items]
    budget = settings.budgets[modality]
    grouped = group(lengths, cut(lengths, budget), settings.part_lengths[modality])
    # whatever decides how features are computed; a list, as keys have always spelled it
    names = f"{settings.fingerprint} {modality} {window} {budget} {list(settings.one_by_one)}"
    parts = []
    for number, batches in enumerate(grouped):
        chosen = [[items[i] for i in batch] for batch in batches]
        h = hashlib.sha256(names.encode())
        for batch in chosen:
            said = (f"{item.key}:{item.first}-{item.end}:{item.length}" for item in batch)
            h.update((" ".join(said) + "\n").encode())
        parts.append(Part(modality, window, number, chosen, h.hexdigest()))
    return parts
