"""The self-test of every extraction: features computed in one batch against one at a time, and half
precision against fp32. Its figures are stored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from mer.pipeline.encoders.modality import Encoder, Item
from mer.pipeline.errors import EncoderError
from mer.pipeline.extraction.plan import Draft, Inputs
from mer.pipeline.extraction.runner import sources
from mer.pipeline.media.workers import Decoders
from mer.pipeline.runtime.machine import one_thread

# of batch against single, relative to the largest feature (at least 1)
TOLERANCE = {"fp32": 2e-5, "bf16": 5e-2, "fp16": 1e-2}
# Relative error of half precision against fp32 above which it is no rounding, which costs a percent
# or two: oneDNN's bfloat16 convolutions of groups with few channels are plainly wrong on processors
# with AMX (github.com/pytorch/pytorch/issues/163347).
WRONG_PRECISION_ERROR = 0.2
SAMPLED_QUANTILES = (0.0, 0.1, 0.25, 0.4, 0.55, 0.7, 0.8, 0.9)  # of the lengths


def self_test(inputs: Inputs, drafted: Draft, encoders: Mapping[str, Encoder]) -> dict[str, dict]:
    """For each modality with something to encode, features of up to eight items computed in one
    batch and one at a time, and in half precision against fp32.

    Returns:
        Modality → items, absolute and relative difference, tolerance, precision, passed, and for
        half precision `precision_error`; and what the encoder itself has to say (its `self_test`).

    Raises:
        EncoderError: values are not finite, or half precision is plainly wrong.
    """
    results = {}
    with Decoders(0) as decoders, one_thread():
        readers = sources(inputs, encoders, decoders)
        for modality, encoder in encoders.items():
            chosen = _sample(drafted, modality)
            items = [x.value for x in readers[modality].read(chosen) if x.problem is None]
            if items:
                results[modality] = _test_one(modality, encoder, items)
    return results


def _test_one(modality: str, encoder: Encoder, items: Sequence[np.ndarray]) -> dict:
    from mer.pipeline.encoders.frozen import invariance

    absolute, relative = invariance(encoder.encode, items)
    if not np.isfinite(relative):  # a clip that overflows will fail alone, by its name
        items = [x for x in items if np.isfinite(encoder.encode([x])[0].frames).all()]
        if items:
            absolute, relative = invariance(encoder.encode, items)
    name, precision = f"{modality} encoder {encoder.checkpoint.name}", encoder.precision
    if not np.isfinite(relative):
        raise EncoderError(
            f"{name}: gives values that are not finite in {precision}; try --precision fp32"
        )
    tolerance = TOLERANCE[precision]
    result = {
        "items": len(items),
        "absolute": absolute,
        "relative": relative,
        "tolerance": tolerance,
        "precision": precision,
        "passed": relative <= tolerance,
    }
    if precision != "fp32":
        result["precision_error"] = error = precision_error(encoder, items)
        if error > WRONG_PRECISION_ERROR:
            raise EncoderError(
                f"{name}: {error:.0%} off in {precision}, which is no rounding; use --precision "
                "fp32"
            )
    if hasattr(encoder, "self_test"):
        result |= encoder.self_test(items)
    return result


def precision_error(encoder: Encoder, items: Sequence[np.ndarray]) -> float:
    """Relative L2 distance of half-precision features from fp32 ones."""
    error = norm = 0.0
    for x in items:
        half = encoder.encode([x])[0].frames
        full = encoder.encode([x], precision="fp32")[0].frames
        error += float(np.square(half - full, dtype=np.float64).sum())
        norm += float(np.square(full, dtype=np.float64).sum())
    return float(np.sqrt(error / max(norm, 1e-30)))


def _sample(drafted: Draft, modality: str) -> list[Item]:
    items = drafted.by_length(modality)
    if not items:
        return []
    places = (int(q * (len(items) - 1)) for q in SAMPLED_QUANTILES)
    return list(dict.fromkeys(items[place] for place in places))
