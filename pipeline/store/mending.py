"""How a store was made, and so what mends it when it is damaged."""

from __future__ import annotations

from pathlib import Path

from mer.pipeline.store.reader import FeatureStore


def mends(head: Path) -> str:
    """What mends a damaged member of a joined store."""
    store = FeatureStore(head, check=False)
    if repairable(store):
        return f"run `mer verify --repair {head}`"
    return f"{head} was {made_again(store)}"


def repairable(store: FeatureStore) -> bool:
    """Whether a store is one that `mer extract` wrote, from a manifest that it names."""
    made = store.header.provenance.get("extract")
    named = isinstance(made, dict) and made.get("manifest")
    return bool(store.header.recipe and named) and not _exported(store)


def _exported(store: FeatureStore) -> bool:
    """Whether a store is the one file that `mer export --to single` writes."""
    return any(not record.sha256 for record in store.shards)


def made_again(store: FeatureStore) -> str:
    """How a store that cannot be repaired was made, and is made again."""
    provenance = store.header.provenance
    if _exported(store):
        return "exported: remove it and export it again from the store that it came from"
    if provenance.get("imported") == "join":
        return "joined with --copy: join again with --force"
    if "imported" in provenance:
        return "imported: import it again"
    if "extract" in provenance:
        return "extracted without a manifest file: remove what is damaged, and extract again"
    return "written by another program than `mer extract`: write it again with that"
