"""Peers of the benchmark that fail, in a module that its child process can import by name."""

from __future__ import annotations

import os
import time


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
