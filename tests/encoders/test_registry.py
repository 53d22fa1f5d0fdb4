"""What every entry of the registry of modalities must keep: a new one is tested by being there."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from mer.pipeline.encoders import MODALITIES, configured
from mer.pipeline.encoders.modality import Lengths, Modality, Rows
from mer.pipeline.extraction.options import ExtractOptions
from mer.pipeline.media.workers import Decoders, decode
from mer.pipeline.store.schema import is_modality

from tests.extract import corpus


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Rows:
    manifest, _ = corpus.make(tmp_path_factory.mktemp("rows"), 6, films=True)
    return Rows(manifest.rows, manifest.root)


@pytest.fixture(params=MODALITIES)
def modality(request) -> Modality:
    kind = MODALITIES[request.param]
    return kind.of(ExtractOptions(**{f"{request.param}_encoder": kind.built_in}))


@pytest.fixture
def encoder(modality):
    return modality.load(modality.resolve(modality.encoder), device="cpu", precision="fp32")


@pytest.fixture
def lengths(modality, rows, encoder) -> Lengths:
    jobs = [modality.probe_job(row, rows) for row in range(len(rows))]
    probed = [decode(job).samples if job is not None else 0 for job in jobs]
    return modality.measure(rows, probed, encoder)


def test_its_name_can_be_one_of_a_store(modality):
    assert is_modality(modality.name) and MODALITIES[modality.name] is type(modality)


def test_unasked_for_it_wants_nothing():
    assert not any(modality.wanted for modality in configured(ExtractOptions()))


def test_it_can_be_sent_to_a_worker(modality):
    assert pickle.loads(pickle.dumps(modality)) == modality


def test_its_recipe_gives_its_options_again(modality):
    checkpoint = modality.resolve(modality.encoder)
    options = type(modality).options_of(modality.recipe(checkpoint))
    again = type(modality).of(ExtractOptions(**options))
    assert again.recipe(checkpoint) == modality.recipe(checkpoint)


def test_its_content_tells_utterances_apart(modality, rows):
    one, other = rows.utterances[:2]
    assert modality.content(one, "a" * 64) != modality.content(other, "b" * 64)
    assert modality.content(one, "a" * 64) == modality.content(one, "a" * 64)


def test_budgets_are_known_for_every_device(modality):
    for device in ("cpu", "cuda"):
        candidates = list(modality.candidate_budgets[device])
        assert modality.budget_for(device) > 0 and candidates == sorted(candidates)
    assert modality.part_length() > 0


def test_steps_are_as_many_as_measured(modality, rows, encoder, lengths):
    """Read, encode: each row's items give the steps that were foretold."""
    chosen = list(range(len(rows)))
    owners = modality.owners(chosen, rows)
    items = modality.items(chosen, rows, lengths, encoder.checkpoint)
    assert {item.row for item in items} == {row for row in chosen if row not in owners}
    with Decoders(0) as decoders:
        read = list(modality.read(items, rows, lengths, encoder, decoders))
    assert all(x.problem is None for x in read)
    outputs = encoder.encode([x.value for x in read])
    for item, x, states in zip(items, read, outputs, strict=True):
        steps = states.frames
        assert len(x.value) == item.length
        assert steps.shape == (lengths.steps[item.row], encoder.dim)
        assert steps.dtype == np.float32
    for row, owner in owners.items():
        assert lengths.lengths[row] == lengths.lengths[owner]
