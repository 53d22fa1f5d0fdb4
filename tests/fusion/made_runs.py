"""Run folders in great number, made from one that was trained: with its files, other settings and
other figures, and with checksums that are right.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from pathlib import Path
from typing import Any

import tomli_w

from mer.fusion.runtime import files

COPIED = (files.SPLIT, files.LOG, files.MODEL, files.LAST)
RATES = (1e-4, 3e-4, 1e-3)


def unsealed(path: Path) -> dict[str, Any]:
    """The JSON of a file without its seal."""
    value = json.loads(path.read_text())
    value.pop(files.SEAL, None)
    return value


def make(template: Path, folder: Path, number: int, *, score: float | None = None) -> Path:
    """Run `number` of a search, in `folder`: the learning rate and the width differ, dev WF1 is
    `score` (0.5 and a thousandth for each number), test one point below.
    """
    path = folder / f"run-{number}"
    path.mkdir(parents=True)
    for name in COPIED:
        (path / name).hardlink_to(template / name)
    tree = tomllib.loads((template / files.CONFIG).read_text())
    tree["optim"]["lr"] = RATES[number % len(RATES)]
    tree["model_args"]["hidden"] = 16 * (1 + number // len(RATES) % 4)
    text = tomli_w.dumps(tree)
    (path / files.CONFIG).write_text(text)
    score = 0.5 + number / 1000 if score is None else score
    info = unsealed(template / files.INFO)
    info["config_sha256"] = hashlib.sha256(text.encode()).hexdigest()
    info["date"] = f"2026-11-{1 + number % 28:02}T12:00:00+00:00"
    info["command"] = f"mer train --features feats.h5 --set optim.lr={tree['optim']['lr']}"
    info["dev"]["wf1"] = score
    files.write_json(path / files.INFO, info)
    found = unsealed(template / files.METRICS)
    found["metrics"]["wf1"] = score - 0.01
    files.write_json(path / files.METRICS, found)
    for name in (files.PREDICTIONS, files.TEST_LOG):
        (path / name).write_bytes((template / name).read_bytes())
    return path
