"""transformers, imported without what no encoder needs: torch's compiler, its distributed tensors,
scikit-learn and SciPy are three quarters of the time that its models take to import.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import threading
from collections.abc import Iterator
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
_ONCE = threading.Lock()


def import_transformers() -> None:
    """Import what transformers' models share; before any of them is imported.

    Where something has imported it, or the compiler, already, there is nothing to spare.
    """
    with _ONCE:
        if {MODELS, COMPILER} & sys.modules.keys():
            return
        with contextlib.suppress(Exception), _lean():
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
