"""The arrows of docs/architecture.md, read off the syntax trees: who may import whom, that nobody
imports in a circle, and what may happen at import.
"""

from __future__ import annotations

import ast
import tomllib
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("commands", "pipeline", "fusion", "manifests")
FILES = sorted(
    [
        ROOT / "cli.py",
        *(p for room in ROOMS for p in (ROOT / room).rglob("*.py")),
    ]
)
# what a room of the pipeline may import of the pipeline, besides itself, `errors` and `manifest`
ARROWS = {
    "errors": (),
    "manifest": ("runtime",),
    "doctor": ("runtime",),
    "runtime": (),
    "store": ("runtime",),
    "media": ("runtime",),
    "encoders": ("media", "runtime"),
    "datasets": ("media", "runtime"),
    "interchange": ("store", "runtime"),
    "extraction": ("encoders", "media", "datasets", "store", "runtime"),
}
WITHOUT_MANIFEST = ("errors", "runtime", "store", "media")
MOST_ENTRIES = 10
# what a room of fusion may import of fusion, besides itself
FUSION_ARROWS = {
    "runtime": (),
    "ops": (),
    "losses": ("ops",),
    "measures": (),
    "batch": ("runtime",),
    "modules": ("batch", "losses"),
    "models": ("batch", "losses", "modules", "runtime"),
    "config": ("models", "runtime"),
    "data": ("batch", "config", "models"),
    "infer": ("batch", "data", "losses", "measures", "models"),
    "runs": ("batch", "config", "data", "infer", "measures", "models", "runtime"),
}
FUSION_ARROWS["training"] = (*FUSION_ARROWS["runs"], "losses", "modules", "runs")
FUSION_ARROWS["evaluation"] = (*FUSION_ARROWS["training"], "training")
FUSION_ARROWS["report"] = ("data", "evaluation", "infer", "measures", "runs", "runtime")
# Names of modalities as texts stand only where the column of a table, or a file format, is meant.
MODALITIES = {"audio", "text", "vision"}
MAY_NAME_THEM = {
    "pipeline/manifest.py": {"audio", "text"},  # columns of the manifest
    "pipeline/store/schema.py": {"text"},  # a column of the store
}
ROOMS_THAT_NAME_THEM = ("encoders", "media", "datasets", "interchange")


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imports(path: Path, *, for_types: bool = True) -> set[str]:
    """Every absolute module that `path` imports, at any depth; `from a import b` counts as both a
    and a.b. `for_types` False: without what only a type checker imports.
    """
    found = set()
    skipped: set[ast.AST] = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and not for_types:
            if node.test.id == "TYPE_CHECKING":
                skipped |= {inner for statement in node.body for inner in ast.walk(statement)}
        if node in skipped:
            continue
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


