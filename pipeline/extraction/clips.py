"""Features of a few new clips, made exactly as those a model was trained on."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mer.pipeline.encoders import MODALITIES, configured
from mer.pipeline.encoders.modality import Modality
from mer.pipeline.errors import DataError, KeyMismatchError, MerError, MissingError, UnreadableError
from mer.pipeline.extraction.options import ExtractOptions
from mer.pipeline.extraction.outcome import Failure, count_lines
from mer.pipeline.extraction.recipes import LAYER_MEANS, differences, part
from mer.pipeline.extraction.request import Here
from mer.pipeline.extraction.steps import extract
from mer.pipeline.manifest import Manifest, Utterance
from mer.pipeline.media.readers import NO_SOUND
from mer.pipeline.media.stages import Stage
from mer.pipeline.runtime.progress import Silent
from mer.pipeline.runtime.terminal import shown
from mer.pipeline.store import FeatureStore
from mer.pipeline.store.join import KEEPABLE, plan, write

DIFFERENCES_CHARACTERS = 160  # of what differs in a message
FACES = "faces"  # the entry of a modality's recipe that says how faces are found


@dataclass
class Group:
    """Modalities that one extraction makes, by their names in it.

    `infos` is what the store that was trained on says of them, `recipe` that of the store they came
    from, and `names` their names in the store that was trained on.
    """

    recipe: dict[str, Any]
    infos: dict[str, dict] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)

    @property
    def on_faces(self) -> bool:
        """Whether the recipe needs to be told where faces are."""
        return any(FACES in one for one in self.recipe.values() if isinstance(one, dict))


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

    Each modality must be there, if not in every clip; see `extract_many` for what need not be.

    Args:
        clips: paths absolute or relative to the working directory.
        like: the other store, as a run's `store` entry describes it: dataset, task, labels,
            language, modalities, recipe, and of a joined one its `origins`.
        out: the store to write; beside it lie the parts of a joined one.
        encoders: where the encoder of a modality of that store is now (see `encoders_now`), for
            one that was a folder.
        device: auto, cpu, cuda or cuda:N.
        offline: never touch a network.
        progress: is told how far the extraction is.
        wanted: of the modalities these only.
        beside: options of `ExtractOptions` that say where something of these clips is, which no
            recipe tells: `vision_boxes`.

    Returns:
        The store of the clips that could be read, and the failures of the others, one for each.
        What was joined may hold a part of a clip that failed.

    Raises:
        DataError: what `like` has was not made by `mer extract`, or no clip has one of its
            modalities.
        KeyMismatchError: an encoder is not the recipe's own.
    """
    kinds = dict.fromkeys(name for group in _groups(like, wanted) for name in group.infos)
    _check_given(clips, kinds)
    _check_spelling(clips)
    places = Places(encoders or {}, device, offline, beside or {})
    made = _made(clips, like, out, places, progress=progress, wanted=wanted, decoders=0)
    assert made.store is not None  # else it was an error
    return made.store, made.failures


@dataclass(frozen=True)
class Places:
    """Where clips are encoded, and by what: as `extract_clips` has it."""

    encoders: Mapping[str, str | None]
    device: str = "auto"
    offline: bool = False
    beside: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Extracted:
    """The store of clips (None: none of them could be read), the failures, one for each clip that
    has one, and lines on what was noted of the others.
    """

    store: FeatureStore | None
    failures: list[Failure]
    lines: list[str]


def extract_many(
    clips: Sequence[Utterance],
    like: dict,
    out: Path,
    places: Places,
    *,
    wanted: Collection[str],
    progress: Silent | None = None,
) -> Extracted:
    """Extract many clips as `extract_clips` does; clips may lack a modality.

    Args:
        clips: As there, each with one of the modalities.
        like: As there.
        out: As there.
        places: Where they are encoded, and by what.
        wanted: The modalities of that store that a clip has, and no others.
        progress: Is told how far the extraction is.

    Returns:
        What came of it: clips that cannot be read are no error, even where all are such.

    Raises:
        DataError: As there.
        KeyMismatchError: As there.
    """
    return _made(clips, like, out, places, progress=progress, wanted=wanted, decoders=-1)


