"""Step 4, `settle`: whether an unfinished run is gone on with, the self-test, the budgets, and then
one plan.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import combinations

import numpy as np

from mer.pipeline.encoders import configured
from mer.pipeline.encoders.modality import Encoder
from mer.pipeline.extraction.budget import choose_budgets, fixed_budgets
from mer.pipeline.extraction.fingerprint import Keys, recipe_key
from mer.pipeline.extraction.look import Found
from mer.pipeline.extraction.outcome import ExtractReport, untrained_line
from mer.pipeline.extraction.plan import (
    Copy,
    Draft,
    Inputs,
    Plan,
    Settings,
    cut_shards,
    draft,
    finish_plan,
)
from mer.pipeline.extraction.probe import Probed, check_lengths, probe
from mer.pipeline.extraction.request import Company, Request
from mer.pipeline.extraction.runner import Assignment, Standing, load_encoders
from mer.pipeline.extraction.selftest import self_test
from mer.pipeline.extraction.sound import Unsound, existing, unsound_sources
from mer.pipeline.media.stages import Problem
from mer.pipeline.runtime.files import sha256_file
from mer.pipeline.runtime.terminal import plural
from mer.pipeline.store import Header

MEAN_BYTES = 4  # of a value of the mean over an utterance's steps, which is stored in float32


@dataclass(frozen=True)
class Prepared:
    """A run whose lengths are known and whose encoders are loaded.

    `stored` is the plan of an unfinished run that can be gone on with.
    """

    inputs: Inputs
    encoders: Mapping[str, Encoder]
    left_out: Mapping[int, Problem]
    stored: Settings | None

    @property
    def dims(self) -> dict[str, int]:
        return {modality: encoder.dim for modality, encoder in self.encoders.items()}


@dataclass(frozen=True)
class Settled:
    """A run that is ready to compute. `before` is the header of the store that it adds to."""

    request: Request
    inputs: Inputs
    encoders: Mapping[str, Encoder]
    plan: Plan
    self_test: dict[str, dict] = field(default_factory=dict)
    resumed: bool = False
    before: Header | None = None

    @property
    def assignment(self) -> Assignment:
        """What every process has to know to do any piece of the plan."""
        dims = {modality: encoder.dim for modality, encoder in self.encoders.items()}
        layers = {modality: encoder.layer_count for modality, encoder in self.encoders.items()}
        request = self.request
        return Assignment(self.inputs, self.plan, request.options, request.place, dims, layers)

    def standing(self) -> Standing:
        """What of the plan is there."""
        return Standing(self.assignment, resumed=self.resumed)


def prepare(request: Request, company: Company) -> Prepared:
    """Lengths and encoders, and the plan of an unfinished run if there is one."""
    stored = stored_plan(request, company)
    probed = probe(request, company, stored.left_out if stored else {})
    encoders = load_encoders(request.keys.chosen, request.options)
    inputs = measure(request, company, probed, encoders)
    return Prepared(inputs, encoders, probed.left_out, stored)


def stored_plan(request: Request, company: Company) -> Settings | None:
    """The plan of an unfinished run, if it can be gone on with; else a note says why not, and
    everything that is sound is taken over.
    """
    place, keys, note = request.place, request.keys, company.progress.note
    settings = Settings.read(place.plan, keys.fingerprint, note)
    if settings is None:
        return None
    if not settings.fits(len(request.manifest), request.modalities):
        note(f"{place.plan}: the plan of an unfinished run is damaged; starting again")
        return None
    reason = unsound_sources(
        place.folder, settings, request.modalities, lambda names: request.part(names).contents
    )
    if reason:
        note(f"{reason}; planning the unfinished run again")
        return None
    return settings


def adopted(request: Request, prepared: Prepared) -> Prepared:
    """With the plan that another share has written meanwhile, if any."""
    settings = Settings.read(request.place.plan, request.keys.fingerprint)
    return prepared if settings is None else replace(prepared, stored=settings)


def measure(
    request: Request, company: Company, probed: Probed, encoders: Mapping[str, Encoder]
) -> Inputs:
    """Lengths in each modality, and the bytes of features of each row."""
    rows, chosen = request.rows(company.memory), request.keys.chosen
    readable = [row for row in range(len(rows)) if row not in probed.left_out]
    lengths = {}
    for choice in chosen:
        measured = choice.modality.measure(rows, probed.lengths[choice.name], encoders[choice.name])
        check_lengths(choice, request, rows, measured, readable)
        lengths[choice.name] = measured
    item_bytes = np.dtype(request.options.dtype).itemsize
    means = MEAN_BYTES * sum(encoder.dim for encoder in encoders.values())
    layers = item_bytes * sum(e.layer_count * e.width for e in encoders.values())
    sizes = []
    for row in range(len(rows)):
        size = means + layers
        for name, encoder in encoders.items():
            size += lengths[name].steps[row] * encoder.dim * item_bytes
        sizes.append(size)
    keys = request.keys
    return Inputs(rows, chosen, lengths, keys.contents, keys.recipe_key, tuple(sizes))


def settle(request: Request, company: Company, found: Found, prepared: Prepared) -> Settled:
    """Self-test, budgets, and one plan, which is written down if it is a new one.

    Raises EncoderError when the self-test refuses an encoder; whatever `company.confirm` raises.
    """
    inputs, encoders, stored = prepared.inputs, prepared.encoders, prepared.stored
    settings = stored or new_settings(request, company, found, prepared)
    inputs = _with_part_contents(request, inputs, settings)
    drafted = draft(settings, inputs)
    if stored is None:
        company.confirm(planned_bytes(inputs, drafted))
        _tell_free_space(request, company, settings, inputs, drafted)
    tested = self_test(inputs, drafted, encoders)
    if stored is None:
        settings = replace(settings, one_by_one=_one_by_one(request, company, tested))
        settings = _with_budgets(request, company, settings, prepared, drafted)
    plan = finish_plan(settings, drafted)
    if stored is not None:
        company.progress.note(f"going on with the unfinished run in {request.place.folder}")
    else:
        # what is there is of a run with other options or contents
        shutil.rmtree(request.place.parts, ignore_errors=True)
        settings.write(request.place.plan)
    if request.keys.untrained:
        company.progress.note(untrained_line(request.keys.untrained))
    company.memory.save()
    before = found.head.header if found.head is not None else None
    return Settled(request, inputs, encoders, plan, tested, stored is not None, before)


def sketch(request: Request, company: Company, found: Found, prepared: Prepared) -> Settled:
    """The plan with the budgets that need no trying, for a dry run: nothing is written."""
    settings = prepared.stored or new_settings(request, company, found, prepared)
    plan = finish_plan(settings, draft(settings, prepared.inputs))
    return Settled(request, prepared.inputs, prepared.encoders, plan)


@dataclass(frozen=True)
class Reusable:
    """What can be taken over from shards that are there.

    `shards` maps the name of a sound one to its key, `unsound` names shards that cannot be used.
    `copies` has, for all modalities and for fewer of them (largest sets first), the key of a
    content as that set sees it, and where the features are; `parts` are the keys of those sets.
    """

    shards: dict[str, str]
    unsound: list[str]
    copies: dict[tuple[str, ...], dict[str, Copy]]
    parts: dict[tuple[str, ...], Keys]

    def of(self, row: int) -> tuple[Copy, tuple[str, ...]] | None:
        """The shard that has the most modalities of a row, where in it they are, and which these
        are; None where no shard has any.
        """
        for names, copies in self.copies.items():
            copy = copies.get(self.parts[names].contents[row])
            if copy is not None:
                return copy, names
        return None


def reusable(request: Request, company: Company, found: Found) -> Reusable:
    """Look through the shards in the store's folder; a note tells of those that are not sound.

    Shards of the same recipe, and those of a store that lacks some of the modalities: a modality
    that is added does not change what was made of the others.
    """
    recorded = {}
    if found.head is not None:
        recorded = {record.path.name: record.sha256 for record in found.head.shards}
    there = Reusable({}, [], {}, {})
    recipes = {recipe_key(recipe): names for names, recipe in _part_recipes(request)}
    copies: dict[tuple[str, ...], dict[str, Copy]] = {names: {} for names in recipes.values()}
    for shard in existing(request.place.folder, recipes.keys(), recorded, sha256_file):
        if isinstance(shard, Unsound):
            company.progress.note(f"{shard.reason}; extracting it again")
            there.unsound.append(shard.path.name)
            continue
        there.shards[shard.path.name] = shard.key
        held = copies[recipes[shard.meta["recipe"]]]
        for at, content in enumerate(shard.meta["contents"]):
            held.setdefault(content, Copy(shard.path.name, at))
    for names, held in copies.items():
        if held:
            there.copies[names], there.parts[names] = held, request.part(names)
    return there


def _part_recipes(request: Request) -> Iterator[tuple[tuple[str, ...], dict]]:
    """Every set of the modalities, the largest first, and the recipe of a store that has these."""
    recipe = request.keys.recipe
    for count in range(len(request.modalities), 0, -1):
        for names in combinations(request.modalities, count):
            left_out = set(request.modalities) - set(names)
            yield names, {name: part for name, part in recipe.items() if name not in left_out}


def new_settings(request: Request, company: Company, found: Found, prepared: Prepared) -> Settings:
    """Fixed budgets, and what is to be taken over from shards that are there."""
    options = request.options
    there = reusable(request, company, found)
    _tell_decoded_again(company, there)
    shards = cut_shards(prepared.inputs, prepared.left_out, options.shard_bytes)
    kept = [shard.name for shard in shards if there.shards.get(shard.name) == shard.key]
    reused, holds = {}, {}
    for row in (row for shard in shards if shard.name not in kept for row in shard.rows):
        taken = there.of(row)
        if taken is not None:
            reused[row], names = taken
            if names != request.modalities:
                holds[reused[row].shard] = list(names)
    device = next(iter(prepared.encoders.values())).device.type
    modalities = [modality for modality in configured(options) if modality.wanted]
    return Settings(
        fingerprint=request.keys.fingerprint,
        budgets=fixed_budgets(modalities, device),
        shard_bytes=options.shard_bytes,
        window=options.window,
        part_lengths={modality.name: modality.part_length() for modality in modalities},
        left_out=dict(prepared.left_out),
        kept=kept,
        rebuilt=[shard.name for shard in shards if shard.name in there.unsound],
        reused=reused,
        holds=holds,
    )


def _with_part_contents(request: Request, inputs: Inputs, settings: Settings) -> Inputs:
    """With what the plan's copies from shards that lack some modalities are held against."""
    held = {tuple(names) for names in settings.holds.values()}
    return replace(inputs, part_contents={names: request.part(names).contents for names in held})


