"""The columns of `mer runs`: what a cell says, which rows conditions keep, how rows are sorted."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, get_args

from mer.fusion.measures import metrics
from mer.fusion.measures.tables import PLAIN, number
from mer.fusion.models import REGISTRY
from mer.fusion.runs.run_rows import RunRow, State, natural
from mer.pipeline.errors import DataError
from mer.pipeline.runtime.terminal import amount, did_you_mean, listed, shown

# columns that are shown whatever they hold, and those that are shown where they differ
ALWAYS = ("run", "state", "date", "model", "dev", "test", "size")
WHERE_THEY_DIFFER = ("store", "key", "seeds", "folds", "opened", "mer", "device")
COLUMNS = (*ALWAYS[:4], *WHERE_THEY_DIFFER, *ALWAYS[4:], "epoch", "parameters", "command")
LARGEST_FIRST = ("date", "size", "parameters")
KEY_CHARACTERS = 8  # of a store's key: enough to tell those of one path apart
VALUE_CHARACTERS = 120  # of the values that a message lists
# Columns with few possible values: another one is a slip, not a question that no run answers.
POSSIBLE = {"state": get_args(State), "model": tuple(REGISTRY)}
DATE = re.compile(r"\d{4}(-\d\d(-\d\d( \d\d(:\d\d)?)?)?)?")
CONDITION = re.compile(r"\s*([\w.]+)\s*(!=|>=|<=|==|=|>|<|~)\s*(.*?)\s*", re.DOTALL)
TESTS: dict[str, Callable[[Any, Any], bool]] = {
    "=": lambda a, b: a == b,
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    ">": lambda a, b: a > b,
    "<": lambda a, b: a < b,
    ">=": lambda a, b: a >= b,
    "<=": lambda a, b: a <= b,
}


def cell(row: RunRow, name: str, metric: str | None = None) -> str:
    """One cell as it is printed; empty where nothing is known."""
    if name in ("dev", "test"):
        of = metric_of(row, name, metric)
        figures, deviations = getattr(row, name), getattr(row, f"{name}_sd")
        if of not in figures:
            return ""
        deviation = f" ± {number(of, deviations[of])}" if deviations.get(of) is not None else ""
        return f"{number(of, figures[of])}{deviation}"
    if name == "size":
        return amount(row.size)
    if name == "date":
        return _day(row)
    if name == "seeds":
        return _ranges(row.seeds)
    if name == "epoch":
        return "" if row.best_epoch is None else f"{row.best_epoch} of {row.epochs or '?'}"
    if name == "opened":
        return str(row.opened)
    if name == "key":
        return row.store_key[:KEY_CHARACTERS]
    if name in COLUMNS:
        value = getattr(row, name)
        return "" if value is None else str(value)
    return spelled(row.settings[name]) if name in row.settings else ""


def metric_of(row: RunRow, part: str, metric: str | None = None) -> str:
    """The figure that stands for a run: the one that chose the epoch, where test has it, too."""
    if metric is not None:
        return metric
    chosen = row.select_metric
    if part == "test" and chosen not in row.test:
        known = row.task if row.task in metrics.HEADLINE else "single"
        return metrics.headline(known, row.test)
    return chosen


def _day(row: RunRow) -> str:
    try:
        local = datetime.fromisoformat(row.date).astimezone()
    except (ValueError, OverflowError, OSError):
        return shown(row.date, 25)
    return f"{'' if row.date_recorded else '~'}{local:%Y-%m-%d %H:%M}"


def _instant(row: RunRow) -> float:
    """The date in seconds; one that cannot be read is before all others."""
    try:
        return datetime.fromisoformat(row.date).astimezone().timestamp()
    except (ValueError, OverflowError, OSError):
        return -math.inf


def _ranges(numbers: Sequence[int]) -> str:
    """`0-4`, or `0,2,7`.

    >>> _ranges((0, 1, 2)), _ranges((0, 2)), _ranges((3,))
    ('0-2', '0,2', '3')
    """
    whole = len(numbers) > 1 and list(numbers) == list(range(numbers[0], numbers[-1] + 1))
    return f"{numbers[0]}-{numbers[-1]}" if whole else ",".join(map(str, numbers))


def spelled(value: Any) -> str:
    """A setting as `--set` takes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return ",".join(map(spelled, value)) if isinstance(value, list) else str(value)


