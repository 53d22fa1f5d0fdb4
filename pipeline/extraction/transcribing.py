"""Words for clips that have none, by a Whisper checkpoint, from the sound as it is encoded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mer.pipeline.encoders import MODALITIES
from mer.pipeline.extraction.decoding import open_decoders
from mer.pipeline.extraction.options import ExtractOptions
from mer.pipeline.extraction.outcome import Failure
from mer.pipeline.manifest import Utterance
from mer.pipeline.media.readers import NO_SOUND
from mer.pipeline.media.stages import Flag, Stage
from mer.pipeline.media.workers import Decoded, Job
from mer.pipeline.runtime.progress import SILENT, Silent

CLIPS_AHEAD = 16  # decoded before they are transcribed


@dataclass
class Transcribed:
    """`clips` with the words that were heard, and the ids (`heard`) of those in which words were
    heard. `wordless` says why the others have none; `failures` are clips whose sound cannot be
    read.
    """

    name: str
    clips: list[Utterance] = field(default_factory=list)
    heard: set[str] = field(default_factory=set)
    wordless: dict[str, str] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)


def transcribe(
    clips: Sequence[Utterance],
    source: str,
    like: Mapping[str, Any],
    *,
    language: str | None = None,
    device: str = "auto",
    offline: bool = False,
    progress: Silent = SILENT,
) -> Transcribed:
    """Let a checkpoint hear what is said in the clips that come without words.

    Args:
        clips: With absolute paths.
        source: The checkpoint, as `Transcriber` has it.
        like: A run's `store` entry: where it reads sound, its channel and track are heard.
        language: As `Transcriber` has it.
        device: auto, cpu, cuda or cuda:N.
        offline: Never touch a network.
        progress: Is told how far it is.

    Returns:
        The clips in their order without those that failed.

    Raises:
        EncoderError: It is no such checkpoint.
        DataError: It does not know the language.
    """
    from mer.pipeline.encoders.transcriber import Transcriber

    model = Transcriber(source, language=language, device=device, offline=offline)
    found = Transcribed(model.name)
    wanting = [u for u in clips if not u.text]
    options = replace(ExtractOptions(), **_sound(like))
    jobs = (_job(u, options) for u in wanting if u.audio or u.video)
    answers = {}
    task = progress.task(f"transcribing with {model.name}", len(wanting), "clips")
    with open_decoders(options, len(wanting)) as decoders, task as advance:
        sounds = decoders.run(jobs, ahead=CLIPS_AHEAD)
        for u in wanting:
            sound = next(sounds) if u.audio or u.video else Decoded(stage=Stage.EMPTY)
            answers[u.id] = _hear(u, sound, model, found)
            advance(1)
    failed = {failure.id for failure in found.failures}
    for u in clips:
        if u.id not in failed:
            found.clips.append(replace(u, text=answers.get(u.id, u.text) or None))
    return found


def _hear(u: Utterance, sound: Decoded, model: Any, found: Transcribed) -> str:
    """The words of a clip; "" where there are none, and the reason is added to `found`."""
    mute = sound.stage == Stage.EMPTY and (sound.reason or NO_SOUND).endswith(NO_SOUND)
    if mute:
        found.wordless[u.id] = "no sound"
    elif sound.stage is not None:
        path, known = u.audio or u.video, u.known_bad is not None
        found.failures.append(Failure(u.id, path, sound.stage, sound.reason or "", known))
    elif Flag.silent.name in sound.flags:
        found.wordless[u.id] = "silence"
    else:
        assert sound.waveform is not None
        text = model.words(sound.waveform)
        if text:
            found.heard.add(u.id)
        else:
            found.wordless[u.id] = "nothing that could be understood"
        return text
    return ""


def _job(u: Utterance, options: ExtractOptions) -> Job:
    """What a decoder is asked for the sound of a clip."""
    if u.audio:
        path, start, end = u.audio, u.start, u.end
    else:
        path, start, end = u.video or "", u.video_start, u.video_end
        if start is None and end is None:
            start, end = u.start, u.end
    return Job("load", path, options.channel, start, end, None, options.audio_track)


def _sound(like: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the run's own features that say which sound of a file is meant."""
    recipes = [like["recipe"], *(one["recipe"] for one in (like.get("origins") or {}).values())]
    for recipe in recipes:
        for name, one in recipe.items():
            if name in MODALITIES and MODALITIES[name].sound and isinstance(one, dict):
                options = MODALITIES[name].options_of(one)
                return {key: options[key] for key in ("channel", "audio_track")}
    return {}
