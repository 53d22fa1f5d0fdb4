"""Contrastive mutual-information losses in one pass: any number of NT-Xent and InfoNCE terms over
shared views.

    losses = contrastive_terms([x, y], tau, [Term((0, 1), (0, 1)), Term((0,), (1,))])

Normalisation, similarities, masks, temperature and log-sum-exp happen inside; gradients reach every
view and the temperature; no matrix of all similarities is ever stored beyond a bounded scratch.
`docs/kernels.md` has the maths, the tiers and the limits; `mer.fusion.losses` has `nt_xent` and
`info_nce`, which come here.

    contrastive.py   the public function: arguments in, losses out
    terms.py         which rows meet which rows
    paths.py         which implementation runs; limits.py: the borders between them
    function.py      autograd and torch.compile around the implementations
    cpu/             plain PyTorch, on any device: dense, chunked, strips
    gpu/             Triton: kernels, and the host's side of them
"""

from mer.fusion.ops.contrastive import contrastive_terms
from mer.fusion.ops.paths import path_for
from mer.fusion.ops.terms import Term

__all__ = ["Term", "contrastive_terms", "path_for"]