def _tell_decoded_again(company: Company, there: Reusable) -> None:
    """Say how many utterances, whose features are `there` from the first version of the decoder,
    are decoded again, and why.
    """
    again: dict[int, str] = {}
    for names, keys in there.parts.items():
        for row, (older, why) in keys.older.items():
            if older in there.copies[names]:
                again[row] = why
    if again:
        counted = Counter(again.values()).most_common()
        reasons = ", ".join(f"{count:,} for {why}" for why, count in counted)
        company.progress.note(
            f"{plural(len(again), 'utterance is', 'utterances are')} decoded again, which an "
            f"earlier version read otherwise: {reasons}"
        )


def planned_bytes(inputs: Inputs, planned: Draft | Plan) -> int:
    """Bytes of the features of a store."""
    return sum(inputs.sizes[row] for shard in planned.shards for row in shard.rows)


def _tell_free_space(
    request: Request, company: Company, settings: Settings, inputs: Inputs, drafted: Draft
) -> None:
    """Say beforehand that the disk will be full; it is the user's to decide what to do about it."""
    new = (shard for shard in drafted.shards if shard.name not in settings.kept)
    needed = sum(inputs.sizes[row] for shard in new for row in shard.rows)
    free = shutil.disk_usage(request.place.folder).free
    if needed > free:
        company.progress.note(
            f"{request.place.folder}: {needed / 1e6:,.0f} MB to write, up to as much again for a "
            f"while, and {free / 1e6:,.0f} MB free; "
            "when the disk is full, free some space and run the same command again: it goes on"
        )


