"""A folder of .npy files, one an utterance and modality, beside a csv (as MERBench and EmoBox keep
them, and `mer export --to npy`).
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mer.pipeline.errors import DataError
from mer.pipeline.interchange.columns import account, find_columns, find_features, interpret
from mer.pipeline.interchange.write import Foreign, Options, sha256
from mer.pipeline.store import Header

MAX_CELL = 10 << 20


def read(path: Path, options: Options) -> Foreign:
    """FOLDER/index.csv (or the only csv there) and FOLDER/<name>/<file>.npy of (T, D) or (D,);
    `file` is that column, else the id.
    """
    if not path.is_dir():
        raise DataError(f"{path}: not a folder")
    tables = [path / "index.csv"] if (path / "index.csv").is_file() else sorted(path.glob("*.csv"))
    if len(tables) != 1:
        raise DataError(
            f"{path}: {'several csv files' if tables else 'no csv file'}; expected index.csv"
        )
    cells = read_csv(tables[0])
    names = find_columns(
        path, [name for name in cells if name != "file" or "id" not in cells], options
    )
    header = None
    if (path / "header.json").is_file():
        try:
            header = Header.from_json((path / "header.json").read_text(encoding="utf-8"))
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(
                f"{path}/header.json: not a header of `mer export` ({error}); remove it"
            ) from None
    folders = sorted(p.name for p in path.iterdir() if p.is_dir())
    features = find_features(path, folders, options, header)
    columns = {field: cells[name] for field, name in names.items()}
    files = [value.removesuffix(".npy") for value in cells.get("file", columns["id"])]
    task, labels, rows = interpret(path, columns, options, header)
    dims = {m: _dim(path, path / name, files, m) for m, name in features.items()}

    def frames() -> Iterator[dict[str, np.ndarray | None]]:
        for file in files:
            yield {m: _array(path / name, file) for m, name in features.items()}

    return Foreign(
        path=path,
        kind="npy-dir",
        dataset=options.dataset or (header.dataset if header else path.name),
        task=task,
        labels=labels,
        language=options.language or (header.language if header else "en"),
        rows=rows,
        dims=dims,
        frames=frames,
        header=header,
        source={"sha256_of_csv": sha256(tables[0])},
        notes=[account(names, features, task, [n for n in cells if n != "file"] + folders)],
    )


def read_csv(path: Path) -> dict[str, list[str]]:
    """Columns of a csv file in UTF-8."""
    csv.field_size_limit(MAX_CELL)
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            names = next(reader, [])
            rows, begins = [], reader.line_num + 1
            for row in reader:
                if len(row) != len(names) and row:
                    raise DataError(
                        f"{path}: line {begins} has {len(row)} cells, the header {len(names)}"
                    )
                rows += [row] if row else []
                begins = reader.line_num + 1
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: not UTF-8 (byte {error.object[error.start]:#04x} at {error.start}); save it "
            "as UTF-8"
        ) from None
    except csv.Error as error:
        raise DataError(f"{path}: line {reader.line_num}: {error}") from None
    if not names or not rows:
        raise DataError(f"{path}: no rows")
    if len(set(names)) != len(names):
        raise DataError(f"{path}: two columns of the same name")
    return dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))


def _array(folder: Path, file: str) -> np.ndarray | None:
    """The array of one utterance, mapped; None when there is no such file.

    Never leaves the folder, never unpickles.
    """
    path = folder / f"{file}.npy"
    if "\0" in file or not path.resolve().is_relative_to(folder.resolve()):
        raise DataError(f"{folder}: '{file[:80]}' leads out of the folder; refused")
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        return None
    except (ValueError, EOFError, OSError) as error:
        if isinstance(error, PermissionError):
            raise
        raise DataError(
            f"{path}: not a readable array "
            f"({str(error).splitlines()[0] if str(error) else type(error).__name__})"
        ) from None


def _dim(path: Path, folder: Path, files: list[str], modality: str) -> int:
    for file in files:
        x = _array(folder, file)
        if x is not None and x.ndim in (1, 2) and x.shape[-1]:
            return x.shape[-1]
    raise DataError(f"{path}: no file of {folder.name} for {modality} belongs to a row of the csv")
