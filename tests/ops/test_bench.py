"""The benchmark's child process: a peer that faults or hangs costs no other's figures."""

from __future__ import annotations

import os
import time

import pytest
import torch

from tests.bench.child import Child


def measure(workload, rows, d, device, dtype, *, left_out, note):
    """Stands in for the real one: a peer that ends the process, one that never returns, one error
    that no peer survives.
    """
    for peer in ("good", "dies", "hangs", "faults"):
        if peer in left_out:
            continue
        note(peer)
        if peer == "dies":
            os._exit(9)
        if peer == "hangs":
            time.sleep(1e4)
        if peer == "faults":
            raise RuntimeError("an illegal memory access\nand more")
    return [{"peer": "good", "B": rows}]


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
