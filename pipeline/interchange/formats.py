"""The formats that stores come from and go to, one module each: the choices of `mer import` and
`mer export`. Nothing heavy is imported until a format is used.

Adding a format is one module with `read` or `write` or both, and one line in `FORMATS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mer.pipeline.interchange.copying import Copy
    from mer.pipeline.interchange.foreign import Foreign, ImportOptions

ROOM = "mer.pipeline.interchange"


@dataclass(frozen=True)
class Format:
    """A format by its module.

    `imported_as` and `exported_as` are what the command line calls it; "" where `mer import` does
    not read it, or `mer export` does not write it.
    """

    module: str
    imported_as: str = ""
    exported_as: str = ""
    layers: bool = False  # whether an export holds layer means


FORMATS = (
    Format("single", exported_as="single", layers=True),
    Format("npydir", imported_as="npy-dir", exported_as="npy", layers=True),
    Format("npz", imported_as="npz"),
    Format("parquet", imported_as="parquet", exported_as="parquet", layers=True),
    Format("mmsa", imported_as="mmsa", exported_as="mmsa"),
    Format("kaldi", exported_as="kaldi"),
)
IMPORTS = {form.imported_as: form for form in FORMATS if form.imported_as}
EXPORTS = {form.exported_as: form for form in FORMATS if form.exported_as}


def reader(kind: str) -> Callable[[Path, ImportOptions], Foreign]:
    """`read(path, options)` of a kind of import."""
    return import_module(f"{ROOM}.{IMPORTS[kind].module}").read


def writer(kind: str) -> Callable[[Copy, Path], bool]:
    """`write(copy, out)` of a kind of export, which says whether anything was written."""
    return import_module(f"{ROOM}.{EXPORTS[kind].module}").write