def resolve(name: str, rows: Sequence[RunRow], option: str) -> str:
    """The column or setting that somebody names: whole (`optim.lr`), or by its last part (`lr`).

    Raises:
        DataError: There is none, or there are several.
    """
    known = dict.fromkeys((*COLUMNS, *(key for row in rows for key in row.settings)))
    if name in known:
        return name
    ends = [key for key in known if key.endswith(f".{name}")]
    if len(ends) == 1:
        return ends[0]
    if ends:
        raise DataError(f"{option} {name}: could be {' or '.join(ends)}; name the whole of it")
    guess = did_you_mean(name, [*known, *(key.rpartition(".")[2] for key in known)])
    raise DataError(
        f"{option} {shown(name, 40)}: no such column{guess}; known: {', '.join(COLUMNS)}, and "
        "every setting of these runs, e.g. optim.lr"
    )


@dataclass(frozen=True)
class Condition:
    """A `--where`, read: its words, the column, one of TESTS or ~, and the value."""

    text: str
    name: str
    sign: str
    wanted: str

    def holds(self, row: RunRow, metric: str | None) -> bool:
        """Whether a run fulfils it; what is unknown fulfils none."""
        value, wanted = value_of(row, self.name, metric), self.wanted
        if not value:
            return False
        if self.sign == "~":
            return wanted.casefold() in value.casefold()
        value = self.compared(value)
        a, b = _number(value), _number(wanted)
        if a is None or b is None:
            return TESTS[self.sign](value, wanted)
        return TESTS[self.sign](a, b)

    def compared(self, value: str) -> str:
        """As much of a cell as is compared: of a date what was written of one, as a day is all of
        it; of a run its folder's name, where no path was written.
        """
        if self.name == "date":
            return value[: len(self.wanted)]
        alone = self.name == "run" and "/" not in self.wanted
        return Path(value).name if alone else value


def matching(
    rows: Sequence[RunRow], conditions: Iterable[str], metric: str | None = None
) -> list[RunRow]:
    """The rows for which all conditions hold.

    Args:
        rows: Of any runs.
        conditions: `COLUMN=VALUE`, with `!=`, `<`, `<=`, `>`, `>=`, or `~` for a part of the text;
            figures as they are printed, so percentages; of a date as much as is to be compared.
            What is unknown fulfils none.
        metric: The figure that dev and test stand for.

    Returns:
        The rows, in their order.

    Raises:
        DataError: A condition is none, there is no such column, or no run could have such a value.
    """
    asked = [_condition(text, rows, metric) for text in conditions]
    return [row for row in rows if all(one.holds(row, metric) for one in asked)]


def unmet(
    rows: Sequence[RunRow], conditions: Iterable[str], metric: str | None = None
) -> list[str]:
    """Why no run is left, or all are: a line for each condition on a value that no run has, with
    those that there are, or one for conditions that hold, but never together.

    Args:
        rows: All runs.
        conditions: As for `matching`, which has found nothing wrong with them.
        metric: The figure that dev and test stand for.
    """
    if not rows:
        return []
    asked = [_condition(text, rows, metric) for text in conditions]
    lines, counts = [], []
    for one in asked:
        values = _values(rows, one.name, metric)
        if one.name == "run":
            values = list(map(one.compared, values))
        counts.append(sum(one.holds(row, metric) for row in rows))
        idle = one.sign == "!=" and not any(_equal(one, value) for value in values)
        if not counts[-1] or idle:
            lines.append(f"--where '{shown(one.text, 60)}': {_none_has(one, values)}")
    together = [row for row in rows if all(one.holds(row, metric) for one in asked)]
    if not lines and not together:
        each = (f"{shown(one.text, 40)} for {n:,}" for one, n in zip(asked, counts, strict=True))
        lines.append(f"every --where holds for some run, all of them for none: {', '.join(each)}")
    return lines


def _none_has(one: Condition, values: Sequence[str]) -> str:
    """That no run has the value of a condition, and which there are."""
    if not values:
        return f"no run here has a {one.name}"
    numbers = [number for value in values if (number := _number(value)) is not None]
    if len(numbers) == len(values) and len(values) > 1:
        there = f"from {min(numbers):,.10g} to {max(numbers):,.10g}"
    else:
        there = shown(", ".join(values), VALUE_CHARACTERS)
    guess = "" if one.sign in ("<", "<=", ">", ">=") else did_you_mean(one.wanted, values)
    return f"no run here has it{guess}; {one.name} is {there}"


def _equal(one: Condition, value: str) -> bool:
    a, b = _number(value), _number(one.wanted)
    return value == one.wanted if a is None or b is None else a == b


def _values(rows: Sequence[RunRow], name: str, metric: str | None) -> list[str]:
    """What rows have in a column, each value once, in order."""
    found = dict.fromkeys(value_of(row, name, metric) for row in rows)
    return sorted(filter(None, found), key=natural)


