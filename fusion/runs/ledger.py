"""Which configurations have seen a test part: a line for every time that one was opened.

A figure on test is an estimate as long as nobody chooses by it. Whoever trains fifty ablations and
quotes the best has chosen by test, though each run opened it once. So every evaluation on test is
noted beside the store, in `feats.ledger.jsonl` for `feats.h5`, and commands that show test figures
say how many configurations have seen these rows.

`record` is the one writer of this and of test_log.jsonl in the run folder, which says how often
that run was evaluated; the `id` tells that two lines are one opening. Where nothing can be written
beside the store, the line goes into the user's state folder instead; `seen` reads both places. A
line names the rows by their content (`content_of`), so that a store may move, be copied or be
extracted again with another encoder.

Each line is sealed as the JSON files of a run are. One that a crash cut short or that a flipped bit
has changed is named and counted, never believed, and never a reason to stop.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, TypeGuard

from mer.fusion.runtime import files, typed
from mer.fusion.runtime.notes import Note
from mer.fusion.runtime.typed import optional
from mer.pipeline.errors import DataError
from mer.pipeline.runtime.limits import LEDGER_BYTES
from mer.pipeline.runtime.terminal import plural, shown

FIGURES, ROBUSTNESS = "figures", "robustness"  # what of the test part was looked at
LOGGED = ("id", "time", "store", "fingerprint", "rows")  # what test_log.jsonl has of an opening
NAMED_LINES = 3  # of the broken ones, in a message
CONTENT_CHARACTERS = 32  # of the content, in the name of a file in the state folder
BEGINNING = b'{"id": '  # of every line that mer writes
WHY_CHARACTERS = 80  # of why a ledger cannot be written or read


@dataclass(frozen=True, kw_only=True)
class Opening:
    """One line: when which configuration has seen which test rows.

    `content` names the rows, `configuration` the settings and the features without the seed
    (`opening_rows.configuration`), or an ensemble of such; `training` is the identity of a run,
    wherever its folder `run` is now. `rows` counts the rows, those without a label among them.
    """

    id: str
    time: str
    store: str
    fingerprint: str
    rows: int
    content: str
    configuration: str
    training: str
    run: str
    model: str
    dataset: str
    seed: int
    fold: str | None = optional()
    what: str = FIGURES


@dataclass(frozen=True)
class Read:
    """What a ledger holds: its sound lines, and a line for the user if there are others."""

    openings: tuple[Opening, ...] = ()
    trouble: str | None = None


@dataclass(frozen=True)
class Seen:
    """Who has seen some test rows: how many `configurations` in how many `trainings`; `elsewhere`
    counts the configurations that saw only other test rows of the same store, `missing` the
    trainings at hand that no ledger knows (they are among those above). `troubles` say what could
    not be read.
    """

    rows: int
    configurations: int
    trainings: int
    elsewhere: int = 0
    missing: int = 0
    troubles: tuple[str, ...] = ()

    def line(self) -> str:
        """As it is printed under test figures."""
        by = plural(self.configurations, "configuration")
        trained = plural(self.trainings, "training")
        said = f"test part: {plural(self.rows, 'row')}, seen by {by} ({trained})"
        if self.elsewhere:
            said += f"; other test rows of this store by {self.elsewhere:,} more"
        if self.missing:
            said += f"; {plural(self.missing, 'training')} here not in its ledger, but counted"
        return said


# ---- What a line says


def content_of(task: str, labels: Sequence[str], ids: Sequence[str], truth: Sequence[Any]) -> str:
    """What stands for test rows: a sha256 of the ids and references of the labelled ones, in any
    order. Features have no part in it.

    Args:
        task: single, multi or regression.
        labels: The classes, or names of the targets.
        ids: Of the labelled rows.
        truth: Their labels, or lists of targets.

    >>> one = content_of("single", ["a", "b"], ["u1", "u2"], ["a", "b"])
    >>> one == content_of("single", ["a", "b"], ["u2", "u1"], ["b", "a"])
    True
    """
    pairs = sorted(zip(ids, truth, strict=True), key=lambda pair: pair[0])
    return hashlib.sha256(json.dumps([task, list(labels), pairs]).encode()).hexdigest()


def new_id() -> str:
    """A name for one opening, by which the same line in two files counts once."""
    return secrets.token_hex(8)


def as_line(opening: Opening) -> str:
    """An opening as it is written, with its seal."""
    value = typed.tree(opening)
    return json.dumps({**value, files.SEAL: files.seal(value)})


# ---- Where the lines are


def beside(store: Path) -> Path:
    """The ledger of a store: `feats.ledger.jsonl` for `feats.h5`."""
    return store.with_name(f"{store.stem}.ledger.jsonl")


def in_state(content: str) -> Path | None:
    """The file for some rows in the user's state folder; None where there is no such folder."""
    folder = state_folder()
    return None if folder is None else folder / f"{content[:CONTENT_CHARACTERS]}.jsonl"


