"""The Dockerfile, read: what it copies, installs and keeps. Nothing here can build it."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def steps() -> list[tuple[str, str]]:
    """(instruction, its arguments), continuations joined and comments left out."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.M)
    lines = text.replace("\\\n", " ").splitlines()
    return [(line.split()[0], line.partition(" ")[2]) for line in lines if line.strip()]


def of(steps, instruction: str) -> list[str]:
    return [arguments for name, arguments in steps if name == instruction]


def test_all_of_the_package_is_copied(steps):
    copied = {word.removesuffix("/") for line in of(steps, "COPY") for word in line.split()[:-1]}
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"][
        "packages"
    ]
    rooms = {name.split(".")[1] for name in packages if "." in name}
    modules = {path.name for path in ROOT.glob("*.py")}
    assert rooms | modules | {"pyproject.toml", "requirements.txt"} <= copied
    assert all((ROOT / name).exists() for name in copied)


def test_the_compiler_of_the_launcher_is_installed_and_tried(steps):
    (line,) = [line for line in of(steps, "RUN") if "apt-get install" in line]
    words = shlex.split(line.split("apt-get install")[1].split("&&")[0])
    assert {"gcc", "libc6-dev", "--no-install-recommends"} <= set(words)
    assert "#include <Python.h>" in line and "gcc -fsyntax-only" in line
    assert "rm -rf /var/lib/apt/lists" in line


def test_it_runs_as_an_ordinary_user_who_may_write_where_it_writes(steps):
    names = [name for name, _ in steps]
    assert of(steps, "USER") == ["mer"] and of(steps, "ENTRYPOINT") == ['["mer"]']
    after = {name for name in names[names.index("USER") :]}
    assert not after & {"RUN", "COPY"}  # nothing is installed as that user
    (line,) = [line for line in of(steps, "RUN") if "useradd" in line]
    assert '--uid "$UID"' in line and "UID=1000" in of(steps, "ARG")
    owned = shlex.split(line.split("install --directory --owner mer --mode 0755")[1])
    assert of(steps, "WORKDIR")[-1] in owned
    assert {*environment(steps).values(), *of(steps, "VOLUME")} <= set(owned)


def environment(steps) -> dict[str, str]:
    pairs = [word.split("=", 1) for line in of(steps, "ENV") for word in shlex.split(line)]
    return dict(pairs)


def test_hub_and_caches_are_on_the_volume_and_the_docs_say_so(steps):
    assert of(steps, "VOLUME") == ["/cache"]
    found = environment(steps)
    assert {"HF_HOME", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR"} <= found.keys()
    assert all(value.startswith("/cache/") for value in found.values())
    page = (ROOT / "docs" / "clusters.md").read_text()
    assert f"HF_HOME={found['HF_HOME']}" in page and "-v mer-cache:/cache" in page
    assert "/cache" in (ROOT / "README.md").read_text()


def test_kubernetes_runs_it_as_the_same_user(steps):
    pod = yaml.safe_load((ROOT / "docs" / "kubernetes.yaml").read_text())["spec"]["template"]
    context = pod["spec"]["securityContext"]
    assert f"UID={context['runAsUser']}" in of(steps, "ARG")
    assert context["runAsNonRoot"] and context["fsGroup"] == context["runAsUser"]
