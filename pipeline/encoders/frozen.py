"""What encoders share: precision, checked loading, packing, the batch-against-single self-test."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import DTypeLike
from torch import Tensor

from mer.pipeline.encoders import lean, tiny
from mer.pipeline.encoders.loading import Checkpoint
from mer.pipeline.encoders.modality import States
from mer.pipeline.errors import DataError, EncoderError
from mer.pipeline.runtime.terminal import first_line

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Weights that no feature passes through: poolers, the embedding that masked training swaps in,
# position indices, heads of other tasks.
UNUSED = (
    "pooler.",
    "masked_spec_embed",
    "position_ids",
    "lm_head",
    "classifier",
    "cls.",
    "quantizer",
    "project_q",
    "project_hid",
)


def choose_precision(precision: str, device: torch.device) -> str:
    """`auto` is fp32 on the CPU and fp16 on a GPU: finer than bf16, and a batch that overflows it
    is computed again in fp32.
    """
    if precision == "auto":
        return "fp32" if device.type == "cpu" else "fp16"
    if precision not in PRECISIONS:
        raise DataError(f"precision '{precision}' is not one of auto, {', '.join(PRECISIONS)}")
    return precision


def load_model(
    checkpoint: Checkpoint,
    device: torch.device,
    kind: Any = None,
    *,
    unused: Sequence[str] = (),
    needed: Sequence[str] = (),
    **arguments: Any,
) -> Any:
    """The frozen network in fp32, an `nn.Module`; `kind` is its class in transformers (default:
    AutoModel), which takes `arguments`. What more it has depends on that class.

    A weight that is missing, or of another shape, is fatal: the features would be noise. Missing
    may be those that no feature passes through, which have one of `unused` in their names; `needed`
    are parts of names that features pass through here, and usually do not.
    """
    if checkpoint.folder is None:
        return tiny.model(checkpoint.id).eval().requires_grad_(False).to(device)
    lean.import_transformers()
    from transformers import AutoModel
    from transformers.utils import logging

    what = f"{checkpoint.kind} encoder {checkpoint.name}"
    logging.disable_progress_bar()
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # its report on missing weights is replaced by the check below
    try:
        model, report = (kind or AutoModel).from_pretrained(
            checkpoint.folder,
            **arguments,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=checkpoint.safetensors,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are in the report, by name
        )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, EOFError) as error:
        raise EncoderError(
            f"{what}: cannot be loaded from {checkpoint.folder} ({first_line(error)})"
        ) from None
    # safetensors and the weights-only unpickler raise classes of their own
    except Exception as error:
        raise EncoderError(
            f"{what}: its weights cannot be read ({type(error).__name__}: {first_line(error)})"
        ) from None
    finally:
        logging.set_verbosity(verbosity)
    needless = [part for part in (*UNUSED, *unused) if part not in needed]
    missing = sorted(key for key in report["missing_keys"] if not _has(key, needless))
    mismatched = report.get("mismatched_keys", ())
    wrong = sorted(str(key[0] if isinstance(key, tuple) else key) for key in mismatched)
    for problem, keys in (("are missing from", missing), ("have another shape in", wrong)):
        if keys:
            raise EncoderError(
                f"{what}: {len(keys)} weights {problem} {checkpoint.folder} (first: {keys[0]}); "
                "it is not usable"
            )
    return model.eval().requires_grad_(False).to(device)


def _has(key: str, parts: Sequence[str]) -> bool:
    """Whether the name of a weight has one of these parts."""
    return any(part in key for part in parts)


_QUEUE = threading.Lock()


@contextlib.contextmanager
def computing(device: torch.device, precision: str):
    """Inference mode, under autocast where the precision is not fp32: weights stay in fp32, matrix
    products run in half precision.

    On a GPU by one thread at a time: a batch's results are on their way to the host before the next
    batch is queued, which then computes while they are looked at, and activations of one batch only
    are in memory.
    """
    with _QUEUE if device.type == "cuda" else contextlib.nullcontext(), torch.inference_mode():
        if precision == "fp32":
            yield
        else:
            with torch.autocast(device.type, PRECISIONS[precision]):
                yield


def to_host(x: Tensor) -> Callable[[], np.ndarray]:
    """Start the copy of `x` to the host; the call waits for it.

    To be started under `computing`, and waited for outside of it.
    """
    if x.device.type == "cpu":
        return x.numpy
    host = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
    host.copy_(x, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record(torch.cuda.current_stream(x.device))

    def wait() -> np.ndarray:
        copied.synchronize()
        return host.numpy()

    return wait


def pad(
    rows: Sequence[np.ndarray],
    value: float,
    dtype: DTypeLike,
    device: torch.device,
    length: int = 0,
) -> tuple[Tensor, Tensor]:
    """Rows (T, …) as (B, longest, …), at least `length` long, filled up with `value`, and their
    mask (B, longest) int64; on the host, where `device` can fetch them by itself.
    """
    lengths = np.array([len(row) for row in rows])
    longest = max(int(lengths.max()), length)
    padded = np.full((len(rows), longest, *rows[0].shape[1:]), value, dtype=dtype)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = row
    mask = np.arange(longest) < lengths[:, None]
    both = torch.from_numpy(padded), torch.from_numpy(mask.astype(np.int64))
    return (both[0].pin_memory(), both[1].pin_memory()) if device.type == "cuda" else both


def invariance(encode: Callable[[Sequence], list[States]], items: Sequence) -> tuple[float, float]:
    """Largest difference between features, layer means included, computed in one batch and one at a
    time, as (absolute, relative to the largest feature).
    """
    worst, scale = 0.0, 0.0
    for together, item in zip(encode(items), items, strict=True):
        alone = encode([item])[0]
        for a, b in zip(_arrays(together), _arrays(alone), strict=True):
            if a.size:
                worst = float(np.maximum(worst, np.abs(a - b).max()))  # NaN stays
                scale = float(np.maximum(scale, np.abs(b).max()))
    return worst, worst / max(1.0, scale)


def _arrays(states: States) -> list[np.ndarray]:
    """What of an item is compared."""
    return [x for x in (states.frames, states.layer_means) if x is not None]
