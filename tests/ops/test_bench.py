"""The benchmark's child process: a peer that faults or hangs costs no other's figures."""

from __future__ import annotations

import time

import pytest
import torch

from tests.bench.child import Child
from tests.ops.peers import measure


@pytest.mark.slow
def test_a_peer_that_dies_or_hangs_costs_no_others_figures():
    child = Child(measure, silence=15)
    try:
        for rows in (4, 8, 16):  # who hung is not waited for again, nor who died twice
            start = time.monotonic()
            good, *failed = child("nt_xent", rows, 16, torch.device("cpu"), torch.float32)
            assert good == {"peer": "good", "B": rows}
            assert {row["peer"]: row["failure"] for row in failed} == {
                "dies": "its process died", "hangs": "no sign of life for 15 s at nt_xent 4x16",
                "faults": "RuntimeError: an illegal memory access",
            }  # fmt: skip
            assert all((row["B"], row["D"], row["what"]) == (rows, 16, "failed") for row in failed)
            took = time.monotonic() - start
        assert took < 15 and child.deaths == {"dies": 2, "hangs": 1, "faults": 2}
    finally:
        child.close()
