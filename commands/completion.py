"""Names that a shell completes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import click
from click.shell_completion import CompletionItem


def _begin(names: Iterable[str], incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(name) for name in sorted(names) if name.startswith(incomplete)]


def complete_corpora(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Names of corpora; of `mer prepare` also what is for one's own files. Reads no more than the
    names of files.
    """
    from mer import manifests

    folder = Path(manifests.__file__).parent
    names = {path.stem for path in folder.glob("*.toml")}
    return _begin(
        names | ({"table", "folder", "emobox"} if ctx.command.name == "prepare" else set()),
        incomplete,
    )


def complete_models(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Names of models."""
    from mer.fusion.models import REGISTRY

    return _begin(REGISTRY, incomplete)


def complete_presets(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Names of presets, and files where none begins like that."""
    from mer.fusion.config import presets

    return _begin(presets(), incomplete) or [CompletionItem(incomplete, type="file")]
