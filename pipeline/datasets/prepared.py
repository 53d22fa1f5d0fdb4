"""The manifest that lies beside a corpus: found, or made when it is first asked for."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from mer.pipeline.datasets import default_root, prepare
from mer.pipeline.errors import DataError
from mer.pipeline.manifest import Manifest
from mer.pipeline.runtime.files import FULL
from mer.pipeline.runtime.terminal import shown


def manifest_path(root: Path, labels: str | None) -> Path:
    """Where a corpus's manifest lies; each label set has one of its own."""
    return root / ("manifest.parquet" if labels is None else f"manifest-{labels}.parquet")


def own_manifest(
    dataset: str,
    root: Path | None,
    labels: str | None,
    options: Collection[str],
    asked: Mapping[str, int],
    note: Callable[[str], None],
) -> tuple[Manifest, Path]:
    """The manifest of a corpus, prepared when it is not there yet, or is not as it is asked for.

    Args:
        dataset: The corpus.
        root: Where it is; None: where it is looked for.
        labels: Which of its label sets; None: its first.
        options: The names of what a generated corpus is made by.
        asked: Values of some of these; those of the manifest that is there hold for the others.
        note: Told what the user should know, line by line.

    Returns:
        The manifest and its file.

    Raises:
        DataError: The corpus is not known, is not there, or its manifest cannot be read or written.
    """
    root = root if root is not None else default_root(dataset)
    file = manifest_path(root, labels)
    if file.exists():
        manifest = Manifest.read(file)
        if all(manifest.source.get(name) == value for name, value in asked.items()):
            note(f"manifest: {file}")
            return manifest, file
        has_faces = "faces" in manifest.source
        again = ", with drawn faces as it was" if has_faces else ""
        note(f"{file}: of another size or seed; made anew{again}")
        kept = {name: manifest.source[name] for name in options if name in manifest.source}
        asked = kept | dict(asked) | ({"vision": True} if has_faces else {})
    manifest, report = prepare(dataset, root, labels=labels, **asked)
    for line in report.lines():
        note(line)
    try:
        manifest.write(file)
    except OSError as error:
        if error.errno in FULL:
            raise
        raise DataError(
            f"{shown(file, 200)}: {error.strerror or error}; run `mer prepare {dataset} --out "
            "FILE`, then use --manifest FILE"
        ) from None
    return manifest, file