def _made(
    clips: Sequence[Utterance],
    like: dict,
    out: Path,
    places: Places,
    *,
    progress: Silent | None,
    wanted: Collection[str] | None,
    decoders: int,
) -> Extracted:
    """The store of clips. With `decoders` 0 they are decoded in this process, and it is an error
    where none can be read.
    """
    groups = _groups(like, wanted)
    kinds = dict.fromkeys(name for group in groups for name in group.infos)
    asked = _asked(groups, places, decoders)
    failures: dict[str, Failure] = {}
    stores: list[FeatureStore] = []
    renamed: dict[tuple[int, str], str] = {}
    lines: list[str] = []
    as_it_is = len(groups) == 1 and all(m == name for m, name in groups[0].names.items())
    for number, (group, options) in enumerate(zip(groups, asked, strict=True)):
        mine = _clips_for(clips, group, kinds, number)
        place = out if as_it_is else out.with_name(f"{number}-{out.name}")
        store, failed, noted = _extracted(mine, like, group, place, options, progress)
        if store is not None:
            renamed |= {(len(stores), m): name for m, name in group.names.items()}
            stores.append(store)
        lines += noted
        for failure in failed:
            failures.setdefault(failure.id, failure)
    found = [failures[clip.id] for clip in clips if clip.id in failures]
    if as_it_is or not stores:
        return Extracted(stores[0] if stores else None, found, lines)
    # Sound and picture may come from files that do not last equally long, and one clip may have
    # sound alone, another words alone.
    write(plan(stores, renamed, keep_first=KEEPABLE, allow_disjoint=True).head, out)
    return Extracted(FeatureStore(out), found, lines)


def _asked(groups: Sequence[Group], places: Places, decoders: int) -> list[ExtractOptions]:
    """With which options each group is extracted. Raises DataError for options of faces where no
    group looks at any.
    """
    face_options = [name for name, value in places.beside.items() if value]
    if face_options and not any(group.on_faces for group in groups):
        raise DataError(
            f"--{face_options[0].replace('_', '-')}: the run does not look at faces; leave it out"
        )
    asked = []
    for group in groups:
        given = {m: places.encoders.get(name) for m, name in group.names.items()}
        options = _options(group.infos, group.recipe, given)
        options = replace(options, device=places.device, offline=places.offline, decoders=decoders)
        asked.append(replace(options, **places.beside) if group.on_faces else options)
    return asked


def _groups(like: dict, wanted: Collection[str] | None) -> list[Group]:
    """What is to be extracted, together where it came from one store. Raises DataError for what
    `mer extract` did not make.
    """
    modalities = {
        m: info for m, info in like["modalities"].items() if wanted is None or m in wanted
    }
    origins = like.get("origins")
    if origins is None:
        recipe = {
            name: one
            for name, one in like["recipe"].items()
            if name in modalities or name not in like["modalities"]
        }
        if not recipe:
            raise DataError(
                "the features this run was trained on were imported, joined with --copy, or joined "
                "by an earlier mer, so they cannot be made for a new clip; use `mer evaluate`"
            )
        return [Group(recipe, modalities, {m: m for m in modalities})]
    by_store: dict[tuple[str, int], Group] = {}
    for name, info in modalities.items():
        store, m, recipe = (origins[name][key] for key in ("store", "modality", "recipe"))
        if part(recipe, m) is None:
            raise DataError(
                f"the run reads {name} of {shown(store, 160)}, which was imported, so that it "
                "cannot be made for a new clip; use `mer evaluate`"
            )
        number = 0  # a store that was joined twice gives one modality under two names
        while (store, number) in by_store and m in by_store[store, number].infos:
            number += 1
        common = {key: one for key, one in recipe.items() if key != m}
        group = by_store.setdefault((store, number), Group(common))
        group.recipe[m] = recipe[m]
        group.infos[m], group.names[m] = info, name
    return list(by_store.values())


def _clips_for(
    clips: Sequence[Utterance], group: Group, kinds: Collection[str], number: int
) -> list[Utterance]:
    """The clips that have a modality of a group. Clips without a modality of any group, which are
    failures, are counted with the first group.
    """
    known = {modality.name: modality for modality in configured(ExtractOptions())}
    found = []
    for clip in clips:
        has = [name for name in kinds if known[name].has(clip)]
        if any(name in group.infos for name in has) or (number == 0 and not has):
            found.append(clip)
    return found


def _extracted(
    clips: Sequence[Utterance],
    like: dict,
    group: Group,
    out: Path,
    options: ExtractOptions,
    progress: Silent | None,
) -> tuple[FeatureStore | None, list[Failure], list[str]]:
    """The store of one group, the failures, and what was noted. Raises KeyMismatchError when its
    recipe came out as another one.
    """
    manifest = Manifest(
        like["dataset"],
        like["task"],
        tuple(like["labels"]),
        tuple(clips),
        Path.cwd(),
        like["language"],
    )
    options = replace(options, max_failures=len(clips))
    # a temporary folder of this process alone
    try:
        done = extract(manifest, out, options, where=Here(lock=False), progress=progress)
    except MissingError as error:
        raise DataError(
            f"{error.found}, and the run needs one; name the file that has it with {error.clip}, "
            "or in the manifest"
        ) from None
    except UnreadableError as error:
        if options.decoders:
            return None, _failures(clips, error), []
        if len(clips) > 1:
            raise
        hint = "; name the file that has its sound with --audio FILE" if _is_mute(error) else ""
        raise DataError(f"{error.reason}{hint}") from None
    store = FeatureStore(out)
    if _as_asked(store.header.recipe, group.recipe) != group.recipe:
        now = store.header.modalities
        names = {m: (info["encoder"], now[m].encoder) for m, info in group.infos.items()}
        found = "; ".join(differences(group.recipe, store.header.recipe, names))
        what = shown(found, DIFFERENCES_CHARACTERS)
        known = ", ".join(f"--{name}-encoder" for name in MODALITIES)
        raise KeyMismatchError(
            f"not the run's own encoders ({what}); name the right ones with {known}"
        )
    return store, done.failures, count_lines(done.counts, done.flagged)


