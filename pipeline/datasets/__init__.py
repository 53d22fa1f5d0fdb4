"""Corpora: each is one file, one line in `DATASETS`, one TOML in `manifests/` (docs/adding.md).

A corpus module offers `prepare(root, info, *, labels=None, **options) -> (Manifest, Findings)`. It
fills the findings with what only it can know (missing files, known-bad clips, orphans, repairs);
counts and overlaps are added here, the same for every corpus.
"""

from __future__ import annotations

import inspect
import os
from importlib import import_module
from pathlib import Path

from mer.pipeline.datasets import corpora
from mer.pipeline.datasets.findings import Findings, class_gaps, count, overlaps
from mer.pipeline.errors import DataError
from mer.pipeline.manifest import Manifest
from mer.pipeline.runtime.cells import warn_near_duplicates
from mer.pipeline.runtime.terminal import did_you_mean

__all__ = ["DATASETS", "Findings", "default_root", "overview", "prepare", "takes"]

DATASETS = {  # name -> module; adding a corpus is one line here
    "synthetic": "mer.pipeline.datasets.synthetic",
    "meld": "mer.pipeline.datasets.meld",
    "iemocap": "mer.pipeline.datasets.iemocap",
    "m3ed": "mer.pipeline.datasets.m3ed",
    "mosi": "mer.pipeline.datasets.mosi",
    "mosei": "mer.pipeline.datasets.mosei",
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
        name: One of `DATASETS`; or `table`, which is anyone's file.
        root: Where its media are, by default `default_root(name)`; of a table its audio folder.
        labels: Which of the corpus's label sets, by default its first; of a table its classes,
            separated by commas.
        options: The corpus's own (synthetic: size, seed), or those of `table.prepare`.

    Returns:
        The manifest, and what was found against what was expected.

    Raises:
        DataError: The corpus is not known or not there, or its files are not as they should be.
    """
    if name == "table":
        from mer.pipeline.datasets import table

        return complete(*table.prepare(audio_dir=root, labels=labels, **options))
    if name not in DATASETS:
        raise DataError(
            f"dataset '{name}' is not known{did_you_mean(name, (*DATASETS, 'table'))}; known: "
            f"{', '.join(DATASETS)}, and table, for your own "
            "files (see `mer prepare table --help`)"
        )
    module = import_module(DATASETS[name])
    known = _options(name)
    if unknown := [option for option in options if option not in known]:
        taken = f"; it takes {', '.join(known)}" if known else ""
        raise DataError(f"{name} takes no option {', '.join(unknown)}{taken}")
    root = Path(root) if root is not None else default_root(name)
    info = corpora.corpus(name)
    manifest, findings = module.prepare(root, info, labels=labels, **options)
    if not len(manifest):
        raise DataError(f"{name}: no utterance found under {root}; to get it: {info.obtain}")
    return complete(manifest, findings)


def takes(name: str, option: str) -> bool:
    """Whether a corpus, if it is one of ours, has an option of its own."""
    return name in DATASETS and option in _options(name)


def _options(name: str) -> list[str]:
    return list(inspect.signature(import_module(DATASETS[name]).prepare).parameters)[3:]


def complete(manifest: Manifest, findings: Findings) -> tuple[Manifest, Findings]:
    """Add what is counted and warned of the same way for every corpus."""
    findings.counts, findings.rows = count(manifest), len(manifest.rows)
    findings.warnings += warn_near_duplicates(manifest.labels)
    findings.warnings += warn_near_duplicates({u.speaker for u in manifest.rows}, "speakers")
    findings.warnings += class_gaps(manifest, findings.counts)
    findings.overlaps |= overlaps(manifest.rows, language=manifest.language)
    manifest.source["report"] = findings.to_dict()
    return manifest, findings


def overview() -> list[dict]:
    """Every known corpus, with its licence, how to get it, and what is under its default root."""
    out = []
    for name in DATASETS:
        info, root = corpora.corpus(name), default_root(name)
        here = f"nothing at {root}"
        if info.built_in:
            here = "built in"
        elif (root / "manifest.parquet").exists():
            here = f"prepared: {root / 'manifest.parquet'}"
        elif root.is_dir():
            here = f"{root}, not prepared yet: `mer prepare {name}`"
        out.append(
            {
                "name": name,
                "title": info.title,
                "here": here,
                "size": info.size,
                "language": info.language,
                "licence": info.licence,
                "obtain": info.obtain,
                "labels": {key: list(value.labels) for key, value in info.label_sets.items()},
                "folds": list(info.folds),
                **{f"{modality}_encoder": id for modality, id in info.encoders.items()},
                **{f"{modality}_layer": layer for modality, layer in info.layers.items()},
                "cite": info.cite,
            }
        )
    return out
