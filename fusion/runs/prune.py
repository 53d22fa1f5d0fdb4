"""What a finished run no longer needs, and its removal.

That is `last.safetensors`, the weights and the optimizer's moments after the last epoch, which only
a training that goes on reads: no checksum of run.json is of it, and a finished run is never gone on
with. Temporary files that a killed write left behind go, too.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mer.fusion.runs import checkpoint
from mer.fusion.runs.checkpoint import Run
from mer.fusion.runtime import files
from mer.pipeline.errors import DataError
from mer.pipeline.runtime.hold import busy


@dataclass(frozen=True)
class Spare:
    """Files of a run, or of the runs of a group, that can go, and their bytes."""

    run: Path
    files: tuple[Path, ...]
    size: int


def spare(path: Path) -> Spare:
    """What of a run can go.

    Args:
        path: A finished run, or a group of which every run is finished.

    Returns:
        The files; none where they have gone before.

    Raises:
        DataError: It is not finished, is held, or one of its files is not as the training wrote it:
            then what could go is perhaps still of use.
    """
    run = Run.open(path).sound()
    found: list[Path] = []
    for folder in dict.fromkeys([run.path, *(child.path for child in run.children)]):
        if busy(folder / checkpoint.HOLD):
            raise DataError(f"{folder}: somebody is writing there; wait for it")
        last = folder / checkpoint.LAST
        found += [last] if last.is_symlink() or last.is_file() else []
        found += [one for one in sorted(folder.iterdir()) if _left_behind(one)]
    return Spare(path, tuple(found), sum(one.lstat().st_size for one in found))


def _left_behind(path: Path) -> bool:
    """Whether a write that was killed left a file here."""
    named = files.LEFT_BEHIND.fullmatch(path.name) is not None
    return named and path.is_file() and not path.is_symlink()


def sort_out(paths: Iterable[Path]) -> tuple[list[Spare], list[str]]:
    """(what of each run can go, a line for each that is left as it is).

    Args:
        paths: Run folders; one that is named twice, or with its group, counts once.
    """
    found: list[Spare] = []
    refused: list[str] = []
    seen: set[Path] = set()
    for path in paths:
        try:
            one = spare(path)
        except DataError as error:
            refused.append(str(error))
            continue
        new = [file for file in one.files if file.parent.resolve() / file.name not in seen]
        seen |= {file.parent.resolve() / file.name for file in new}
        found.append(Spare(path, tuple(new), sum(file.lstat().st_size for file in new)))
    return found, refused


def remove(found: Iterable[Spare]) -> None:
    """Remove them."""
    for one in found:
        for path in one.files:
            path.unlink(missing_ok=True)
