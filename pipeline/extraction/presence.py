"""What each of many new clips has of what a run reads, by a look at its files."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from mer.pipeline.encoders import configured
from mer.pipeline.encoders.modality import Modality, Streams
from mer.pipeline.extraction.decoding import open_decoders
from mer.pipeline.extraction.options import ExtractOptions
from mer.pipeline.extraction.outcome import Failure
from mer.pipeline.manifest import Utterance
from mer.pipeline.media.stages import Stage
from mer.pipeline.media.workers import Job
from mer.pipeline.runtime.progress import SILENT, Silent

LOOKS_AHEAD = 256


@dataclass(frozen=True)
class Present:
    """`features` are the sets of features that some clip has; `clips` are the clips that have one
    of them or more, and `empty` the failures of the others.
    """

    clips: list[Utterance]
    features: tuple[str, ...]
    empty: list[Failure]


def kinds_of(like: Mapping, features: Collection[str]) -> dict[str, str]:
    """The modality that each set of features of a store is of; `like` is a run's `store` entry."""
    origins = like.get("origins") or {}
    return {name: origins[name]["modality"] if name in origins else name for name in features}


def look_into(clips: Sequence[Utterance], progress: Silent = SILENT) -> dict[str, Streams]:
    """Whether there is sound, and a picture, in the media files of clips.

    Args:
        clips: With absolute paths.
        progress: Is told how far it is.

    Returns:
        By path; files that cannot be read are left out.
    """
    files = list(dict.fromkeys(path for u in clips for path in (u.audio, u.video) if path))
    if not files:
        return {}
    jobs = (Job("streams", path, "auto", None, None) for path in files)
    found = {}
    task = progress.task("looking at files", len(files), "files", brief=True)
    with open_decoders(ExtractOptions(), len(files)) as decoders, task as advance:
        for path, answer in zip(files, decoders.run(jobs, ahead=LOOKS_AHEAD), strict=True):
            advance(1)
            if answer.streams is not None:
                found[path] = answer.streams
    return found


def as_films(
    clips: Sequence[Utterance], whole: Collection[str], streams: Mapping[str, Streams]
) -> list[Utterance]:
    """The clips, those of a file that has a picture and no sound by their picture.

    Args:
        clips: Some.
        whole: Ids of those that were named by their file: nobody has said that it has sound.
        streams: What is in the files.
    """
    found = []
    for u in clips:
        sound, picture = streams.get(u.audio or "", (True, False))
        mute = u.id in whole and picture and not sound
        found.append(replace(u, audio=None, video=u.audio) if mute else u)
    return found


def present(
    clips: Sequence[Utterance],
    kinds: Mapping[str, str],
    whole: Collection[str],
    streams: Mapping[str, Streams],
) -> Present:
    """What is there of some sets of features.

    Args:
        clips: Of `as_films`.
        kinds: Set of features -> the modality that it is of.
        whole: Ids of clips that were named by their file. Of the others somebody said that there
            is sound: where there is none, that is an error, and is left to the extraction.
        streams: What is in the files.

    Returns:
        The clips that have some, and which sets any of them has.
    """
    known = {modality.name: modality for modality in configured(ExtractOptions())}
    heard = {path: (True, picture) for path, (_, picture) in streams.items()}
    kept: list[Utterance] = []
    empty: list[Failure] = []
    features: dict[str, None] = {}
    for u in clips:
        seen = streams if u.id in whole else heard
        there = [name for name, kind in kinds.items() if known[kind].found_in(u, seen)]
        features.update(dict.fromkeys(there))
        if there:
            kept.append(u)
        else:
            needed = [known[kind] for kind in dict.fromkeys(kinds.values())]
            path = u.audio or u.video
            empty.append(
                Failure(u.id, path, Stage.EMPTY, _nothing(needed), u.known_bad is not None)
            )
    return Present(kept, tuple(name for name in kinds if name in features), empty)


def _nothing(needed: Sequence[Modality]) -> str:
    names = [modality.name for modality in needed]
    return f"has no {' and no '.join(names)}, and the run reads nothing else"
