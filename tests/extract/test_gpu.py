"""What only a GPU can show of an extraction. Not part of any run without one (`-m gpu`)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mer.pipeline.extraction import extract
from mer.pipeline.store import FeatureStore

from tests.extract import corpus

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.mark.parametrize(("precision", "close"), [("fp32", 2e-3), ("fp16", 0.05), ("bf16", 0.2)])
def test_features_are_those_of_the_cpu_and_the_same_every_time(tmp_path, precision, close):
    """Two threads queue batches and fetch results; none may see another's. fp32 on a GPU may
    multiply in tf32.
    """
    manifest, file = corpus.make(tmp_path, 40)
    made = {}
    for name, device, kind in (
        ("cpu", "cpu", "fp32"),
        ("first", "cuda", precision),
        ("second", "cuda", precision),
    ):
        options = corpus.options(device=device, precision=kind, budget_seconds=8)
        extract(manifest, tmp_path / name / "feats.h5", options, source=file)
        made[name] = FeatureStore(tmp_path / name / "feats.h5")
    for modality in ("audio", "text"):
        cpu, first, second = (made[name].packed(modality)[0] for name in ("cpu", "first", "second"))
        assert (first == second).all()
        difference = np.linalg.norm(first.astype(np.float64) - cpu) / np.linalg.norm(
            cpu.astype(np.float64)
        )
        assert difference < close, (modality, difference)
