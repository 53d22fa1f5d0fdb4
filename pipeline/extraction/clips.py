"""Features of a few new clips, made exactly as those a model was trained on."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

from mer.pipeline.errors import DataError, KeyMismatchError, MerError
from mer.pipeline.extraction.extract import extract
from mer.pipeline.extraction.fingerprint import ExtractOptions, differences
from mer.pipeline.extraction.outcome import Failure
from mer.pipeline.manifest import Manifest, Utterance
from mer.pipeline.runtime.progress import Silent
from mer.pipeline.store import FeatureStore

TRACK = "track"  # in the recipe only where one was asked for
# option: name in the recipe
SETTINGS = {
    "audio_layer": "layer",
    "pool": "pool",
    "channel": "channel",
    "max_seconds": "max_seconds",
}


def extract_clips(
    clips: Sequence[Utterance],
    like: dict,
    out: Path,
    *,
    encoders: dict[str, str] | None = None,
    device: str = "auto",
    offline: bool = False,
    progress: Silent | None = None,
    wanted: Collection[str] | None = None,
) -> tuple[FeatureStore, list[Failure]]:
    """Extract `clips` (paths absolute or relative to the working directory) into the store `out` by
    the recipe of the store that `like` describes (a run's `store` entry: dataset, task, labels,
    language, modalities, recipe), `wanted` of its modalities only.

    The store holds the clips that could be read; the others are the failures. `encoders[m]` says
    where a modality's encoder is now (see `sources`), for one that was a folder. Raises DataError
    when `like` was not made by `mer extract` or no clip has one of its modalities; KeyMismatchError
    when an encoder is not the recipe's own.
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
            "the features this run was trained on were imported, so they cannot be made for a new "
            "clip; use `mer evaluate`"
        )
    given = {"audio": any(c.audio for c in clips), "text": any(c.text for c in clips)}
    missing = [m for m in modalities if not given.get(m)]
    if missing:
        raise DataError(
            f"the run was trained on {' and '.join(modalities)}; give it "
            f"{' and '.join(missing)} too"
        )
    try:
        if not all(recipe[m]["encoder"] for m in modalities):
            raise KeyError("encoder")
        options = ExtractOptions(
            **{
                f"{m}_encoder": _source(m, info, (encoders or {}).get(m))
                for m, info in modalities.items()
            },
            **{
                option: recipe["audio"][name]
                for option, name in SETTINGS.items()
                if "audio" in recipe
            },
            audio_track=recipe.get("audio", {}).get(TRACK, "auto"),
            dtype=recipe["dtype"],
            precision=recipe["precision"],
            device=device,
            offline=offline,
            decoders=0,
            max_failures=len(clips),
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
    for value in (v for c in clips for v in (c.audio, c.text) if v):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise DataError(
                f"{value!r} is not UTF-8; rename that file or write that text in UTF-8, then run "
                "the command again"
            ) from None
    manifest = Manifest(
        like["dataset"],
        like["task"],
        tuple(like["labels"]),
        tuple(clips),
        Path.cwd(),
        like["language"],
    )
    # a temporary folder of this process alone
    report = extract(manifest, out, options, progress=progress, lock=False)
    store = FeatureStore(out)
    if store.header.recipe != recipe:
        now = store.header.modalities
        names = {m: (modalities[m]["encoder"], now[m].encoder) for m in modalities}
        what = "; ".join(differences(recipe, store.header.recipe, names))
        raise KeyMismatchError(
            f"not the run's own encoders ({what}); name the right ones with --audio-encoder, "
            "--text-encoder"
        )
    return store, report.failures


def clips_of(manifest: Manifest, root: Path | None = None) -> list[Utterance]:
    """The manifest's utterances with absolute paths and without labels, which belong to another
    corpus's label set.
    """
    root = root or manifest.root
    return [
        replace(u, audio=u.audio and str((root / u.audio).resolve()), label=None, targets=None)
        for u in manifest.rows
    ]


def sources(features: Path) -> dict[str, str]:
    """Where the encoders of the store `features` were when it was made; {} when it is gone or was
    imported.
    """
    try:
        made = FeatureStore(features, check=False).header.provenance.get("extract")
    except (MerError, OSError):
        return {}
    return {m: made["options"][f"{m}_encoder"] for m in ("audio", "text")} if made else {}


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
