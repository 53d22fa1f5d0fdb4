"""Every kernel the launcher can choose compiles, without a GPU, for Ampere, Hopper and Blackwell:
no spills, shared memory within the chip's limit, matrix instructions of the chip's kind.
"""

from __future__ import annotations

import importlib.util

import pytest
import torch

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

from mer.fusion.ops.paths import kernel_path

from tests.ops import aot  # imports Triton

# (path, B, D, dtype, precision, label mode): every branch of the tile table, every tier, labels
# once
TABLE = [
    ("tiny", 4, 1024, torch.float32, "ieee", "none"),  # DRKF as published
    ("tiny", 8, 256, torch.bfloat16, "auto", "none"),
    ("tiny", 16, 64, torch.float32, "ieee", "supcon"),
    ("tiny", 16, 256, torch.float32, "ieee", "none"),
    ("mid", 128, 256, torch.float32, "ieee", "none"),
    ("mid", 128, 256, torch.float32, "tf32", "none"),
    ("mid", 512, 1024, torch.bfloat16, "auto", "none"),
    ("mid", 512, 64, torch.float16, "auto", "exclude"),
    ("mid", 1024, 256, torch.float32, "ieee", "none"),
    ("mid", 1024, 256, torch.float32, "tf32", "supcon"),
    ("mid", 1024, 256, torch.bfloat16, "auto", "none"),
    ("large", 4096, 256, torch.float32, "ieee", "none"),
    ("large", 4096, 256, torch.float32, "tf32", "none"),
    ("large", 4096, 1024, torch.bfloat16, "auto", "none"),
    ("large", 4096, 64, torch.float16, "auto", "supcon"),
    ("large", 4096, 256, torch.bfloat16, "auto", "exclude"),
]
WITHOUT_MATRICES = {"tiny_scale", "normalise", "large_finish"}
LARGE_TILES = {80: "mma.sync", 90: "wgmma.mma_async", 100: "tcgen05.mma"}


def gate(path, rows, d, dtype, precision, mode, capability):
    recorded = aot.launches(
        rows, d, dtype, capability=capability, path=path, precision=precision, mode=mode
    )
    assert len(recorded) >= 2
    for launch in recorded:
        usage = aot.compile_for(capability, *launch)
        ptx = usage.pop("ptx")
        assert usage["stack"] == 0 or capability not in LARGE_TILES, f"spills: {usage}"
        assert usage["shared"] <= aot.SHARED_LIMIT[capability], usage
        assert usage["scratch"] == 0, f"needs triton.set_allocator: {usage}"
        if usage["kernel"] == "large_coefficients":
            assert "st.global.b16" not in ptx and "st.global.v4.b32" in ptx, (
                "coefficients are stored one by one"
            )
        if usage["kernel"] in WITHOUT_MATRICES:
            assert not usage["matrix"], usage
        elif path == "large" and precision != "ieee" and capability in LARGE_TILES:
            assert LARGE_TILES[capability] in usage["matrix"], usage
        else:
            assert usage["matrix"], usage


def test_table_holds_what_the_launcher_chooses():
    assert all(kernel_path(4 * rows, d) == path for path, rows, d, *_ in TABLE)


def test_one_configuration():
    gate("mid", 128, 256, torch.bfloat16, "auto", "none", 90)
    gate("large", 4096, 256, torch.bfloat16, "auto", "none", 90)


@pytest.mark.slow
@pytest.mark.timeout(600)
# the last two, with little shared memory, may spill
@pytest.mark.parametrize("capability", [80, 90, 100, 89, 120])
@pytest.mark.parametrize(
    "entry", TABLE, ids=lambda e: f"{e[0]}-{e[1]}x{e[2]}-{str(e[3])[6:]}-{e[4]}-{e[5]}"
)
def test_table(entry, capability):
    gate(*entry, capability)
