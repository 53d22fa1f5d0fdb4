"""Optimisers without what they prepare for torch.compile.

Every method of an optimiser of PyTorch is wrapped for torch.compile, which imports its compiler,
sympy and torch.distributed at the first call: a second and a half before the first step of a
training that compiles nothing.
"""

from __future__ import annotations

import inspect
from typing import Any, TypeVar, cast

import torch
from torch.optim import Optimizer

Kind = TypeVar("Kind", bound=type[Optimizer])
WRAPPED = ("add_param_group", "load_state_dict", "state_dict", "step", "zero_grad")


def eager(kind: Kind) -> Kind:
    """The same optimiser to the bit, its step not to be compiled.

    Args:
        kind: A class of `torch.optim`.

    Returns:
        A child of it whose methods are what PyTorch wrapped; the step is taken without gradients,
        as the wrapper does. State dicts of the two are exchangeable.
    """
    plain: dict[str, Any] = {name: inspect.unwrap(getattr(kind, name)) for name in WRAPPED}
    plain["step"] = torch.no_grad()(plain["step"])
    return cast(Kind, type(kind.__name__, (kind,), plain))


AdamW = eager(torch.optim.AdamW)
LBFGS = eager(torch.optim.LBFGS)
