"""The launcher's dealings with devices, streams and graphs, with stand-ins for those: no GPU is
needed, and no kernel runs.
"""

from __future__ import annotations

import importlib.util
from contextlib import nullcontext

import pytest
import torch

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

from mer.fusion.ops.gpu import launch
from mer.fusion.ops.terms import Term, lay_out

NT_XENT = (Term((0, 1), (0, 1)),)


@pytest.fixture
def device(monkeypatch):
    """cuda:1 while cuda:0 is current; the list holds what was made current since."""
    entered: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device", lambda d: entered.append(d) or nullcontext())
    return torch.device("cuda", 1), entered


def test_views_device_is_made_current(device):
    there, entered = device
    layout = lay_out(NT_XENT, (3, 3))
    for where in (there, torch.device("cuda", 0), torch.device("cpu")):
        with launch.ready(layout, where):
            pass
    assert entered == [there]


def test_tables_of_a_captured_graph_stay(device, monkeypatch):
    there, _ = device
    layout = lay_out(NT_XENT, (5, 5))
    launch.ready(layout, there)
    assert layout not in launch._in_graphs
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    try:
        launch.ready(layout, there)
        assert layout in launch._in_graphs
        with pytest.raises(RuntimeError, match="run one step before capturing"):
            launch.row_table(layout, 8, there)
    finally:
        launch._in_graphs.discard(layout)


def test_tables_are_made_once_and_by_another_thread(device, monkeypatch):
    """torch.compile(mode="reduce-overhead") overwrites what the thread of its warm-up allocates on
    the device.
    """
    import threading

    there, _ = device
    threads = []

    def to(table, where):
        assert where == there
        threads.append(threading.current_thread())
        return table

    monkeypatch.setattr(torch.Tensor, "to", to)
    monkeypatch.setattr(
        torch.cuda, "current_stream", lambda d: type("Stream", (), {"cuda_stream": -7})
    )
    layout = lay_out(NT_XENT, (7, 7))
    try:
        for _ in range(2):
            launch.row_table(layout, 8, there)
            launch.scales(layout, there)
            launch.ticket(there)
        assert len(threads) == 3 and threading.current_thread() not in threads
    finally:
        launch._tickets.pop((there, -7))


def test_chunks_cover_every_similarity_once():
    layout = lay_out((Term((0, 1), (0, 1)), Term((0,), (1, 2))), (40000, 40000, 5))
    for band in layout.bands:
        seen: dict = {}
        for r0, r1, visit, c0, c1 in launch._chunks(band, 8192):
            assert 0 < r1 - r0 <= 8192 and 0 < c1 - c0 <= launch.SCRATCH_COLS
            seen[visit.term, visit.row, visit.col] = seen.get(
                (visit.term, visit.row, visit.col), 0
            ) + (r1 - r0) * (c1 - c0)
        want: dict = {}
        for v in band.visits:
            want[v.term, v.row, v.col] = want.get((v.term, v.row, v.col), 0) + (
                band.r1 - band.r0
            ) * (v.c1 - v.c0)
        assert seen == want
