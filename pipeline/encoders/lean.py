"""transformers, imported without what no encoder needs: torch's compiler, its distributed tensors,
scikit-learn and SciPy are three quarters of the time that its models take to import. Half of what
is left is its list of all that it has, for which it reads each of its 1,500 files, twice, and the
metadata of every installed package; here the files are read once, and metadata when asked for.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.abc
import importlib.machinery
import importlib.metadata
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

COMPILER = "torch._dynamo"
INDEXING = "torch._dynamo._trace_wrapped_higher_order_op"
# What transformers asks about its surroundings. "No" to each of these is an installation that it
# supports: torch without torch.distributed, and neither scikit-learn nor SciPy.
QUESTIONS = ("is_torch_distributed_available", "is_sklearn_available", "is_scipy_available")
# what all models share; a model's own module comes later, when it is asked for
MODELS = "transformers.modeling_utils"
SHARED = (MODELS, "transformers.generation.utils")
LISTING = "transformers.utils.import_utils"  # it lists what there is
EXPORTED = "__all__"
_ONCE = threading.Lock()


def import_transformers() -> None:
    """Import what transformers' models share; before any of them is imported.

    Where something has imported it, or the compiler, already, there is nothing to spare.
    """
    with _ONCE:
        if {MODELS, COMPILER} & sys.modules.keys():
            return
        with contextlib.suppress(Exception), _listed_once(), _lean():
            for name in SHARED:
                importlib.import_module(name)
        # what failed is imported again, as it is, by who needs it


@contextlib.contextmanager
def _lean() -> Iterator[None]:
    """Within: no compiler, and "no" to the questions. What is imported there keeps the answers."""
    import torch
    import transformers.utils as asked
    from transformers.utils import import_utils

    answers = {name: getattr(import_utils, name) for name in QUESTIONS}
    for name in QUESTIONS:
        setattr(import_utils, name, _no)
        setattr(asked, name, _no)
    standing = _stand_ins()
    before = {name: sys.modules[name] for name in standing if name in sys.modules}
    sys.modules.update(standing)
    try:
        yield
    finally:
        for name, module in standing.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]
        for name, module in before.items():
            sys.modules.setdefault(name, module)
        if vars(torch).get("_dynamo") is standing[COMPILER]:
            del torch._dynamo
        for name, answer in answers.items():
            setattr(import_utils, name, answer)
            setattr(asked, name, answer)


def _no() -> bool:
    return False


def _stand_ins() -> dict[str, ModuleType]:
    """The compiler's modules as far as transformers names them at import: decorators that tell the
    compiler how to take a function, and a mode that one kind of attention mask is made in.
    """
    compiler, indexing = ModuleType(COMPILER), ModuleType(INDEXING)
    compiler.__path__ = []  # a package, so that its module is found
    for name in ("allow_in_graph", "assume_constant_result", "disable"):
        setattr(compiler, name, _as_it_is)
    indexing.TransformGetItemToIndex = _mode  # type: ignore[attr-defined]
    return {COMPILER: compiler, INDEXING: indexing}


def _as_it_is(function: Any = None, *args: Any, **keywords: Any) -> Any:
    """A decorator, with or without arguments, that changes nothing."""
    return _as_it_is if function is None else function


def _mode() -> Any:
    """The real mode, when a mask asks for it."""
    return importlib.import_module(INDEXING).TransformGetItemToIndex()


class _Installed(Mapping[str, list[str]]):
    """What `importlib.metadata.packages_distributions` returns, name by name: the packages that a
    module comes with. A module is mostly of the package that has its name, and to look for that one
    alone is quick; only for another are all looked at.
    """

    def __init__(self, all_of_them: Callable[[], Mapping[str, list[str]]]) -> None:
        self._all = functools.cache(all_of_them)

    def __getitem__(self, name: str) -> list[str]:
        try:
            return [importlib.metadata.distribution(name).metadata["Name"]]
        except importlib.metadata.PackageNotFoundError:
            return self._all()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())


class _Listing(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the module that lists what transformers has, and mends it before it is used."""

    def __init__(self) -> None:
        self._loader: Any = None

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        spec = importlib.machinery.PathFinder.find_spec(name, path) if name == LISTING else None
        if spec is not None:
            self._loader, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        listing: Any = module
        with contextlib.suppress(AttributeError):  # a version that lists otherwise
            # 128 folders are remembered, and there are 500
            folder = listing.create_import_structure_from_path.__wrapped__
            listing.create_import_structure_from_path = functools.cache(folder)
            listing.fetch__all__ = _from_the_last(listing.fetch__all__)


def _from_the_last(exported: Callable[[str], list[str]]) -> Callable[[str], list[str]]:
    """`exported` reads what a module exports off the last line that begins with `__all__`; it is
    given the module from that line on.
    """

    def of(source: str) -> list[str]:
        return exported(source[source.rfind(f"\n{EXPORTED}") + 1 :])

    return of


@contextlib.contextmanager
def _listed_once() -> Iterator[None]:
    """Within: transformers reads each of its files once, and of packages what it asks for."""
    listing, metadata = _Listing(), importlib.metadata
    look_at_all = metadata.packages_distributions
    sys.meta_path.insert(0, listing)
    metadata.packages_distributions = lambda: _Installed(look_at_all)
    try:
        yield
    finally:
        sys.meta_path.remove(listing)
        metadata.packages_distributions = look_at_all
