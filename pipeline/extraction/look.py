"""Step 2, `look`: what is already at the output, compared with what was asked for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from mer.pipeline.encoders import configured
from mer.pipeline.errors import DataError, KeyMismatchError, MerError, StoreError
from mer.pipeline.extraction.recipes import (
    added,
    differences,
    keeping,
    part,
    without_layer_means,
)
from mer.pipeline.extraction.request import Request
from mer.pipeline.media.stages import AGAIN, STAGES, Flag
from mer.pipeline.runtime.progress import Silent
from mer.pipeline.runtime.terminal import plural
from mer.pipeline.store import FeatureStore

NAMED = 2  # differences of two recipes; the rest is counted


@dataclass(frozen=True)
class Found:
    """What is at the output.

    `head` is the store there, if its recipe is the one asked for, or that without the modalities
    `adding`. `complete`: its features are all there. `labels_changed`: but not its labels or
    splits. `leaving` counts utterances of the store that the manifest does not have.
    """

    head: FeatureStore | None = None
    complete: bool = False
    labels_changed: bool = False
    leaving: int = 0
    adding: tuple[str, ...] = ()


def look(request: Request, progress: Silent) -> Found:
    """Compare what is at the output with what is asked for.

    Raises KeyMismatchError when it was made by another recipe or of another corpus; StoreError when
    it is no readable store (with --force both are replaced).
    """
    out, keys, force = request.place.out, request.keys, request.options.force
    if not out.exists():
        return Found()
    try:
        head = FeatureStore(out, check=False)
    except MerError:
        if force:
            return Found()
        raise
    if head.members:
        members = ", ".join(str(record.path) for record in head.members)
        raise DataError(f"{out}: joined from {members}; extract into those, or name another --out")
    if head.header.recipe != keys.recipe:
        adding = added(head.header.recipe, keys.recipe)
        if not adding:
            _refuse(request, head, progress)
            return Found()
        made_here(head)
        return Found(head, leaving=_leaving(request, head), adding=adding)
    made = made_here(head)
    tried_again = any(failure["stage"] in AGAIN for failure in made["failures"])
    if head.header.fingerprint != keys.fingerprint or tried_again:
        return Found(head, leaving=_leaving(request, head))
    try:
        FeatureStore(out)
    except StoreError as error:
        progress.note(f"{str(error).partition('; ')[0]}; extracting it again")
        return Found(head)
    changed = made["manifest_hash"] != request.manifest.hash
    return Found(head, complete=True, labels_changed=changed)


def _refuse(request: Request, head: FeatureStore, progress: Silent) -> None:
    """Raise KeyMismatchError: another recipe than the one asked for; with --force only say so."""
    was, recipe = head.header.modalities, request.keys.recipe
    now = {choice.name: choice.checkpoint for choice in request.keys.chosen}
    names = {m: (was[m].encoder, now[m].name) for m in was.keys() & now.keys()}
    found = differences(head.header.recipe, recipe, names)
    more = f"; {len(found) - NAMED:,} more" if len(found) > NAMED else ""
    what = "; ".join(found[:NAMED]) + more
    if request.options.force:
        progress.note(f"replacing {head.path} ({what})")
        return
    lacking = without_layer_means(head.header.recipe, recipe)
    if lacking and len(found) == 1:
        raise KeyMismatchError(
            f"{head.path}: has no layer means of {' and '.join(lacking)}; --no-layer-means leaves "
            "it as it is, --force makes them, and all else again; or name another --out"
        )
    remedy = "choose another --out, or replace it with --force"
    absent = [name for name in _without_rows(request) if part(head.header.recipe, name)]
    if absent:
        remedy = f"this manifest has no {' or '.join(absent)}: {remedy}"
    elif options := _options_for(request, head):
        remedy = f"{' '.join(options)} keeps it, --force replaces it; or name another --out"
    raise KeyMismatchError(f"{head.path}: made by another recipe ({what}); {remedy}")


def _options_for(request: Request, head: FeatureStore) -> list[str]:
    """The options that ask for the store that is there; [] where none do."""
    chosen = {choice.name: choice for choice in request.keys.chosen}

    def gives(name: str, settings: dict[str, Any]) -> dict[str, Any]:
        choice = chosen[name]
        try:
            other = type(choice.modality).of(replace(request.options, **settings))
            return other.recipe(choice.checkpoint)
        except (MerError, TypeError, AttributeError, ValueError):
            return {}  # values of a head that somebody else has written

    old, new, asked = head.header.recipe, request.keys.recipe, vars(request.options)
    return keeping(old, new, _sources(request, head), asked, gives)


def _without_rows(request: Request) -> list[str]:
    """Modalities that no row of the manifest has, whatever encoder is named."""
    rows = request.manifest.rows
    return [m.name for m in configured(request.options) if not any(map(m.has, rows))]


def _sources(request: Request, head: FeatureStore) -> dict[str, str]:
    """How the encoders of the store there are named on the command line: a folder by its path, a
    hub id with its revision where the same id has now another.
    """
    made = head.header.provenance.get("extract")
    options = made.get("options") if isinstance(made, dict) else None
    now = {choice.name: choice.checkpoint.name for choice in request.keys.chosen}
    found = {}
    for name, info in head.header.modalities.items():
        source = options.get(f"{name}_encoder") if isinstance(options, dict) else None
        pinned = info.revision and now.get(name) != info.encoder
        found[name] = source if isinstance(source, str) and not pinned else info.encoder
    return found


def _leaving(request: Request, head: FeatureStore) -> int:
    """How many utterances would leave the store.

    Raises KeyMismatchError when it is of another corpus: the recipe may be the same.
    """
    manifest = request.manifest
    ours, there = {u.id for u in manifest.rows}, head.table()["id"].to_pylist()
    leaving = sum(name not in ours for name in there)
    same_corpus = head.header.dataset == manifest.dataset and leaving < len(there)
    if request.options.force or same_corpus:
        return leaving
    raise KeyMismatchError(
        f"{request.place.out}: holds {plural(len(there), 'utterance')} of {head.header.dataset}, "
        "of which "
        f"this manifest of {manifest.dataset} has {len(there) - leaving:,}; choose another --out, "
        "or replace it with --force"
    )


# what an extraction notes in the head file, by its kind
NOTED: dict[str, Any] = {
    "manifest_hash": str,
    "options": dict,
    "failures": list,
    "padding": dict,
    "self_test": dict,
    "counts": dict,
    "audio_seconds": (int, float),
}


def made_here(head: FeatureStore) -> dict:
    """What an extraction noted in the head file.

    Raises StoreError when it is not as `mer extract` writes it.
    """
    made = head.header.provenance.get("extract")
    if not isinstance(made, dict) or not _is_note(made):
        raise StoreError(
            f"{head.path}: what it says of its making is damaged; `mer extract --force` makes it "
            "again, sound shards kept"
        )
    return made


def _is_note(made: dict) -> bool:
    if not all(isinstance(made.get(name), kind) for name, kind in NOTED.items()):
        return False
    if not all(_is_failure(failure) for failure in made["failures"]):
        return False
    known = set(made["counts"]) <= set(Flag.names())
    return known and "manifest" in made and isinstance(made["manifest"], str | None)


def _is_failure(failure: object) -> bool:
    if not isinstance(failure, dict):
        return False
    texts = all(isinstance(failure.get(name), str) for name in ("id", "stage", "reason"))
    return texts and failure["stage"] in STAGES
