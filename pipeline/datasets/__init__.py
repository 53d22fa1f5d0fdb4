"""Corpora: each is one TOML in `manifests/` (docs/adding.md). One whose files say it all by their
names needs no more; another has a file here and a line in `DATASETS`.

A corpus module offers `prepare(root, info, *, labels=None, **options) -> (Manifest, Findings)`. It
fills the findings with what only it can know (missing files, known-bad clips, orphans, repairs);
counts and overlaps are added here, the same for every corpus.
"""

from __future__ import annotations

import os
from importlib import import_module
from inspect import signature
from pathlib import Path

from mer.pipeline.datasets import corpora, folds, unimodal
from mer.pipeline.datasets.findings import (
    Findings,
    class_gaps,
    count,
    overlaps,
    unknown_overlaps,
)
from mer.pipeline.errors import DataError
from mer.pipeline.manifest import Manifest
from mer.pipeline.runtime.cells import warn_near_duplicates
from mer.pipeline.runtime.terminal import did_you_mean, shown

__all__ = ["DATASETS", "Findings", "default_root", "overview", "prepare", "takes"]

BY_NAMES = "mer.pipeline.datasets.filenames"  # reads a corpus by its TOML alone
DATASETS = {  # name -> module; one that has a module of its own is a line here
    "synthetic": "mer.pipeline.datasets.synthetic",
    "meld": "mer.pipeline.datasets.meld",
    "iemocap": "mer.pipeline.datasets.iemocap",
    "m3ed": "mer.pipeline.datasets.m3ed",
    "mosi": "mer.pipeline.datasets.mosi",
    "mosei": "mer.pipeline.datasets.mosei",
    "msp_improv": "mer.pipeline.datasets.msp_improv",
    "msp_podcast": "mer.pipeline.datasets.msp_podcast",
    "ur_funny": "mer.pipeline.datasets.ur_funny",
}
DATASETS |= {name: BY_NAMES for name in corpora.names() if name not in DATASETS}
# what is no corpus of its own, but anyone's: name -> (module, what `root` is called there)
OWN = {
    "table": ("mer.pipeline.datasets.table", "audio_dir"),
    "folder": ("mer.pipeline.datasets.folder", "root"),
    "emobox": ("mer.pipeline.datasets.emobox", "root"),
}


def default_root(name: str) -> Path:
    """Where a corpus is looked for without `--root`: `$MER_DATA/<name>`, else `data/<name>`."""
    data = os.environ.get("MER_DATA")
    return (Path(data) if data else Path("data")) / name


def prepare(
    name: str, /, root: str | os.PathLike | None = None, *, labels: str | None = None, **options
) -> tuple[Manifest, Findings]:
    """The manifest of a corpus.

    Args:
        name: One of `DATASETS`; or one of `OWN`, anyone's files.
        root: Where its media are, by default `default_root(name)`; of a table its audio folder.
        labels: Which of the corpus's label sets, by default its first; of `OWN` its classes,
            separated by commas.
        options: The corpus's own (synthetic: size, seed), or those of the module in `OWN`.

    Returns:
        The manifest, and what was found against what was expected.

    Raises:
        DataError: The corpus is not known or not there, or its files are not as they should be.
    """
    if name in OWN:
        own, folder = OWN[name]
        build = import_module(own).prepare
        if unknown := [option for option in options if option not in signature(build).parameters]:
            raise DataError(
                f"{name} takes no option {', '.join(unknown)}; `mer prepare --help` says which go "
                "with it"
            )
        return complete(*build(labels=labels, **{folder: root}, **options))
    check_known(name)
    taken = _options(name)
    if unknown := [option for option in options if option not in taken]:
        hint = f"; it takes {', '.join(taken)}" if taken else ""
        raise DataError(f"{name} takes no option {', '.join(unknown)}{hint}")
    module = import_module(DATASETS[name])
    root = Path(root) if root is not None else default_root(name)
    info = corpora.corpus(name)
    manifest, findings = module.prepare(root, info, labels=labels, **options)
    if not len(manifest):
        raise DataError(f"{name}: no utterance found under {root}; to get it: {info.obtain}")
    return complete(manifest, findings)


def check_known(name: str) -> None:
    """Raise DataError for a name that is in neither `DATASETS` nor `OWN`, with what to do."""
    if name in DATASETS or name in OWN:
        return
    if remedy := corpora.of_own_files(name):
        raise DataError(remedy)
    raise DataError(
        f"dataset '{shown(name, 40)}' is not known{did_you_mean(name, (*DATASETS, *OWN))}; known: "
        f"{', '.join(DATASETS)}; your own: {', '.join(OWN)}"
    )


def takes(name: str, option: str) -> bool:
    """Whether a corpus, if it is one of ours, has an option of its own."""
    return name in DATASETS and option in _options(name)


def _options(name: str) -> list[str]:
    return list(signature(import_module(DATASETS[name]).prepare).parameters)[3:]


def complete(manifest: Manifest, findings: Findings) -> tuple[Manifest, Findings]:
    """Add what is counted and warned of the same way for every corpus."""
    findings.counts, findings.rows = count(manifest), len(manifest.rows)
    findings.folds = folds.counted(manifest.rows)
    findings.unimodal = unimodal.counted(manifest)
    findings.warnings += warn_near_duplicates(manifest.labels)
    for field in ("speaker", "dialogue", "session"):
        names = {getattr(u, field) for u in manifest.rows}
        findings.warnings += warn_near_duplicates(names, f"{field}s")
    findings.warnings += warn_near_duplicates(findings.folds, "folds")
    findings.warnings += class_gaps(manifest, findings.counts)
    findings.warnings += unimodal.warnings(findings.unimodal, manifest)
    findings.overlaps |= overlaps(manifest.rows, language=manifest.language)
    findings.overlaps_unknown |= unknown_overlaps(manifest.rows)
    manifest.source["report"] = findings.to_dict()
    return manifest, findings


def overview(only: str | None = None) -> list[dict]:
    """Every known corpus, or one of them: what it holds, its licence, how to get it, and what is
    under its default root. Raises DataError for an unknown name.
    """
    names = list(DATASETS) if only is None else [corpora.corpus(only).name]
    return [_described(corpora.corpus(name)) for name in names]


def _described(info: corpora.CorpusInfo) -> dict:
    """One corpus of the overview."""
    root = default_root(info.name)
    manifests = sorted(root.glob("manifest*.parquet")) if root.is_dir() else []
    here = f"nothing at {root}"
    if info.built_in:
        here = "built in"
    elif manifests:
        here = f"prepared: {', '.join(map(str, manifests))}"
    elif root.is_dir():
        here = f"{root}, not prepared yet: `mer prepare {info.name}`"
    sets = info.label_sets
    expected = {}
    for key, value in sets.items():
        expected[key] = {split or "all": counts for split, counts in value.expected.items()}
    return {
        "name": info.name,
        "title": info.title,
        "here": here,
        "size": info.size,
        "language": info.language,
        "modalities": list(info.modalities),
        "tasks": {key: value.task for key, value in sets.items()},
        "licence": info.licence,
        "restricted": info.restricted,
        "obtain": info.obtain,
        "labels": {key: list(value.labels) for key, value in sets.items()},
        "notes": {key: value.note for key, value in sets.items() if value.note},
        "expected": expected,
        "folds": list(info.folds),
        "fixed_sentences": info.fixed_sentences,
        "known_bad": info.known_bad,
        **{f"{modality}_encoder": id for modality, id in info.encoders.items()},
        **{f"{modality}_layer": layer for modality, layer in info.layers.items()},
        "cite": info.cite,
    }
