"""Features of many new clips as they come: some without sound, picture or words, some broken."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mer.pipeline.datasets.newclips import BESIDE, GIVEN, NewClips
from mer.pipeline.extraction.clips import Places, extract_many
from mer.pipeline.extraction.outcome import Failure
from mer.pipeline.extraction.presence import Present, as_films, kinds_of, look_into, present
from mer.pipeline.extraction.transcribing import Transcribed, transcribe
from mer.pipeline.manifest import Utterance
from mer.pipeline.media.workers import workers_kept
from mer.pipeline.runtime.progress import SILENT, Silent
from mer.pipeline.runtime.terminal import plural, shown
from mer.pipeline.store import FeatureStore

HEARD = "transcribed by"  # begins what is said of words that a checkpoint has heard


@dataclass(frozen=True)
class Hearing:
    """The checkpoint that transcribes words, and their language (None: it detects the language)."""

    source: str
    language: str | None = None


@dataclass(frozen=True)
class Ready:
    """`store` has the features of `clips`, in their order; None: there are none. `failures` has one
    of each clip that was asked for and is not among them, `words_from` where words come from.
    """

    store: FeatureStore | None
    clips: list[Utterance] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    words_from: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@workers_kept()
def make_ready(
    new: NewClips,
    like: Mapping[str, Any],
    features: Collection[str],
    out: Path,
    places: Places,
    *,
    hearing: Hearing | None = None,
    progress: Silent = SILENT,
) -> Ready:
    """Look at new clips, transcribe what has no words, and encode all as a run's features were.

    Args:
        new: The clips.
        like: The run's `store` entry.
        features: The sets of features that its model reads.
        out: The store to write, as for `extract_many`.
        places: Where they are encoded, and by what.
        hearing: How words are found for clips that have none; None: they stay without.
        progress: Is told how far it is.

    Returns:
        What came of it. A clip that cannot be used is a failure there, and no error.

    Raises:
        EncoderError: A checkpoint cannot be used.
        DataError: The run's features cannot be made for new clips.
        KeyMismatchError: An encoder is not the run's own.
    """
    kinds = kinds_of(like, features)
    failures = [Failure(one.id, one.path, one.stage, one.reason, False) for one in new.unusable]
    streams = look_into(new.clips, progress)
    clips, words_from = as_films(new.clips, new.whole, streams), dict(new.words_from)
    heard = Transcribed("")
    if hearing is not None:
        heard = transcribe(
            clips,
            hearing.source,
            like,
            language=hearing.language,
            device=places.device,
            offline=places.offline,
            progress=progress,
        )
        clips = heard.clips
        failures += heard.failures
        words_from |= dict.fromkeys(heard.heard, f"{HEARD} {heard.name}")
    found = present(clips, kinds, new.whole, streams)
    failures += [_unheard(failure, heard.wordless) for failure in found.empty]
    notes = _notes(found, words_from, heard)
    if not found.clips:
        return Ready(None, failures=failures, words_from=words_from, notes=notes)
    made = extract_many(
        found.clips, dict(like), out, places, wanted=found.features, progress=progress
    )
    failures += made.failures
    failed = {failure.id for failure in failures}
    kept = [u for u in found.clips if u.id not in failed]
    return Ready(made.store, kept, failures, words_from, [*notes, *made.lines])


def _unheard(failure: Failure, wordless: Mapping[str, str]) -> Failure:
    """A clip that has nothing, with the reason that no words were heard in it."""
    why = wordless.get(failure.id)
    return failure if why is None else replace(failure, reason=f"{failure.reason} ({why} in it)")


def _notes(found: Present, words_from: Mapping[str, str], heard: Transcribed) -> list[str]:
    """Where words come from, and where none were heard."""
    ids = [u.id for u in found.clips if u.text]
    counts = Counter(words_from[name] for name in ids if name in words_from)
    origins = {GIVEN: "given", BESIDE: "from files beside the clips"}
    lines = []
    several = len(found.clips) > 1  # of one the answer says it
    if several and (len(counts) > 1 or (counts and GIVEN not in counts)):
        parts = [f"{count:,} {origins.get(kind, kind)}" for kind, count in counts.items()]
        lines.append(f"words of {plural(len(ids), 'clip')}: {', '.join(parts)}")
    for why, count in Counter(heard.wordless.values()).items():
        first = next(name for name, reason in heard.wordless.items() if reason == why)
        lines.append(
            f"no words heard in {plural(count, 'clip')}: {why} (first: {shown(first, 80)})"
        )
    return lines
