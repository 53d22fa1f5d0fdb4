"""The optimizers, the learning rate, and the length of a gradient.

The optimizers come without what PyTorch prepares for torch.compile: every method of one is wrapped
for it, which imports the compiler, sympy and torch.distributed at the first call: a second and a
half before the first step of a training that compiles nothing.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mer.fusion.config import TrainConfig
from mer.fusion.models.base import FusionModel

Kind = TypeVar("Kind", bound=type[Optimizer])
PLATEAU_THRESHOLD = 1e-4  # share by which a loss must be lower to count as better
WRAPPED = ("add_param_group", "load_state_dict", "state_dict", "step", "zero_grad")


def eager(kind: Kind) -> Kind:
    """The same optimiser to the bit, without PyTorch's wrapper that loads the compiler.

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


def adamw(model: FusionModel, config: TrainConfig) -> Optimizer:
    """AdamW (Loshchilov & Hutter 2019) that takes a step of all parameters in one pass.

    Args:
        model: Its parameters are optimised.
        config: Rate, decay and betas.

    Returns:
        The optimizer; each group has its highest learning rate as `peak`.
    """
    groups = parameter_groups(model, config)
    return AdamW(groups, betas=config.optim.betas, fused=True)


def parameter_groups(model: FusionModel, config: TrainConfig) -> list[dict[str, Any]]:
    """AdamW groups: no decay on one-dimensional parameters (biases, norms), nor on those to which
    `model.lr_scale` gives a rate of their own.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, p in model.named_parameters():
        if p.requires_grad:
            rate = config.optim.lr * model.lr_scale.get(name, 1.0)
            decay = config.optim.weight_decay if p.ndim > 1 and name not in model.lr_scale else 0.0
            groups.setdefault((rate, decay), []).append(p)
    return [
        {"params": p, "lr": lr, "peak": lr, "weight_decay": decay}
        for (lr, decay), p in groups.items()
    ]


def schedule(step: int, steps: int, warmup: float, shape: str) -> float:
    """Factor on the learning rate at `step` of `steps`: linear warm-up over a share of them, then a
    cosine to 0, or constant (and on a plateau, besides, what `plateau` says).
    """
    rising = max(round(warmup * steps), 1)
    if step < rising:
        return (step + 1) / rising
    if shape in ("constant", "plateau"):
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(steps - rising, 1)))


def plateau(losses: Sequence[float], factor: float, patience: int) -> float:
    """Factor on the learning rate after epochs with these dev losses, by the rule of PyTorch's
    ReduceLROnPlateau as it is by default: after more than `patience` epochs without a loss that is
    lower by one part in 10,000 it is multiplied by `factor`, and counting begins anew.

    >>> plateau([1.0, 0.9, 0.9, 0.9], 0.5, 1), plateau([1.0, 0.9, 0.9, 0.8], 0.5, 1)
    (0.5, 1.0)
    """
    best, waited, found = math.inf, 0, 1.0
    for loss in losses:
        if loss < best * (1 - PLATEAU_THRESHOLD):
            best, waited = loss, 0
        else:
            waited += 1
        if waited > patience:
            found, waited = found * factor, 0
    return found


def cooldown(step: int, first: int, end: int) -> float:
    """Factor on the schedule at `step`, in a training that ends before step `end`: linear from 1,
    which it is until step `first`, to 0.

    >>> [cooldown(step, 4, 8) for step in (3, 4, 6, 7)]
    [1.0, 1.0, 0.5, 0.25]
    """
    return 1.0 if step < first else (end - step) / (end - first)


@torch.no_grad()
def clip_gradients(parameters: Sequence[nn.Parameter], longest: float) -> Tensor:
    """Scale the gradients so that together they are at most `longest` (Pascanu et al. 2013).

    On a CPU they are only written where they are too long; asking a GPU whether they are would make
    it wait.

    Args:
        parameters: Those without a gradient are passed over.
        longest: The 2-norm of all of them as one vector.

    Returns:
        () what it was before.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients, foreach=True)
    if norm.device.type != "cpu" or not norm <= longest:  # NaN is for the caller to see
        torch.nn.utils.clip_grads_with_norm_(parameters, longest, norm, foreach=True)
    return norm
