"""A JSON file of a corpus, read whole."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mer.pipeline.datasets.textfiles import read_text
from mer.pipeline.errors import DataError
from mer.pipeline.runtime.columnar import reason


def read_json(path: Path, *, pairs: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """The content of a file.

    Args:
        path: The file.
        pairs: Makes a value of each object's pairs; it may raise ValueError. None: dictionaries.

    Returns:
        The content, whatever it is.

    Raises:
        DataError: The file cannot be read, or is not JSON.
    """
    try:
        return json.loads(read_text(path), object_pairs_hook=pairs)
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits is a ValueError
        raise DataError(f"{path}: not JSON ({reason(error)})") from None