def state_folder() -> Path | None:
    """The ledgers of stores whose folder takes none; None where nobody has a home."""
    given = os.environ.get("XDG_STATE_HOME", "")
    try:
        # a relative path there is to be ignored, says the XDG base directory specification
        root = Path(given) if given.startswith("/") else Path.home() / ".local" / "state"
    except RuntimeError:  # a process without a home
        return None
    return root / "mer" / "ledgers"


def record(opening: Opening, *, log: Path, store: Path, note: Note) -> None:
    """Note an opening of a test part, before it is read: in the run's log and in the ledger.

    Args:
        opening: What is noted.
        log: test_log.jsonl of the run.
        store: The head file of the store.
        note: Told where the line went, unless that is beside the store.

    Raises:
        OSError, DataError: The log cannot be written, beside which the figures are to appear. A
            ledger that cannot be written is told and stops nothing.
    """
    short = {name: getattr(opening, name) for name in LOGGED}
    files.append_line(log, json.dumps(short), durable=True)
    place, line = beside(store), as_line(opening)
    try:
        files.append_line(place, line, durable=True)
        return
    except (OSError, DataError) as error:
        why = _reason(error, place)
    state = in_state(opening.content)
    try:
        if state is None:
            raise OSError("no home folder")
        state.parent.mkdir(parents=True, exist_ok=True)
        files.append_line(state, line, durable=True)
    except (OSError, DataError) as error:
        also = _reason(error, state)
        note(
            f"{place}: cannot be written ({why}), and the state folder neither ({also}); this "
            f"opening of the test part is noted in {log.name} of the run only"
        )
    else:
        note(f"{place}: cannot be written ({why}); the opening is noted in {state}")


def _reason(error: Exception, path: Path | None) -> str:
    """Why, without the path, which the message has already."""
    said = str(getattr(error, "strerror", None) or error)
    return shown(said.removeprefix(f"{path}: ").partition(";")[0], WHY_CHARACTERS)


# ---- What they say


def read(path: Path) -> Read:
    """The openings in one ledger; it may be missing.

    Args:
        path: The ledger.

    Returns:
        The sound lines in their order; of a line in which two were joined, both.
    """
    try:
        with files.opened(path, "") as file:
            raw = file.read(LEDGER_BYTES + 1)
    except (OSError, DataError) as error:
        if not os.path.lexists(path):
            return Read()
        return Read(trouble=f"{path}: not read ({_reason(error, path)})")
    whole = len(raw) <= LEDGER_BYTES
    found: list[Opening] = []
    broken: list[int] = []
    lines = raw[:LEDGER_BYTES].split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        one = _opening(path, line)
        if one is not None:
            found.append(one)
        else:
            broken.append(number)
            found += _inside(path, line)
    return Read(tuple(found), _trouble(path, broken, sum(map(bool, lines)), whole))


def _opening(path: Path, line: bytes) -> Opening | None:
    """The opening of a line, None for a broken one."""
    try:
        text = line.decode("utf-8")
        if f'"{files.SEAL}"' not in text:
            return None
        return files.read_json(path, Opening, "", text=text)
    except (UnicodeDecodeError, DataError):
        return None


