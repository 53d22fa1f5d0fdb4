"""A dropout of 1, which the settings take, let one element in 65,536 through, 65,536 times as large
(found by reading).
"""

from __future__ import annotations

import torch

from mer.fusion.modules.crossmodal import attend
from mer.fusion.modules.dropout import Dropout, LockedDropout, plus_dropout, relu_dropout

N = 1 << 18  # four elements of such a size, on average


def test_nothing_is_left():
    torch.manual_seed(0)
    x = torch.rand(4, N // 16, 4).requires_grad_()
    for dropped in (Dropout(1.0)(x), LockedDropout(1.0)(x), relu_dropout(x, 1.0)):
        assert not dropped.any()
    assert torch.equal(plus_dropout(x.detach(), x.detach(), 1.0), x.detach())
    relu_dropout(x, 1.0).sum().backward()
    assert not x.grad.any()


def test_no_weight_of_attention_is_left():
    q, k, v = torch.randn(3, 2, 2, 300, 4).unbind(0)
    found = attend(q, k, v, None, 1.0)
    assert found.shape == v.shape and not found.any()
