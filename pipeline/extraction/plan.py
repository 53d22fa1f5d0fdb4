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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from mer.pipeline.encoders.modality import Item, Lengths, Rows
from mer.pipeline.extraction.batching import cut, group
from mer.pipeline.extraction.fingerprint import Chosen
from mer.pipeline.media.stages import STAGES, Problem, Stage
from mer.pipeline.runtime.files import publishing
from mer.pipeline.runtime.limits import PLAN_BYTES
from mer.pipeline.store.schema import demand, is_count, read_json

SHARD_NAME = re.compile(r"shard-\d{5,}-[0-9a-f]{8}\.h5")


@dataclass(frozen=True)
class Inputs:
    """The manifest's rows as extraction sees them, one entry of each sequence for each row.

    `lengths` by modality; `contents` are the keys of what the features are made from; `sizes` are
    the bytes of features. `part_contents` are the keys as a store sees them that has some of the
    modalities only: those that older shards of the plan hold.
    """

    rows: Rows
    chosen: tuple[Chosen, ...]
    lengths: Mapping[str, Lengths]
    contents: tuple[str, ...]
    recipe_key: str
    sizes: tuple[int, ...]
    part_contents: Mapping[tuple[str, ...], tuple[str, ...]] = field(default_factory=dict)

    @property
    def modalities(self) -> tuple[str, ...]:
        return tuple(choice.name for choice in self.chosen)

    def content(self, row: int, modalities: tuple[str, ...]) -> str:
        """The key of a row's content, as a store with these modalities has it."""
        whole = modalities == self.modalities
        return (self.contents if whole else self.part_contents[modalities])[row]

    def seconds(self, row: int) -> float | None:
        """How long the utterance lasts; None where no modality tells."""
        for choice in self.chosen:
            length = self.lengths[choice.name].lengths[row]
            seconds = choice.modality.seconds(length) if length else None
            if seconds is not None:
                return seconds
        return None

    def total_seconds(self, rows: Sequence[int]) -> float:
        """How long utterances last together, without a rounding for each of them."""
        untimed, total = set(rows), 0.0
        for choice in self.chosen:
            lengths = self.lengths[choice.name].lengths
            if choice.modality.seconds(1) is not None:
                timed = {row for row in untimed if lengths[row]}
                total += choice.modality.seconds(sum(lengths[row] for row in timed)) or 0.0
                untimed -= timed
        return total


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
    features an older shard has. `holds` are the modalities of those older shards that have not got
    all of them: what they lack is computed.
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
    holds: dict[str, list[str]] = field(default_factory=dict)

    def taken(self, row: int, modalities: Sequence[str]) -> list[str]:
        """Which of the modalities of a row are taken over from an older shard."""
        copy = self.reused.get(row)
        if copy is None:
            return []
        held = self.holds.get(copy.shard, modalities)
        return [name for name in modalities if name in held]

    def write(self, path: Path) -> None:
        """Publish the plan with its checksum, so that no resume follows another plan than was
        made.
        """
        why = {row: [problem.stage, problem.reason] for row, problem in self.left_out.items()}
        content = {**asdict(self), "left_out": why}
        with publishing(path) as temporary:
            temporary.write_text(json.dumps({**content, "checksum": _checksum(content)}))

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
        recorded = raw.pop("checksum", None)
        if recorded is None:
            note(
                f"{path}: the plan of an unfinished run has no checksum, as mer made them before; "
                "starting again"
            )
            return None
        try:
            demand(recorded == _checksum(raw), "it differs from its checksum")
            return cls(**_checked(raw))
        except (ValueError, TypeError) as error:
            note(f"{path}: the plan of an unfinished run is damaged ({error}); starting again")
            return None

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

    def fits(self, rows: int, modalities: Iterable[str]) -> bool:
        """Whether it speaks of these rows and modalities only."""
        within = all(0 <= row < rows for row in [*self.left_out, *self.reused])
        known, asked = self.budgets.keys() & self.part_lengths.keys(), set(modalities)
        held = all(set(names) < asked for names in self.holds.values())
        return within and held and asked <= known


