"""Two float64 references: `loops` spells the definition out anchor by anchor; `dense` is the same
with masks, for larger sizes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mer.fusion.ops.terms import Term

MODES = ("none", "exclude", "supcon")
DRKF = (Term((0, 1), (0, 1)), Term((2, 3), (2, 3)), Term((2,), (0,)))


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=1, keepdim=True).clamp_min(1e-12)


def loops(views, tau, terms, labels=None, mode: str = "none") -> Tensor:
    """(T,) losses, one Python loop per anchor and candidate. `labels`: one list per view."""
    z = [unit(v) for v in views]
    out = []
    for t, term in enumerate(terms):
        temperature = tau[t] if tau.ndim else tau
        losses = []
        for a in term.anchors:
            first = next(c for c in term.candidates if c != a)
            for i in range(len(z[a])):
                kept, positives = [], []
                for c in term.candidates:
                    for j in range(len(z[c])):
                        if c == a and (i == j or not term.mask_self):
                            continue
                        is_pair = c == first and i == j
                        alike = (
                            labels is not None
                            and labels[a][i] == labels[c][j]
                            and labels[a][i] >= 0
                        )
                        if mode == "exclude" and alike and not is_pair:
                            continue
                        logit = (z[a][i] * z[c][j]).sum() / temperature
                        kept.append(logit)
                        if is_pair or (mode == "supcon" and alike):
                            positives.append(logit)
                losses.append(torch.logsumexp(torch.stack(kept), 0) - torch.stack(positives).mean())
        out.append(torch.stack(losses).mean())
    return torch.stack(out)


def dense(views, tau, terms, labels=None, mode: str = "none", *, normalise: bool = True) -> Tensor:
    """(T,) losses with (R, R) masks; any dtype, so it also shows what eager PyTorch loses in that
    dtype.
    """
    z = torch.cat(
        [torch.nn.functional.normalize(v, eps=1e-12) for v in views] if normalise else views
    )
    rows = [len(v) for v in views]
    view = torch.repeat_interleave(torch.arange(len(views)), torch.tensor(rows))
    index = torch.cat([torch.arange(n) for n in rows])
    s = z @ z.T
    flat = torch.cat([torch.as_tensor(x) for x in labels]) if labels is not None else None
    out = []
    for t, term in enumerate(terms):
        seen = torch.zeros(len(z), len(z), dtype=torch.bool)
        pair = torch.zeros_like(seen)
        anchor = torch.zeros(len(z), dtype=torch.bool)
        for a in term.anchors:
            mine = view == a
            anchor |= mine
            for c in term.candidates:
                if c != a or term.mask_self:
                    seen |= mine[:, None] & (view == c)[None, :]
            first = next(c for c in term.candidates if c != a)
            pair |= mine[:, None] & (view == first)[None, :] & (index[:, None] == index[None, :])
        seen.fill_diagonal_(False)
        positive = pair
        if mode != "none":
            alike = (flat[:, None] == flat[None, :]) & (flat >= 0)[:, None] & seen
            seen, positive = (
                (seen & ~(alike & ~pair), pair) if mode == "exclude" else (seen, pair | alike)
            )
        logits = s[anchor] / (tau[t] if tau.ndim else tau)
        seen, positive = seen[anchor], positive[anchor]
        pull = (logits * positive).sum(1) / positive.sum(1)
        out.append((logits.masked_fill(~seen, -torch.inf).logsumexp(1) - pull).mean())
    return torch.stack(out)


def gradients(function, views, tau, weights, **kw) -> list[Tensor]:
    """[losses, d views..., d tau] of sum_t weights_t loss_t, all in the inputs' dtype."""
    views = [v.detach().clone().requires_grad_() for v in views]
    tau = tau.detach().clone().requires_grad_()
    losses = function(views, tau, **kw)
    grads = torch.autograd.grad(
        (losses * weights.to(losses)).sum(), [*views, tau], allow_unused=True
    )
    return [
        losses.detach(),
        *(
            torch.zeros_like(v) if g is None else g
            for g, v in zip(grads, [*views, tau], strict=True)
        ),
    ]
