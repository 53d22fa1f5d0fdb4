"""Docs that name commands, options and files stay true."""

from __future__ import annotations

import re
import shlex
from importlib import import_module
from pathlib import Path

import click
import pytest
import yaml

from mer.cli import main
from mer.pipeline.datasets import DATASETS

from docs import results
from docs.__main__ import page, with_corpora

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])


def test_cli_page_is_current():
    assert (ROOT / "docs" / "cli.md").read_text() == page(), "run `python -m docs`"


def test_the_table_of_corpora_is_current():
    text = (ROOT / "docs" / "datasets.md").read_text()
    assert text == with_corpora(text), "run `python -m docs`"
    assert text.count("\n| [") >= len(DATASETS)


@pytest.mark.parametrize("path", results.PAGES, ids=lambda p: p.name)
def test_tables_of_figures_are_those_of_the_files_of_results(path: Path):
    text = path.read_text()
    assert text == results.filled(text), "run `python -m docs`"


def test_every_table_of_figures_stands_in_one_page():
    found = [
        name for path in results.PAGES for _, name, _ in results.MARKED.findall(path.read_text())
    ]
    assert sorted(found) == sorted(results.PARTS)


def test_figures_in_percent_by_hand():
    row = {"mean": 0.60497, "sd": 0.0024, "interval": [0.5823, 0.6268], "pooled": 0.59}
    assert results.figure(row) == "60.5 ± 0.2 [58.2, 62.7]"
    assert results.pooled(row) == "59.0 [58.2, 62.7]"
    difference = {"difference": -0.0004, "interval": [-0.0021, 0.0172]}
    assert results.gap(difference) == "0.0 [-0.2, +1.7]"
    assert results.table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"


def commands(text: str) -> list[str]:
    """The lines in shell blocks that call mer, continuations joined, prompts, comments and pipes
    cut.
    """
    lines = []
    for block in re.findall(r"```(?:sh|bash|console)\n(.*?)```", text, flags=re.S):
        for line in block.replace("\\\n", " ").splitlines():
            line = line.removeprefix("$ ").strip()
            if line.startswith("mer "):
                lines.append(line)
    return lines


@pytest.mark.parametrize("path", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_shell_blocks_use_commands_and_options_that_exist(path: Path):
    for line in commands(path.read_text()):
        words = shlex.split(line, comments=True)[1:]
        words = words[
            : next((i for i, w in enumerate(words) if w in ("|", ">", "&&", "2>", "&")), len(words))
        ]
        command: click.Command = main
        while isinstance(command, click.Group) and words and not words[0].startswith("-"):
            assert words[0] in command.commands, f"{path.name}: `{line}`: no command {words[0]}"
            command, words = command.commands[words[0]], words[1:]
        known = {o for p in command.params for o in (*p.opts, *p.secondary_opts)} | {"--help", "-h"}
        for word in words:
            if re.match(r"--?[a-zA-Z]", word):
                assert word.split("=")[0] in known, f"{path.name}: `{line}`: no option {word}"


@pytest.mark.parametrize("path", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_relative_links_exist(path: Path):
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", path.read_text()):
        if "://" not in target and not target.startswith("mailto:"):
            assert (path.parent / target).exists(), f"{path.name}: link to {target}"


def anchors(text: str) -> set[str]:
    """What links may name of a page: its headings as GitHub spells them, and the second of a name
    with a number.
    """
    found: list[str] = []
    for title in re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.S), flags=re.M):
        spelled = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        before = found.count(spelled)
        found += [spelled, f"{spelled}-{before}"] if before else [spelled]
    return set(found)


def test_anchors_by_hand():
    page = "# One: `two`, 3 & four\n\n```sh\n# no heading\n```\n\n## A B\n\n### A b\n"
    assert anchors(page) == {"one-two-3--four", "a-b", "a-b-1"}


@pytest.mark.parametrize("path", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_into_pages_name_a_heading(path: Path):
    for target, anchor in re.findall(r"\]\(([^)#\s]*)#([^)\s]+)\)", path.read_text()):
        page = path.parent / target if target else path
        if "://" not in target and page.suffix == ".md":
            assert anchor in anchors(page.read_text()), f"{path.name}: link to {target}#{anchor}"


def test_the_kubernetes_job_is_yaml_and_its_command_exists():
    job = yaml.safe_load((ROOT / "docs" / "kubernetes.yaml").read_text())
    container = job["spec"]["template"]["spec"]["containers"][0]
    assert (
        job["spec"]["completionMode"] == "Indexed"
        and f"/{job['spec']['completions']} " in container["args"][0]
    )
    known = {o for p in main.commands["extract"].params for o in p.opts}
    assert set(re.findall(r"--[a-z-]+", container["args"][0])) <= known


TOYS = ("datasets.toy", "encoders.loudness", "models.average", "sinks.table")  # made by adding.md


def named_in_python(text: str) -> set[str]:
    """`mer.x.y` in the words of a page, and what its blocks import from there."""
    found = set(re.findall(r"`(mer(?:\.\w+)+)", text))
    for module, names in re.findall(r"^from (mer\.[\w.]+) import ([\w, ]+)$", text, flags=re.M):
        found |= {f"{module}.{name.strip()}" for name in names.split(",")}
    return {name for name in found if not any(toy in name for toy in TOYS)}


@pytest.mark.parametrize("path", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_what_a_page_names_in_python_is_there(path: Path):
    for name in sorted(named_in_python(path.read_text())):
        assert importable(name), f"{path.name}: {name}"


def importable(name: str) -> bool:
    """Whether a dotted name is a module, or something in one."""
    module, _, rest = name.rpartition(".")
    try:
        import_module(name)
    except ModuleNotFoundError:
        return bool(module) and hasattr(import_module(module), rest)
    return True


def test_a_name_that_is_not_there_is_found():
    page = (
        "see `mer.fusion.runs.checkpoint.Run`\n\nfrom mer.pipeline.store import FeatureStore, No\n"
    )
    found = sorted(named_in_python(page))
    assert [importable(name) for name in found] == [True, True, False]
