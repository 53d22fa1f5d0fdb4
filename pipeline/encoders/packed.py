"""The networks of transformers on a CPU, with the same arithmetic and less around it.

oneDNN takes the weight of a linear layer in an order of its own. That order is made once here, not
for every product, and the GELU behind a layer is applied to each piece of its output while that is
in the processor's cache. Values differ by rounding from those of the layers that are replaced.

Layers of fewer than `LEAST_WIDTH` numbers stay as they are: there is nothing to gain.
"""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from mer.pipeline.runtime.machine import one_thread

LEAST_WIDTH = 128
# Rows that a weight is put in order for. Any number is computed, this one decides no value; it must
# not depend on what is computed first.
ROWS = 512
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# the activation, and the layer before it, of transformers' feed-forward networks
ACTIVATION, LAYERS_BEFORE = "intermediate_act_fn", ("dense", "intermediate_dense")
_PACKING = threading.Lock()


def can_pack(device: torch.device, precision: str) -> bool:
    """Whether this machine's torch has the operators, for its processor, and may use them."""
    onednn = torch.backends.mkldnn
    if device.type != "cpu" or precision not in DTYPES:
        return False
    if not (onednn.is_available() and onednn.enabled):
        return False
    names = ("_linear_pointwise", "_reorder_linear_weight", "_is_mkldnn_bf16_supported")
    if not all(hasattr(torch.ops.mkldnn, name) for name in names):
        return False
    return precision == "fp32" or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def pack(model: nn.Module, device: torch.device, precision: str) -> None:
    """Replace the linear layers of a frozen `model`, where this machine can do better."""
    if not can_pack(device, precision):
        return
    made: dict[nn.Module, PackedLinear] = {}
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and min(child.weight.shape) >= LEAST_WIDTH:
                if child not in made:
                    made[child] = PackedLinear(child.weight, child.bias, precision)
                setattr(parent, name, made[child])
        for name in LAYERS_BEFORE:
            layer = getattr(parent, name, None)
            if isinstance(layer, PackedLinear) and is_gelu(getattr(parent, ACTIVATION, None)):
                layer.activation = "gelu"
                setattr(parent, ACTIVATION, nn.Identity())
    # a norm that is computed in every pass; what is rounded how follows from the number of threads
    with one_thread():
        for module in model.modules():
            if parametrize.is_parametrized(module, "weight"):
                parametrize.remove_parametrizations(module, "weight")


def is_gelu(module: object) -> bool:
    """Whether a module is the exact GELU, not one of its approximations."""
    if isinstance(module, nn.GELU):
        return module.approximate == "none"
    if type(module).__name__ != "GELUActivation":
        return False
    return getattr(module, "act", None) is functional.gelu


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    """`activation(x W' + b)`; `weight` in oneDNN's order, or as it is."""
    algorithm = "none" if activation == "gelu" else ""
    # it takes rows that lie apart, not rows that overlap
    if x.dim() > 1 and x.stride(-2) < x.shape[-1]:
        x = x.contiguous()
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], algorithm)


class PackedLinear(nn.Module):
    """`activation(x W' + b)`, with W (out, in) in oneDNN's order from the first call on.

    A weight that is used by others only, as some attention does, is never put in order. In fp32 the
    weight as it was is given up then; in bf16 it stays, because fp32 may be asked for.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None, precision: str, activation: str = "none"
    ) -> None:
        """`activation`: none or gelu."""
        super().__init__()
        self.weight: Any = weight  # None once it is given up
        self.bias, self.activation = bias, activation
        self.dtype = DTYPES[precision]
        self._packed: tuple[Tensor, Tensor | None] | None = None

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_autocast_enabled("cpu"):
            asked = torch.get_autocast_dtype("cpu")
        else:
            asked = torch.float32
        if asked is not self.dtype:
            return self._as_it_was(x)
        weight, bias = self._packed or self._pack()
        return linear(x.to(self.dtype), weight, bias, self.activation)

    def _as_it_was(self, x: Tensor) -> Tensor:
        y = functional.linear(x, self.weight, self.bias)
        return functional.gelu(y) if self.activation == "gelu" else y

    def _pack(self) -> tuple[Tensor, Tensor | None]:
        # the order is chosen for a number of threads, and what is rounded how follows from it
        with _PACKING, one_thread():
            if self._packed is None:
                weight = self.weight.detach().to(self.dtype)
                bias = None if self.bias is None else self.bias.detach().to(self.dtype)
                packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), ROWS)
                self._packed = packed, bias
                if self.dtype is torch.float32:
                    self.weight = None
        return self._packed
