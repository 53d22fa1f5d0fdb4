"""What `mer evaluate` leaves in a run folder: metrics.json and predictions.parquet, written and
read.
"""

from __future__ import annotations

import hashlib
import io
import re
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mer.fusion.runs.checkpoint import Run
from mer.fusion.runs.prediction_table import UNITS, Predicted, from_table
from mer.fusion.runs.records import Confusion, GroupInfo, GroupMetrics, Metrics, SingleMetrics
from mer.fusion.runtime import files, typed
from mer.fusion.runtime.files import METRICS, PREDICTIONS
from mer.pipeline.errors import DataError
from mer.pipeline.runtime.columnar import read_small

# What Arrow and the columns of a foreign table raise.
UNREADABLE = (
    pa.ArrowException,
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    OverflowError,
    MemoryError,
)
# Figures and predictions of any part or store; robustness.py writes the last kind.
MEASURED = re.compile(r"(metrics|predictions|robustness)(-.*)?\.(json|parquet)")


def stored_metrics(run: Run) -> SingleMetrics | GroupMetrics | None:
    """The test figures of an earlier evaluate, if there are any."""
    path = run.path / METRICS
    if not path.exists():
        return None
    remedy = f"run `mer evaluate {run.path}` again"
    found: SingleMetrics | GroupMetrics
    if isinstance(run.info, GroupInfo):
        found = files.read_json(path, GroupMetrics, remedy)
    else:
        found = files.read_json(path, SingleMetrics, remedy)
    matrix, size = reference_by_answer(found), len(found.labels)
    if matrix and [len(row) for row in matrix] != [size] * size:
        raise files.damaged(path, "confusion is not one row and one column per label", remedy)
    return found


def reference_by_answer(found: SingleMetrics | GroupMetrics) -> Confusion | None:
    """The confusion matrix of a run or a group, where there is one."""
    mean = found.confusion if isinstance(found, GroupMetrics) else None
    return mean or found.metrics.confusion


def read_predictions(run: Run) -> Predicted:
    """The test predictions of an earlier evaluate, held against the checksum that metrics.json has.

    Raises:
        DataError: There are none, or they are damaged.
    """
    path = run.path / PREDICTIONS
    again = f"run `mer evaluate {run.path}` again"
    try:
        first = f"run `mer evaluate {run.path}` first"
        with files.opened(path, first, missing="no predictions") as file:
            raw = file.read()
        return _predicted(run, raw)
    except DataError as error:
        if str(error).startswith(str(run.path)):
            raise
        raise files.damaged(path, error, again) from None
    except UNREADABLE as error:
        raise files.damaged(path, error, again) from None


def _predicted(run: Run, raw: bytes) -> Predicted:
    """The bytes of predictions.parquet as arrays; raises ValueError and others of UNREADABLE."""
    spec = run.children[0].spec
    figures = stored_metrics(run)
    if figures is None:
        raise ValueError(f"{METRICS} is missing")
    if figures.predictions_sha256 not in (None, hashlib.sha256(raw).hexdigest()):
        raise ValueError(f"{METRICS} is of other predictions")
    table = read_small(io.BytesIO(raw))
    wanted = {"id", "pred", *UNITS, "label" if spec.task == "single" else "targets"}
    if missing := wanted - set(table.column_names):
        raise ValueError(f"no column {min(missing)}")
    if table["id"].null_count:
        raise ValueError("a row without an id")
    measures = figures.measures or run.children[0].measures
    return from_table(table, spec.task, spec.labels, measures)


def write(folder: Path, stem: str, found: Metrics, table: pa.Table) -> None:
    """Write predictions, and the metrics with their sha256."""
    sha256 = write_parquet(table, folder / f"predictions{stem}.parquet")
    sealed = replace(found, predictions_sha256=sha256)
    files.write_json(folder / f"metrics{stem}.json", typed.tree(sealed))


def remove(folder: Path) -> list[str]:
    """Remove what was measured of a run over seeds, to which seeds have been added; the names."""
    found = [path for path in folder.iterdir() if MEASURED.fullmatch(path.name)]
    files_of_ours = sorted(path for path in found if path.is_file() or path.is_symlink())
    for path in files_of_ours:
        path.unlink()
    return [path.name for path in files_of_ours]


def write_parquet(table: pa.Table, path: Path) -> str:
    """Returns the sha256 of the file."""
    made = io.BytesIO()  # a full disk is then met by us, not inside Arrow
    pq.write_table(table, made, compression="zstd")
    files.write_bytes(path, made.getvalue())
    return hashlib.sha256(made.getvalue()).hexdigest()