def _read_plan(path: Path) -> dict:
    """Raises OSError or ValueError for what is no JSON object in a plain file."""
    if not path.is_file() or path.stat().st_size > PLAN_BYTES:
        raise ValueError("no plan")
    raw = read_json(path.read_bytes(), "the plan", limit=PLAN_BYTES)
    demand(isinstance(raw, dict), "the plan is not an object")
    return raw


def _checksum(content: dict) -> str:
    """The checksum of a plan in the form that JSON gives it: row numbers are texts as keys."""
    text = json.dumps(json.loads(json.dumps(content)), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _checked(raw: dict) -> dict:
    """The fields of a stored plan. Raises ValueError for what no plan says: its checksum tells
    accidents only.
    """
    for name in ("budgets", "part_lengths"):
        lengths = raw.get(name)
        if not isinstance(lengths, dict) or not all(map(is_count, lengths.values())):
            raise ValueError(f"its {name} are not numbers")
        demand(all(value > 0 for value in lengths.values()), f"its {name} are not above 0")
    sizes = is_count(raw.get("shard_bytes")) and is_count(raw.get("window"))
    demand(sizes, "its shard_bytes or window is not a number")
    for name in ("one_by_one", "kept", "rebuilt"):
        texts = raw.get(name)
        named = isinstance(texts, list) and all(isinstance(text, str) for text in texts)
        demand(named, f"its {name} is not a list of names")
    raw = {"holds": {}, **raw}  # plans made before modalities could be added have none
    for name in ("left_out", "reused", "holds"):
        demand(isinstance(raw.get(name), dict), f"its {name} is not an object")
    for name, held in raw["holds"].items():
        demand(SHARD_NAME.fullmatch(name) is not None, "its holds names no shard")
        texts = isinstance(held, list) and all(isinstance(text, str) for text in held)
        demand(texts and len(held) > 0, "its holds has no modalities")
    left_out = {int(row): _problem(why) for row, why in raw["left_out"].items()}
    reused = {int(row): _copy(where) for row, where in raw["reused"].items()}
    return {**raw, "left_out": left_out, "reused": reused}


def _problem(why: Any) -> Problem:
    if not isinstance(why, list) or len(why) != 2 or not all(isinstance(x, str) for x in why):
        raise ValueError("its left_out has no reasons")
    stage, reason = why
    demand(stage in STAGES, "its left_out has an unknown stage")
    return Problem(Stage(stage), reason)


def _copy(where: Any) -> Copy:
    if not isinstance(where, list) or len(where) != 2:
        raise ValueError("its reused has no places")
    shard, at = where
    demand(isinstance(shard, str) and is_count(at), "its reused has no places")
    demand(SHARD_NAME.fullmatch(shard) is not None, "its reused names no shard")
    return Copy(shard, at)


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
            for batch in part.batches:
                longest = max(item.length for item in batch)
                padded[part.modality] += len(batch) * longest
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
    needed = [row for shard in absent for row in shard.rows]
    items, owners = {}, {}
    for choice in inputs.chosen:
        lengths = inputs.lengths[choice.name]
        rows = [row for row in needed if not settings.taken(row, (choice.name,))]
        items[choice.name] = choice.modality.items(rows, inputs.rows, lengths, choice.checkpoint)
        owners[choice.name] = choice.modality.owners(rows, inputs.rows)
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
        chosen = []
        h = hashlib.sha256(names.encode())
        for batch in batches:
            taken = [items[i] for i in batch]
            spans = (f"{item.key}:{item.first}-{item.end}:{item.length}" for item in taken)
            h.update((" ".join(spans) + "\n").encode())
            chosen.append(taken)
        parts.append(Part(modality, window, number, chosen, h.hexdigest()))
    return parts
