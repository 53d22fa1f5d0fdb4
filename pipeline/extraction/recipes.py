"""Two recipes compared: what they differ in, what one has more, and the options that give the old
one again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from mer.pipeline.encoders import MODALITIES

COMMON = ("dtype", "precision", "extractor")  # what holds for all modalities of a store
LAYER_MEANS = "layer_means"


def differences(old: dict, new: dict, names: Mapping[str, tuple[str, str]]) -> list[str]:
    """What two recipes differ in, one phrase each.

    `names[modality]` are the encoders' names in the old and the new store.
    """
    if not old:
        return ["it holds features that were not made by `mer extract`"]
    found = []
    for name in _modalities(old, new):
        was, now = part(old, name), part(new, name)
        if (was is None) != (now is None):
            state = "not there, asked for now" if was is None else "there, not asked for now"
            found.append(f"{name} features: {state}")
        elif was and now:
            found += _differences_within(name, was, now, names.get(name, ("", "")))
    found += _layer_means(old, new)
    for key in COMMON:
        if old.get(key) != new.get(key):
            found.append(f"{key}: {old.get(key)} there, {new.get(key)} now")
    return found


def part(recipe: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    """What a recipe says of a modality: a store made elsewhere may have anything there."""
    found = recipe.get(name)
    return found if isinstance(found, dict) else None


def _modalities(old: dict, new: dict) -> list[str]:
    """The modalities of the registry, then those that another version of mer may have added."""
    others = (name for recipe in (old, new) for name in recipe if part(recipe, name) is not None)
    return list(dict.fromkeys([*MODALITIES, *others]))


def _differences_within(
    name: str, old: dict[str, Any], new: dict[str, Any], encoders: tuple[str, str]
) -> list[str]:
    if old.get("encoder") != new.get("encoder"):  # all else follows from it
        if encoders[0] != encoders[1]:
            return [f"{name} encoder: {encoders[0]} there, {encoders[1]} now"]
        return [f"{name} encoder: {encoders[1]} with other files"]
    found = []
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key) and key != LAYER_MEANS:
            found.append(MODALITIES[name].differs(key, old.get(key), new.get(key)))
    return found


def _layer_means(old: dict, new: dict) -> list[str]:
    """A phrase for the modalities whose layer means are in one of the two recipes alone."""
    found = []
    for one, other, which in ((old, new, "no layer means"), (new, old, "layer means")):
        lacking = without_layer_means(one, other)
        if lacking:
            found.append(f"{which} of {' and '.join(lacking)} there")
    return found


def without_layer_means(one: dict, other: dict) -> list[str]:
    """Modalities of both recipes that have layer means in `other`, but not in `one`."""
    found = []
    for name in _modalities(one, other):
        lacks, has = part(one, name), part(other, name)
        if has and lacks and has.get(LAYER_MEANS) and not lacks.get(LAYER_MEANS):
            found.append(name)
    return found


def added(old: dict, new: dict) -> tuple[str, ...]:
    """The modalities that `new` has beyond `old`, if everything else is the same; else none."""
    if any(old.get(key) != new.get(key) for key in COMMON):
        return ()
    names = _modalities(old, new)
    held = [name for name in names if part(old, name) is not None]
    if not held or any(old[name] != new.get(name) for name in held):
        return ()
    return tuple(name for name in names if name not in held and part(new, name) is not None)


def keeping(
    old: dict,
    new: dict,
    sources: Mapping[str, str],
    asked: Mapping[str, Any],
    gives: Callable[[str, dict[str, Any]], dict[str, Any]],
) -> list[str]:
    """The options that ask for the old recipe where the new one differs from it; [] where no
    options do.

    `sources` says of the old store's modalities where their encoders are, `asked` what was asked
    for now, and `gives(modality, settings)` what its recipe would be with other settings.
    """
    if not old or old.get("extractor") != new.get("extractor"):
        return []
    options: list[str] = []
    for name in _modalities(old, new):
        was, now = part(old, name), part(new, name)
        if was is None or was == now:
            continue
        if name not in MODALITIES or not sources.get(name):
            return []
        same = now is not None and was.get("encoder") == now.get("encoder")
        settings = dict(_settings(name, was, now)) if now is not None else {}
        if same and gives(name, settings) != was:
            return []  # no option says it, or the option meant something else then
        if not same:
            options.append(f"--{name}-encoder {sources[name]}")
        for key, value in settings.items():
            if value != "" or asked.get(key):  # "": nothing was asked for
                options.append(_spelled(key, value))
    for key in ("dtype", "precision"):
        if old.get(key) != new.get(key):
            options.append(f"--{key} {old.get(key)}")
    return list(dict.fromkeys(options))


def _settings(
    name: str, old: dict[str, Any], new: dict[str, Any]
) -> Iterable[tuple[str, str | float | bool]]:
    """The options of one modality that differ, and their values for the old recipe."""
    try:
        was, now = (MODALITIES[name].options_of(recipe) for recipe in (old, new))
    except (KeyError, TypeError, AttributeError):
        return
    for field, value in was.items():
        if value != now.get(field):
            yield field, value


def _spelled(field: str, value: str | float | bool) -> str:
    """An option as the command line has it."""
    flag = field.replace("_", "-")
    if isinstance(value, bool):
        return f"--{flag}" if value else f"--no-{flag}"
    if isinstance(value, float):
        return f"--{flag} {value:g}"
    return f"--{flag} {value or repr('')}"