def module_of(path: Path) -> str:
    """The name a file is imported by."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(("mer", *(part for part in parts if part != "__init__")))


MODULES = {module_of(path): path for path in FILES}


def needed(path: Path, *, for_types: bool = True) -> set[str]:
    """The modules of ours that a file imports, wherever in it; of a package and its submodule, the
    submodule.
    """
    named = imports(path, for_types=for_types) & MODULES.keys()
    inner = {name for name in named if any(under(other, name) and other != name for other in named)}
    return named - inner - {module_of(path)}


@pytest.mark.parametrize("path", FILES, ids=rel)
def test_arrows(path: Path):
    name = rel(path)
    for module in imports(path):
        assert module.split(".")[0] not in (*ROOMS, "cli"), (
            f"{name} imports {module}: everything of ours is under mer"
        )
        if name.startswith("fusion/") and under(module, "mer.pipeline"):
            seen = module == "mer.pipeline" or under(
                module, "mer.pipeline.store", "mer.pipeline.errors", "mer.pipeline.runtime"
            )
            assert seen, f"{name} imports {module}: fusion sees the store, the errors, the runtime"
        if name.startswith("pipeline/"):
            assert not under(module, "mer.fusion"), (
                f"{name} imports {module}: the pipeline knows nothing of fusion"
            )
        if name != "cli.py":
            assert not under(module, "mer.cli"), f"{name} imports {module}: nothing is above it"
        if not name.startswith(("cli.py", "commands/")):
            assert not under(module, "mer.commands"), f"{name} imports {module}: against the arrow"
        if name.startswith(("pipeline/store/", "pipeline/runtime/")) and name != TORCH_USER:
            heavy = under(module, "torch", "transformers", "torchaudio", "dask")
            assert not heavy, f"{name} imports {module}: h5py, numpy and pyarrow only"
        if name.startswith("manifests/"):
            read = under(module, "mer", "torch")
            assert not read, f"{name} imports {module}: manifests are data"
        if name.startswith("fusion/"):
            media = under(module, "transformers", "torchaudio", "dask", "av", "soundfile")
            assert not media, f"{name} imports {module}: fusion sees no media and no encoders"


TORCH_USER = "pipeline/runtime/machine.py"  # asks torch for devices, inside its functions


@pytest.mark.parametrize(
    "path", [path for path in FILES if rel(path).startswith("pipeline/")], ids=rel
)
def test_rooms_of_the_pipeline(path: Path):
    parts = module_of(path).split(".")
    if parts == ["mer", "pipeline"]:
        assert not imports(path), "pipeline/__init__.py stays free of imports"
        return
    room = parts[2]
    allowed = {room, "errors", *ARROWS[room]}
    if room not in WITHOUT_MANIFEST:
        allowed.add("manifest")
    for module in needed(path):
        if under(module, "mer.pipeline") and module != "mer.pipeline":
            assert module.split(".")[2] in allowed, f"{rel(path)} imports {module}"


@pytest.mark.parametrize(
    "path", [path for path in FILES if rel(path).startswith("fusion/")], ids=rel
)
def test_rooms_of_fusion(path: Path):
    parts = module_of(path).split(".")
    if parts == ["mer", "fusion"]:
        assert not imports(path), "fusion/__init__.py stays free of imports"
        return
    allowed = {parts[2], *FUSION_ARROWS[parts[2]]}
    for module in needed(path):
        if under(module, "mer.fusion") and module != "mer.fusion":
            assert module.split(".")[2] in allowed, f"{rel(path)} imports {module}"


def test_nobody_imports_in_a_circle():
    """Imports inside functions count: they hide a circle, they do not open it."""
    graph = {name: needed(path, for_types=False) for name, path in MODULES.items()}
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, f"circle: {' → '.join([*way[way.index(name) :], name])}"
        if name not in done:
            for other in sorted(graph[name]):
                visit(other, (*way, name))
            done.add(name)

    for name in sorted(graph):
        visit(name, ())


def test_the_search_for_circles_finds_one():
    """The test above can fail: an import inside a function is seen."""
    assert "mer.pipeline.extraction.cluster" in needed(ROOT / "pipeline/extraction/steps.py")


def test_the_pipeline_has_few_rooms():
    entries = {
        path.relative_to(ROOT / "pipeline").parts[0]
        for path in FILES
        if rel(path).startswith("pipeline/")
    }
    assert len(entries - {"__init__.py"}) <= MOST_ENTRIES, sorted(entries)
    assert {entry.removesuffix(".py") for entry in entries} - {"__init__"} == ARROWS.keys()


def test_the_rooms_of_fusion_are_the_list():
    rooms = {
        path.relative_to(ROOT / "fusion").parts[0].removesuffix(".py")
        for path in FILES
        if rel(path).startswith("fusion/")
    }
    assert rooms - {"__init__"} == FUSION_ARROWS.keys()


def test_no_modality_is_named_where_the_registry_is_iterated():
    found = []
    for path in FILES:
        name = rel(path)
        rooms = tuple(f"pipeline/{room}/" for room in ROOMS_THAT_NAME_THEM)
        if not name.startswith("pipeline/") or name.startswith(rooms):
            continue
        texts = {
            node.value
            for node in ast.walk(tree_of(path))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
        named = (texts & MODALITIES) - MAY_NAME_THEM.get(name, set())
        found += [f"{name}: {text!r}" for text in sorted(named)]
    assert not found


def test_the_list_of_packages_is_the_tree():
    """What is not listed would be missing from a wheel."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {module_of(path) for path in FILES if path.name == "__init__.py"}
    assert set(settings["packages"]) == folders | {"mer"}


def test_the_image_is_built_of_every_package():
    """What is not copied would be missing from it, and what is ignored cannot be copied."""
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    copied = {name for line in lines if line.startswith("COPY ") for name in line.split()[1:-1]}
    ignore = (ROOT / ".dockerignore").read_text().splitlines()
    assert {"__init__.py", "cli.py", *ROOMS} <= copied
    assert copied <= {line[1:] for line in ignore if line.startswith("!")}


def test_no_grab_bag_modules():
    assert not [rel(p) for p in FILES if p.stem in ("utils", "util", "helpers", "common", "misc")]


COMMANDS = [path for path in FILES if rel(path).startswith(("cli.py", "commands/"))]


@pytest.mark.parametrize("path", COMMANDS, ids=rel)
def test_commands_import_nothing_heavy_at_the_top(path: Path):
    if rel(path) == "commands/predicting.py":
        return  # the work of `mer predict`, which it imports when it is run
    tree = tree_of(path)
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
