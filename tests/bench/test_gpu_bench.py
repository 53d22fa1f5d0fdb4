"""`python -m tests.bench gpu` without a GPU: what it writes and when it stops, and a dry run from a
plain copy of the tree where packages are missing.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import pytest

from tests.bench import gpu, parts

ROOT = Path(__file__).parents[2]
# what only decoding, the command line and the tests need
MISSING = ("av", "soundfile", "dask", "distributed", "cryptography", "click", "rich", "matplotlib")
ABSENT = f"""
import sys
from importlib.abc import MetaPathFinder

class Absent(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {(*MISSING, "pytest", "_pytest")}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
import importlib.util
found = importlib.util.find_spec

def find_spec(name, package=None):
    return None if name.split(".")[0] in {(*MISSING, "pytest")} else found(name, package)

importlib.util.find_spec = find_spec
"""


def test_shares_are_all_of_the_time():
    assert sum(part.share for part in gpu.PARTS) == pytest.approx(1)


def test_what_a_part_leaves_goes_to_those_behind_it(monkeypatch, tmp_path):
    clock, limits = [100.0], []

    def one(bench, part, out, limit, paths, *flags):
        limits.append(limit)
        clock[0] += min(limit, 10)
        return {"part": part.name, "ended": "done", "seconds": 10.0, "rows": [{"x": 1}]}

    monkeypatch.setattr(parts, "one", one)
    monkeypatch.setattr(parts.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(gpu, "PARTS", tuple(map(gpu.Part, "abc", (0.5, 0.25, 0.25))))
    gpu.main(["--out", str(tmp_path), "--minutes", str(100 / 60), "--parts", "a,b,c", "--tiny"])
    assert limits == pytest.approx([50, 45, 80])
    found = json.loads((tmp_path / "summary.json").read_text())
    assert [said["part"] for said in found["parts"]] == ["a", "b", "c"]
    assert found["parts"][1]["limit_s"] == 45
    text = (tmp_path / "summary.md").read_text()
    assert text.startswith("# dry run on the CPU") and "| x |\n| --- |\n| 1 |" in text


@pytest.mark.parametrize(
    ("does", "ended", "rows"),
    [
        ("", "done", 1),
        ("exit 3", "failed (exit 3)", 1),
        ("sleep 60", "stopped after 6 s; what it had written is kept", 1),
        ("rm $5/drkf.json; exit 1", "failed (exit 1)", 0),
    ],
)
def test_a_part_that_fails_or_hangs_keeps_what_it_had_written(
    does, ended, rows, monkeypatch, tmp_path
):
    """The parent calls `-m tests.bench gpu --out DIR ...`: DIR is the fifth word."""
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\necho told\necho '[{{\"x\": 1}}]' > $5/drkf.json\n{does}\n")
    program.chmod(0o755)
    monkeypatch.setattr(parts.sys, "executable", str(program))
    begun = time.monotonic()
    said = parts.one("gpu", parts.Part("drkf", 1), tmp_path, 6, "")
    assert said["ended"] == ended and len(said["rows"]) == rows
    assert time.monotonic() - begun < 30
    assert ("told" in said.get("log", "")) == ended.startswith("failed")
    late = parts.one("gpu", parts.Part("drkf", 1), tmp_path, 2, "")
    assert late["ended"] == "not begun: no time left"


def test_the_tree_has_its_name_and_version():
    with parts.import_name() as paths:
        folder = Path(paths.split(os.pathsep)[0])
        assert (folder / "mer" / "cli.py").samefile(ROOT / "cli.py")
        (found,) = metadata.distributions(name="mer", path=[str(folder)])
        assert found.version == metadata.version("mer")
    assert not folder.exists()


def test_the_union_of_spans():
    from tests.bench.gpu_encoders import covered

    assert covered([]) == 0
    assert covered([(0, 2), (1, 3), (1.5, 2), (5, 6)]) == 4


def test_without_a_gpu_it_says_what_there_is(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu, "has_gpu", lambda: False)
    with pytest.raises(SystemExit, match="--tiny is a dry run on the CPU"):
        gpu.main(["--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="no such part: nothing"):
        gpu.main(["--out", str(tmp_path), "--tiny", "--parts", "drkf,nothing"])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_dry_run_from_a_plain_copy_of_the_tree(tmp_path):
    """No git, no installed mer, and without the packages that only other commands need."""
    tree, out, site = tmp_path / "tree", tmp_path / "out", tmp_path / "site"
    names = ("__init__.py", "pyproject.toml", "pipeline", "fusion", "manifests", "tests")
    tree.mkdir()
    for name in names:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, tree / name)
    site.mkdir()
    (site / "sitecustomize.py").write_text(ABSENT)
    command = [sys.executable, "-m", "tests.bench", "gpu", "--out", str(out), "--minutes", "60"]
    environment = {**os.environ, "PYTHONPATH": str(site), "MER_COMMIT": "abc1234"}
    done = subprocess.run(
        [*command, "--tiny"], cwd=tree, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((out / "summary.json").read_text())
    assert found["machine"]["commit"] == "abc1234"
    said = {part["part"]: part for part in found["parts"]}
    assert {name: part["ended"] for name, part in said.items()} == {
        part.name: "done" for part in gpu.PARTS
    }, json.dumps(said, indent=1)
    assert said["parity"]["rows"] == [{"tests": "none", "why": "pytest is not installed"}]
    assert [row["why"] for row in said["sanitizer"]["rows"]] == ["", "", ""]
    assert [row["modality"] for row in said["extraction"]["rows"]] == ["audio", "text"]
    assert [row["seeds"] for row in said["drkf"]["rows"]] == [1, 2]
    for name in ("contrastive", "tiles"):
        assert {"eager", "mer"} <= {row["peer"] for row in said[name]["rows"]}
