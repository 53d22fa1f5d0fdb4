"""An npz whose features are (N, D) with lengths beside: what these say is taken, or is an error.
They were passed over where there were as many rows as utterances."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mer.pipeline.errors import DataError
from mer.pipeline.interchange.foreign import ImportOptions
from mer.pipeline.interchange.npz import read


def given(path: Path, rows: int, lengths: list[int]) -> list[list[list[float]]]:
    """The steps of each of three utterances, of an array whose rows are numbered."""
    numbers = np.arange(rows * 2, dtype=np.float32).reshape(rows, 2)
    np.savez(
        path / "f.npz",
        id=np.array(["a", "b", "c"]),
        label=np.array(["x", "y", "x"]),
        audio=numbers,
        audio_lengths=np.array(lengths),
    )
    return [piece["audio"].tolist() for piece in read(path / "f.npz", ImportOptions()).frames()]


FIRST, SECOND, THIRD = [0.0, 1.0], [2.0, 3.0], [4.0, 5.0]


@pytest.mark.parametrize(
    ("rows", "lengths", "steps"),
    [
        (3, [2, 0, 1], [[FIRST, SECOND], [], [THIRD]]),  # end to end, by chance as many rows
        (3, [1, 1, 1], [[FIRST], [SECOND], [THIRD]]),
        (3, [1, 0, 1], [[FIRST], [], [THIRD]]),  # a row each, and one that says nothing
        (2, [1, 0, 1], [[FIRST], [], [SECOND]]),
    ],
)
def test_lengths_are_believed(tmp_path, rows, lengths, steps):
    assert given(tmp_path, rows, lengths) == steps


@pytest.mark.parametrize(("rows", "lengths"), [(3, [2, 2, 2]), (3, [0, 2, 0]), (4, [1, 1, 1])])
def test_lengths_that_fit_neither_form_are_an_error(tmp_path, rows, lengths):
    with pytest.raises(DataError, match="its lengths do not fit 3 utterances"):
        given(tmp_path, rows, lengths)
