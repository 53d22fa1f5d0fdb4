"""The columns of `mer runs`: what a cell says, which rows conditions keep, how rows are sorted."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any

from mer.fusion.measures import metrics
from mer.fusion.measures.tables import PLAIN, number
from mer.fusion.runs.run_rows import RunRow, natural
from mer.pipeline.errors import DataError
from mer.pipeline.runtime.terminal import amount, did_you_mean, listed, shown

# columns that are shown whatever they hold, and those that are shown where they differ
ALWAYS = ("run", "state", "date", "model", "dev", "test", "size")
WHERE_THEY_DIFFER = ("store", "key", "seeds", "folds", "opened", "mer", "device")
COLUMNS = (*ALWAYS[:4], *WHERE_THEY_DIFFER, *ALWAYS[4:], "epoch", "parameters", "command")
LARGEST_FIRST = ("date", "size", "parameters")
KEY_CHARACTERS = 8  # of a store's key: enough to tell those of one path apart
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


def matching(
    rows: Sequence[RunRow], conditions: Iterable[str], metric: str | None = None
) -> list[RunRow]:
    """The rows for which all conditions hold.

    Args:
        rows: Of any runs.
        conditions: `COLUMN=VALUE`, with `!=`, `<`, `<=`, `>`, `>=`, or `~` for a part of the text;
            figures as they are printed, so percentages. What is unknown fulfils none.
        metric: The figure that dev and test stand for.

    Returns:
        The rows, in their order.

    Raises:
        DataError: A condition is none, or there is no such column.
    """
    kept = list(rows)
    for text in conditions:
        found = CONDITION.fullmatch(text)
        if found is None:
            raise DataError(
                f"--where '{shown(text, 60)}': expected COLUMN=VALUE (or != < <= > >= ~), e.g. "
                "model=drkf, optim.lr<1e-3, dev>80"
            )
        name, sign, wanted = resolve(found[1], rows, "--where"), found[2], found[3]
        values = [value for row in rows if (value := value_of(row, name, metric))]
        numbers = values and all(_number(value) is not None for value in values)
        if sign in ("<", "<=", ">", ">=") and numbers and _number(wanted) is None:
            raise DataError(
                f"--where '{shown(text, 60)}': {name} is a number, which '{shown(wanted, 40)}' is "
                "not"
            )
        kept = [row for row in kept if _holds(value_of(row, name, metric), sign, wanted)]
    return kept


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


def _holds(value: str, sign: str, wanted: str) -> bool:
    if not value:
        return False
    if sign == "~":
        return wanted.casefold() in value.casefold()
    a, b = _number(value), _number(wanted)
    if a is None or b is None:
        return TESTS[sign](value, wanted)
    return TESTS[sign](a, b)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def ordered(
    rows: Sequence[RunRow], by: str, metric: str | None = None, *, reverse: bool = False
) -> list[RunRow]:
    """Rows sorted by a column: figures with the best first, dates and sizes with the largest first,
    everything else upwards; what is unknown comes last.

    Raises:
        DataError: There is no such column.
    """
    name = resolve(by, rows, "--sort")
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
