"""Step 2, `look`: what is already at the output, compared with what was asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mer.pipeline.errors import DataError, KeyMismatchError, MerError, StoreError
from mer.pipeline.extraction.fingerprint import differences
from mer.pipeline.extraction.request import Request
from mer.pipeline.media.stages import AGAIN, STAGES, Flag
from mer.pipeline.runtime.progress import Silent
from mer.pipeline.store import FeatureStore


@dataclass(frozen=True)
class Found:
    """What is at the output.

    `head` is the store there, if its recipe is the one asked for. `complete`: its features are all
    there. `labels_changed`: but not its labels or splits. `leaving` counts utterances of the store
    that the manifest does not have.
    """

    head: FeatureStore | None = None
    complete: bool = False
    labels_changed: bool = False
    leaving: int = 0


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
        what = _recipes_differ(request, head)
        if not force:
            raise KeyMismatchError(
                f"{out}: made by another recipe ({what}); choose another --out, or replace it with "
                "--force"
            )
        progress.note(f"replacing {out} ({what})")
        return Found()
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


def _recipes_differ(request: Request, head: FeatureStore) -> str:
    was = head.header.modalities
    now = {one.name: one.checkpoint for one in request.keys.chosen}
    names = {m: (was[m].encoder, now[m].name) for m in was.keys() & now.keys()}
    return "; ".join(differences(head.header.recipe, request.keys.recipe, names))


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
        f"{request.place.out}: holds {len(there):,} utterances of {head.header.dataset}, of which "
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
