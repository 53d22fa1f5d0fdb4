"""The arrows of docs/architecture.md, read off the syntax trees: who may import whom, and what may
happen at import.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted(
    [
        ROOT / "cli.py",
        *(p for room in ("pipeline", "fusion", "manifests") for p in (ROOT / room).rglob("*.py")),
    ]
)


def imports(path: Path) -> set[str]:
    """Every absolute module that `path` imports, at any depth; `from a import b` counts as both a
    and a.b.
    """
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def under(name: str, *rooms: str) -> bool:
    return any(name == room or name.startswith(room + ".") for room in rooms)


def rel(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", FILES, ids=rel)
def test_arrows(path: Path):
    name = rel(path)
    for module in imports(path):
        if name.startswith("fusion/") and under(module, "mer.pipeline"):
            rooms = ("store", "runtime", "errors")
            seen = under(module, *(f"mer.pipeline.{room}" for room in rooms))
            assert seen, (
                f"{name} imports {module}: of the pipeline fusion sees only {', '.join(rooms)}"
            )
        if name.startswith("pipeline/"):
            assert not under(module, "mer.fusion", "mer.cli"), (
                f"{name} imports {module}: the pipeline knows nothing of fusion"
            )
        if name.startswith("pipeline/store/"):
            heavy = under(
                module,
                "torch",
                "transformers",
                "torchaudio",
                "dask",
                "mer.pipeline.extraction.extract",
                "mer.pipeline.media.audio",
            )
            assert not heavy, (
                f"{name} imports {module}: the store needs h5py, numpy and pyarrow only"
            )
        if name.startswith("manifests/"):
            assert not under(module, "mer.fusion", "torch", "mer.cli"), f"{name} imports {module}"
        if name.startswith("fusion/"):
            media = under(module, "transformers", "torchaudio", "dask", "av", "soundfile")
            assert not media, f"{name} imports {module}: fusion sees no media and no encoders"
        if name.startswith(("fusion/modules/", "fusion/losses/", "fusion/ops/")):
            above = under(
                module,
                "mer.fusion.models",
                "mer.fusion.train",
                "mer.fusion.evaluate",
                "mer.fusion.data",
            )
            assert not above, f"{name} imports {module}: against the arrow"
        if name.startswith("fusion/ops/"):
            assert not under(module, "mer.fusion.losses", "mer.fusion.modules"), (
                f"{name} imports {module}: ops stand alone"
            )


def test_no_grab_bag_modules():
    assert not [rel(p) for p in FILES if p.stem in ("utils", "util", "helpers", "common", "misc")]


def test_cli_imports_nothing_heavy_at_the_top():
    tree = ast.parse((ROOT / "cli.py").read_text())
    top = {a.name for n in tree.body if isinstance(n, ast.Import) for a in n.names}
    top |= {n.module for n in tree.body if isinstance(n, ast.ImportFrom)}
    assert not [
        m
        for m in top
        if under(
            m,
            "torch",
            "transformers",
            "torchaudio",
            "pyarrow",
            "h5py",
            "numpy",
            "dask",
            "mer.fusion",
        )
    ]
