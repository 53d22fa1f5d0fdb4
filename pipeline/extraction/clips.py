"""Features of a few new clips, made exactly as those a model was trained on."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mer.pipeline.encoders import MODALITIES, configured
from mer.pipeline.errors import DataError, KeyMismatchError, MerError
from mer.pipeline.extraction.options import ExtractOptions
from mer.pipeline.extraction.outcome import Failure
from mer.pipeline.extraction.recipes import LAYER_MEANS, differences
from mer.pipeline.extraction.request import Here
from mer.pipeline.extraction.steps import extract
from mer.pipeline.manifest import Manifest, Utterance
from mer.pipeline.runtime.progress import Silent
from mer.pipeline.store import FeatureStore


def extract_clips(
    clips: Sequence[Utterance],
    like: dict,
    out: Path,
    *,
    encoders: Mapping[str, str | None] | None = None,
    device: str = "auto",
    offline: bool = False,
    progress: Silent | None = None,
    wanted: Collection[str] | None = None,
    beside: Mapping[str, Any] | None = None,
) -> tuple[FeatureStore, list[Failure]]:
    """Extract clips into a store of their own, by the recipe of another store.

    Args:
        clips: paths absolute or relative to the working directory.
        like: the other store, as a run's `store` entry describes it: dataset, task, labels,
            language, modalities, recipe.
        out: the store to write.
        encoders: where a modality's encoder is now (see `sources`), for one that was a folder.
        device: auto, cpu, cuda or cuda:N.
        offline: never touch a network.
        progress: is told how far the extraction is.
        wanted: of the modalities these only.
        beside: options of `ExtractOptions` that say where something of these clips is, which no
            recipe tells: `vision_boxes`.

    Returns:
        The store of the clips that could be read, and the failures of the others.

    Raises:
        DataError: `like` was not made by `mer extract`, or no clip has one of its modalities.
        KeyMismatchError: an encoder is not the recipe's own.
    """
    modalities = {
        m: info for m, info in like["modalities"].items() if wanted is None or m in wanted
    }
    recipe = {
        name: part
        for name, part in like["recipe"].items()
        if name in modalities or name not in like["modalities"]
    }
    if not recipe:
        raise DataError(
            "the features this run was trained on were imported or joined, so they cannot be made "
            "for a new clip; use `mer evaluate`"
        )
    _check_given(clips, modalities)
    options = _options(modalities, recipe, encoders or {})
    options = replace(options, device=device, offline=offline, max_failures=len(clips))
    options = replace(options, **(beside or {}))
    _check_spelling(clips)
    manifest = Manifest(
        like["dataset"],
        like["task"],
        tuple(like["labels"]),
        tuple(clips),
        Path.cwd(),
        like["language"],
    )
    # a temporary folder of this process alone
    done = extract(manifest, out, options, where=Here(lock=False), progress=progress)
    store = FeatureStore(out)
    if _as_asked(store.header.recipe, recipe) != recipe:
        now = store.header.modalities
        names = {m: (modalities[m]["encoder"], now[m].encoder) for m in modalities}
        what = "; ".join(differences(recipe, store.header.recipe, names))
        known = ", ".join(f"--{name}-encoder" for name in MODALITIES)
        raise KeyMismatchError(
            f"not the run's own encoders ({what}); name the right ones with {known}"
        )
    return store, done.failures


def _as_asked(made: dict, recipe: dict) -> dict:
    """The recipe of the clips without layer means that nobody asked for: one option decides them
    for all modalities, and they change no step.
    """
    found = {}
    for name, one in made.items():
        unasked = isinstance(one, dict) and LAYER_MEANS not in recipe.get(name, {})
        found[name] = {k: v for k, v in one.items() if k != LAYER_MEANS} if unasked else one
    return found


def _check_given(clips: Sequence[Utterance], modalities: Collection[str]) -> None:
    """Raise DataError when no clip has one of the modalities."""
    kinds = {modality.name: modality for modality in configured(ExtractOptions())}
    missing = []
    for name in modalities:
        if name not in kinds or not any(kinds[name].has(clip) for clip in clips):
            missing.append(name)
    if missing:
        raise DataError(
            f"the run was trained on {' and '.join(modalities)}; give it "
            f"{' and '.join(missing)} too"
        )


def _options(
    modalities: Mapping[str, dict], recipe: Mapping[str, Any], given: Mapping[str, str | None]
) -> ExtractOptions:
    """The options that give the recipe again. Raises DataError when it is incomplete."""
    named: dict[str, Any] = {}
    for m, info in modalities.items():
        named[f"{m}_encoder"] = _source(m, info, given.get(m))
    try:
        if not all(recipe[m]["encoder"] for m in modalities):
            raise KeyError("encoder")
        settings: dict[str, Any] = {}
        for name in modalities:
            asked = MODALITIES[name].options_of(recipe[name])
            means = asked.pop(LAYER_MEANS, False) or settings.get(LAYER_MEANS, False)
            settings |= {**asked, LAYER_MEANS: means}
        return ExtractOptions(
            **named,
            **settings,
            dtype=recipe["dtype"],
            precision=recipe["precision"],
            decoders=0,
        )
    except (KeyError, TypeError, AttributeError):
        said = (
            "what its run.json says of the features it was trained on is incomplete or not of "
            "`mer extract`"
        )
        raise DataError(
            f"the run cannot predict new clips: {said}; put it back as it was, or use `mer "
            "evaluate`"
        ) from None


def _check_spelling(clips: Sequence[Utterance]) -> None:
    """Raise DataError for a path or text that is not UTF-8."""
    for value in (
        value for clip in clips for value in (clip.audio, clip.video, clip.text) if value
    ):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise DataError(
                f"{value!r} is not UTF-8; rename that file or write that text in UTF-8, then run "
                "the command again"
            ) from None


def clips_of(manifest: Manifest, root: Path | None = None) -> list[Utterance]:
    """The manifest's utterances with absolute paths and without labels, which belong to another
    corpus's label set.
    """
    root = root or manifest.root
    found = []
    for u in manifest.rows:
        audio = u.audio and str((root / u.audio).resolve())
        video = u.video and str((root / u.video).resolve())
        found.append(replace(u, audio=audio, video=video, label=None, targets=None))
    return found


def sources(features: Path) -> dict[str, str]:
    """Where the encoders of the store `features` were when it was made; {} when it is gone or was
    imported.
    """
    try:
        made = FeatureStore(features, check=False).header.provenance.get("extract")
    except (MerError, OSError):
        return {}
    return {m: made["options"].get(f"{m}_encoder", "") for m in MODALITIES} if made else {}


def _source(modality: str, info: dict, given: str | None) -> str:
    """`given`, else ID@REVISION of a hub checkpoint or the name of a built-in encoder."""
    if given == "none":
        raise DataError(f"--{modality}-encoder none: the run was trained on {modality}")
    if given or info["encoder"].startswith("builtin:"):
        return given or info["encoder"]
    if not info["revision"]:
        raise DataError(
            f"the run's {modality} encoder was the folder '{info['encoder']}'; say where it is "
            f"now with --{modality}-encoder"
        )
    return f"{info['encoder']}@{info['revision']}"