def _failures(clips: Sequence[Utterance], error: UnreadableError) -> list[Failure]:
    """The failures of clips none of which can be read."""
    found = []
    for clip, (stage, reason) in zip(clips, error.problems, strict=True):
        known = clip.known_bad is not None
        found.append(Failure(clip.id, clip.audio or clip.video, stage, reason, known))
    return found


def _is_mute(error: UnreadableError) -> bool:
    return error.stage == Stage.EMPTY and error.reason.endswith(NO_SOUND)


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
            f"{' and '.join(missing)} too{_options_for(missing, kinds)}"
        )


def _options_for(names: Collection[str], kinds: Mapping[str, Modality]) -> str:
    """How a clip is given these modalities, as a parenthesis."""
    by_name = [kinds[name].clip_option for name in names if name in kinds]
    options = " and ".join(option for option in by_name if option)
    return f" ({options})" if options else ""


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
        why = (
            "what its run.json says of the features it was trained on is incomplete or not of "
            "`mer extract`"
        )
        raise DataError(
            f"the run cannot predict new clips: {why}; put it back as it was, or use `mer evaluate`"
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


def encoders_now(
    like: dict, features: Path, given: Mapping[str, str], wanted: Collection[str]
) -> dict[str, str]:
    """Where the encoders of a run's modalities are now.

    Args:
        like: the run's `store` entry.
        features: the store that it was trained on, which may be gone.
        given: what the user says of audio, text or vision.
        wanted: the modalities of the store that the run reads.

    Returns:
        By the names that they have in the store; of those that nobody knows, nothing. Of several
        that are made by encoders for sound, say, what is given goes to those that were folders, or
        else to the one that is just named `audio`.

    Raises:
        DataError: what is given could be for either of two.
    """
    found = sources(features)
    origins = like.get("origins") or {}
    for kind, where in given.items():
        meant = [n for n in wanted if (origins[n]["modality"] if n in origins else n) == kind]
        if len(meant) > 1:
            infos = {name: like["modalities"][name] for name in meant}
            folders = [name for name, info in infos.items() if _was_folder(info)]
            meant = folders or [name for name in meant if name == kind] or meant
        if len(meant) > 1:
            raise DataError(
                f"--{kind}-encoder: the run reads {' and '.join(meant)}, and it could be for "
                "either; put their folders back where they were, and leave it out"
            )
        found |= dict.fromkeys(meant, where)
    return found


def sources(features: Path) -> dict[str, str]:
    """Where the encoders of the store `features` were when it was made, by modality; of a joined
    store those of its members. What is gone or was imported is left out.
    """
    found: dict[str, str] = {}
    try:
        store = FeatureStore(features, check=False)
        if not store.members:
            return {m: where for m in MODALITIES if (where := _made_by(store, m))}
    except (MerError, OSError):
        return {}
    for number, record in enumerate(store.members):
        try:
            member = store.member(number)
        except (MerError, OSError):
            continue
        for name, there in record.modalities.items():
            if where := _made_by(member, there):
                found[name] = where
    return found


def _made_by(store: FeatureStore, modality: str) -> str:
    """The encoder that was asked for when a store was extracted; "": it was imported."""
    made = store.header.provenance.get("extract")
    options = made.get("options") if isinstance(made, dict) else None
    where = options.get(f"{modality}_encoder") if isinstance(options, dict) else None
    return where if isinstance(where, str) else ""


def _was_folder(info: Mapping[str, Any]) -> bool:
    return not (info["encoder"] or "").startswith("builtin:") and not info["revision"]


def _source(modality: str, info: dict, given: str | None) -> str:
    """`given`, else ID@REVISION of a hub checkpoint or the name of a built-in encoder."""
    if given == "none":
        raise DataError(f"--{modality}-encoder none: the run was trained on {modality}")
    if given or (info["encoder"] or "").startswith("builtin:"):
        return given or info["encoder"]
    if _was_folder(info):
        raise DataError(
            f"the run's {modality} encoder was the folder '{info['encoder']}'; say where it is "
            f"now with --{modality}-encoder"
        )
    return f"{info['encoder']}@{info['revision']}"