def _one_by_one(request: Request, company: Company, tested: dict[str, dict]) -> list[str]:
    """Modalities whose encoder gives features that depend on the batch: it runs one item at a
    time.
    """
    failed = [modality for modality, result in tested.items() if not result["passed"]]
    names = {choice.name: choice.checkpoint.name for choice in request.keys.chosen}
    for modality in failed:
        result = tested[modality]
        company.progress.note(
            f"{modality} encoder {names[modality]}: batch and single differ by "
            f"{result['relative']:.1e} (allowed: {result['tolerance']:.0e}), so it runs one item "
            "at a time: exact, but slower"
        )
    return failed


def _with_budgets(
    request: Request, company: Company, settings: Settings, prepared: Prepared, drafted: Draft
) -> Settings:
    """The settings with the budgets that are to be found by trying."""
    asked = [
        choice
        for choice in request.keys.chosen
        if choice.modality.budget == "auto" and choice.name not in settings.one_by_one
    ]
    if not asked:
        return settings
    found = choose_budgets(
        asked,
        prepared.inputs,
        drafted,
        prepared.encoders,
        request.options,
        company.progress.note,
    )
    return replace(settings, budgets=settings.budgets | found)


def report(settled: Settled, action: str) -> ExtractReport:
    """What a settled run would make or has made, as far as its plan tells."""
    request, plan, inputs = settled.request, settled.plan, settled.inputs
    settings = plan.settings
    planned = [row for shard in plan.shards for row in shard.rows]
    kept = (shard for shard in plan.shards if shard.name in settings.kept)
    reused = len(settings.reused) + sum(len(shard.rows) for shard in kept)
    taken_over: Counter[str] = Counter()
    for copy in settings.reused.values():
        if copy.shard in settings.holds:
            taken_over.update(settings.holds[copy.shard])
            reused -= 1
    left_out = sorted(settings.left_out.items())
    return ExtractReport(
        request.place.out,
        request.keys.fingerprint,
        action,
        len(planned),
        len(planned) - reused,
        reused,
        [request.failure(row, problem) for row, problem in left_out],
        request.place.failures,
        inputs.total_seconds(planned),
        padding=plan.padding(),
        batches=plan.batches(),
        self_test=settled.self_test,
        bytes=planned_bytes(inputs, plan),
        shards=len(plan.shards),
        untrained=request.keys.untrained,
        taken_over=dict(taken_over),
    )
