"""The borders between the paths, and what the kernels can take.

They stand apart from the paths because compiled code must know them without importing Triton
(`function.encode`), and because both the choice of a path and the path itself read them.
"""

from __future__ import annotations

import torch

# Rows of all views together up to which the dense path is quicker than the chunked one (one thread,
# D = 256, forward and backward): DRKF's three terms took it 0.9 of the time at 128 rows, one
# NT-Xent 0.7.
DENSE_ROWS = 128
# Rows of all views together, so NT-Xent up to B = 32 and DRKF's four views up to B = 16.
TINY_ROWS = 64
# Largest D -> most rows of all views together for which the row-owner kernels are chosen.
MID_ROWS = {256: 8192, 1024: 2048}
KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MAX_VIEWS = 8  # pointers among which a kernel selects
MIN_CAPABILITY = (8, 0)  # compute capability of the GPU