def _inside(path: Path, line: bytes) -> list[Opening]:
    """The sound openings within a broken line: one that was cut short has the next one behind it
    where a writer did not see that, and a flipped bit may join two.
    """
    starts = [match.start() for match in re.finditer(re.escape(BEGINNING), line)]
    pieces = [line[a:b] for a, b in pairwise([*starts, len(line)])]
    sound = (_opening(path, piece[: piece.rfind(b"}") + 1]) for piece in pieces)
    return [one for one in sound if one is not None]


def _trouble(path: Path, broken: Sequence[int], lines: int, whole: bool) -> str | None:
    """A line about what of a ledger is not counted."""
    said = []
    if broken:
        some = ", ".join(map(str, broken[:NAMED_LINES]))
        more = f" and {len(broken) - NAMED_LINES} more" if len(broken) > NAMED_LINES else ""
        which = f"{'line' if len(broken) == 1 else 'lines'} {some}{more}"
        said.append(f"{len(broken):,} of {plural(lines, 'line')} damaged ({which})")
    if not whole:
        said.append(f"longer than {LEDGER_BYTES:,} bytes")
    if not said:
        return None
    return f"{path}: {' and '.join(said)}; what they said is not counted"


def stores_of(log: Path) -> list[Path]:
    """The stores on which a run was evaluated, by its test_log.jsonl; none where that cannot be
    read, which `mer runs` tells.
    """
    try:
        lines = files.read_text(log, "").splitlines()
    except (OSError, DataError):
        return []
    found = []
    for line in lines:
        with suppress(ValueError, RecursionError):
            value = json.loads(line)
            said = value.get("store") if isinstance(value, dict) else None
            if is_path(said):
                found.append(Path(said))
    return found


def is_path(said: object) -> TypeGuard[str]:
    """Whether a value that a file holds can be the path of a store."""
    return isinstance(said, str) and "\0" not in said and bool(Path(said).name)


def _of_other_rows(stores: Sequence[Path], known: Sequence[Path]) -> list[Opening]:
    """What the state folder has of other rows of stores that have no ledger beside them; `known`
    files are read already.
    """
    folder = state_folder()
    names = {str(store) for store in stores if not os.path.lexists(beside(store))}
    if folder is None or not names:
        return []
    places = set(folder.glob("*.jsonl")) - set(known)
    every = chain.from_iterable(read(place).openings for place in sorted(places))
    return [one for one in every if one.store in names]


def seen(
    contents: Iterable[str],
    rows: int,
    stores: Iterable[Path],
    shown_here: Iterable[tuple[str, str]],
) -> Seen:
    """Who has seen some test rows.

    Args:
        contents: `content_of` the rows; of a run over folds, one for each fold.
        rows: How many they are.
        stores: Head files whose ledgers are read, besides the state folder.
        shown_here: (configuration, identity) of trainings whose figures on these rows are at
            hand. They have seen them, whatever a ledger says: it may have been left behind when the
            store moved, or be of an earlier mer.

    Returns:
        The counts.
    """
    wanted, near = list(dict.fromkeys(contents)), list(dict.fromkeys(stores))
    places = [beside(store) for store in near]
    places += [place for place in map(in_state, wanted) if place is not None]
    found = [read(place) for place in dict.fromkeys(places)]
    openings = {one.id: one for each in found for one in each.openings}
    openings |= {one.id: one for one in _of_other_rows(near, places)}
    these = [one for one in openings.values() if one.content in wanted]
    known = {(one.configuration, one.training) for one in these}
    at_hand = set(shown_here)
    everybody = known | at_hand
    configurations = {configuration for configuration, _ in everybody}
    others = {one.configuration for one in openings.values()} - configurations
    missing = len(at_hand - known)
    return Seen(
        rows=rows,
        configurations=len(configurations),
        trainings=len({training for _, training in everybody}),
        elsewhere=len(others),
        missing=missing,
        troubles=tuple(each.trouble for each in found if each.trouble is not None),
    )