def parts_of(text: str) -> tuple[str, str, str]:
    """Column, sign and value of a `--where`, as they are written.

    Raises:
        DataError: It is no condition.
    """
    found = CONDITION.fullmatch(text)
    if found is None:
        raise DataError(
            f"--where '{shown(text, 60)}': expected COLUMN=VALUE (or != < <= > >= ~), e.g. "
            "model=drkf, optim.lr<1e-3, dev>80"
        )
    return found[1], found[2], found[3]


def _condition(text: str, rows: Sequence[RunRow], metric: str | None) -> Condition:
    """A condition from its words.

    Raises:
        DataError: It is none, there is no such column, or no run could have such a value.
    """
    column, sign, wanted = parts_of(text)
    name = resolve(column, rows, "--where")
    asked = f"--where '{shown(text, 60)}'"
    values = _values(rows, name, metric)
    if name == "date" and sign != "~":
        wanted = wanted.replace("T", " ")
        _check_date(wanted, asked)
    elif sign in ("<", "<=", ">", ">="):
        numbers = values and all(_number(value) is not None for value in values)
        if numbers and _number(wanted) is None:
            unit = " (of MB)" if name == "size" else ""
            raise DataError(
                f"{asked}: {name} is a number{unit}, which '{shown(wanted, 40)}' is not"
            )
    possible = dict.fromkeys((*values, *POSSIBLE.get(name, ())))
    if name in POSSIBLE and sign in ("=", "==") and wanted not in possible:
        there = f"; those here: {shown(', '.join(values), VALUE_CHARACTERS)}" if values else ""
        raise DataError(f"{asked}: there is no such {name}{did_you_mean(wanted, possible)}{there}")
    return Condition(text, name, sign, wanted)


def _check_date(wanted: str, asked: str) -> None:
    """Raise DataError for what is no date, or no beginning of one."""
    whole = wanted + "0000-01-01 00:00"[len(wanted) :]
    try:
        if DATE.fullmatch(wanted) is None:
            raise ValueError(wanted)
        datetime.fromisoformat(whole)
    except ValueError:
        raise DataError(
            f"{asked}: a date is written 2026-11-29 18:05, or the beginning of it: a day "
            "2026-11-29, a month 2026-11, a year"
        ) from None


def value_of(row: RunRow, name: str, metric: str | None) -> str:
    """A cell as it is compared: figures without their deviation, megabytes without their unit."""
    if name == "size":
        return str(row.size / 1e6)
    if name in ("dev", "test"):
        value = _figure(row, name, metric)
        return "" if value is None else str(value)
    if name == "epoch":
        return "" if row.best_epoch is None else str(row.best_epoch)
    return cell(row, name, metric).removeprefix("~")


def _figure(row: RunRow, part: str, metric: str | None) -> float | None:
    """A figure in the unit in which it is printed."""
    name = metric_of(row, part, metric)
    value = getattr(row, part).get(name)
    return value if value is None or metrics.kind_of(name) in PLAIN else 100 * value


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def ordered(
    rows: Sequence[RunRow],
    by: str,
    metric: str | None = None,
    *,
    reverse: bool = False,
    among: Sequence[RunRow] = (),
) -> list[RunRow]:
    """Rows sorted by a column: figures with the best first, dates and sizes with the largest first,
    everything else upwards; what is unknown comes last. `among`: runs beside them whose settings
    are columns, too.

    Raises:
        DataError: There is no such column.
    """
    name = resolve(by, [*rows, *among], "--sort")
    known = [row for row in rows if value_of(row, name, metric)]
    unknown = [row for row in rows if not value_of(row, name, metric)]
    if name in ("dev", "test"):
        return sorted(known, key=lambda row: _worse(row, name, metric), reverse=reverse) + unknown
    downwards = (name in LARGEST_FIRST) != reverse
    if name == "date":
        return sorted(known, key=_instant, reverse=downwards) + unknown
    return sorted(known, key=lambda row: _key(row, name, metric), reverse=downwards) + unknown


def _worse(row: RunRow, part: str, metric: str | None) -> tuple[str, float]:
    """Small for a good figure; figures of one name stay together."""
    name, value = metric_of(row, part, metric), _figure(row, part, metric)
    assert value is not None
    return name, value if metrics.lower_is_better(name) else -value


def _key(row: RunRow, name: str, metric: str | None) -> tuple[float, list[tuple[int, str]]]:
    text = value_of(row, name, metric)
    value = _number(text)
    return math.inf if value is None or math.isnan(value) else value, natural(text)


def known_metric(name: str, rows: Sequence[RunRow]) -> str:
    """A figure that some run has.

    Raises:
        DataError: None has it.
    """
    known = dict.fromkeys(key for row in rows for key in (*row.dev, *row.test))
    if name not in known:
        raise DataError(
            f"--metric {shown(name, 40)}: no run has it{did_you_mean(name, known)}; known: "
            f"{listed(known) or 'none'}"
        )
    return name
