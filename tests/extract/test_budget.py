"""Budgets found by trying: which is chosen from recorded rates, what counts as out of memory, and
what is remembered.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from mer.pipeline.encoders.audio import Audio
from mer.pipeline.encoders.text import Text
from mer.pipeline.extraction import budget, extract
from mer.pipeline.extraction.budget import (
    Ended,
    Trial,
    fill,
    places,
    remember,
    remembered,
    search,
    try_budget,
)
from mer.pipeline.extraction.options import ExtractOptions
from mer.pipeline.extraction.plan import Settings
from mer.pipeline.manifest import Manifest
from mer.pipeline.runtime.progress import Silent

from tests.extract import corpus


class Clock:
    """Time that passes only when told so."""

    def __init__(self):
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def chosen(
    rates: dict[float, float | None], seconds: float = 0.0
) -> tuple[float, list[float], str]:
    """(budget, what was tried, why it ended) for recorded rates; every measurement
    takes `seconds`.
    """
    clock = Clock()

    def measure(size: float) -> float | None:
        clock.now += seconds
        return rates[size]

    trial = search(list(rates), measure, clock=clock)
    return trial.budget, list(trial.rates), trial.why


def test_the_smallest_that_is_nearly_as_fast_as_the_fastest():
    assert chosen({5: 8.0, 10: 9.9, 20: 10.0, 40: 9.0})[0] == 10
    assert chosen({5: 8.0, 10: 9.7, 20: 10.0})[0] == 20


def test_the_search_ends_when_larger_ones_are_no_faster():
    size, tried, why = chosen({5: 10.0, 10: 9.0, 20: 8.0, 40: 99.0})
    assert (size, tried) == (5, [5, 10, 20]) and "no faster" in why
    # one dip does not end it
    assert chosen({5: 10.0, 10: 9.0, 20: 12.0, 40: 11.0})[:2] == (20, [5, 10, 20, 40])


def test_out_of_memory_is_the_end():
    size, tried, why = chosen({5: 10.0, 10: 12.0, 20: None, 40: 99.0})
    assert (size, tried) == (10, [5, 10, 20]) and "memory" in why
    size, _, why = chosen({5: None, 10: 1.0})
    assert size == 5 and "smallest runs out of memory" in why


def test_trying_takes_no_longer_than_stated():
    size, tried, why = chosen(
        {5: 1.0, 10: 2.0, 20: 3.0, 40: 4.0}, seconds=budget.SEARCH_SECONDS * 0.6
    )
    assert (size, tried) == (10, [5, 10]) and "60 s" in why


class Recorded:
    """An encoder of fixed cost: `overhead` seconds a batch and a second for 100 seconds of audio;
    beyond `memory` it runs out of it.
    """

    def __init__(self, clock: Clock, overhead: float, memory: float):
        self.clock, self.overhead, self.memory, self.device = (
            clock,
            overhead,
            memory,
            torch.device("cpu"),
        )

    def collate(self, items, kept=None):
        return tuple(items)

    def forward(self, batch):
        seconds = len(batch) * max(len(x) for x in batch) / 16_000
        if seconds > self.memory:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        self.clock.now += self.overhead + seconds / 100
        return [x[:1] for x in batch]


AUDIO = Audio.of(ExtractOptions())
GROUPS = [[np.zeros(n, np.float32)] * 3 for n in (8_000, 32_000, 160_000)]


def trial(overhead: float, memory: float, *, most: float = 1e9, room: float = 1.0) -> Trial:
    clock = Clock()
    return try_budget(
        AUDIO,
        Recorded(clock, overhead, memory),
        GROUPS,
        most=most,
        threads=1,
        room=lambda: room,
        clock=clock,
    )


def test_rates_are_those_of_the_encoder():
    """A batch of 80 s costs 0.8 s and the overhead."""
    found = trial(0.2, 1e9)
    assert found.rates[80] == pytest.approx(80.0) and found.rates[40] == pytest.approx(40 / 0.6)
    assert found.budget == 160
    assert trial(0.0, 1e9).budget == 5


def test_memory_that_runs_out_bounds_the_budget():
    found = trial(0.2, 50)
    assert found.budget == 40 and found.rates[80] is None
    assert trial(0.2, 1e9, room=0.05).rates == {5: None}


def test_other_errors_are_not_taken_for_memory():
    class Broken(Recorded):
        def forward(self, batch):
            raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="shape mismatch"):
        try_budget(AUDIO, Broken(Clock(), 0, 1), GROUPS, most=100, threads=1)


def test_a_short_corpus_says_nothing_about_the_device():
    found = trial(0.2, 1e9, most=12)
    assert list(found.rates) == [5, 10] and not found.complete
    assert trial(0.2, 1e9).complete


@pytest.mark.parametrize("limit", [1, 100, 350, 10_000])
def test_a_filled_batch_keeps_within_its_budget(limit):
    batch = fill([np.zeros(90), np.zeros(100)], limit)
    assert len(batch) == max(1, limit // 100)


def test_places_are_neighbours_up_to_the_longest():
    found = places(list(range(1000)))
    assert (
        [len(group) for group in found] == [budget.NEIGHBOURS] * 4
        and found[-1][-1] == 999
        and found[0][-1] == 249
    )
    assert places([7]) == [[7]] * 4


def test_remembered_by_key_and_forgotten_when_damaged(tmp_path):
    path = tmp_path / "mer" / "budgets.json"
    assert remembered("a", path) is None
    remember("a", Trial(40, {20: 1.5, 40: 2.0, 80: None}, Ended.NO_FASTER), path)
    remember("b", Trial(512, {512: 3.0}, Ended.TIME), path)
    assert remembered("a", path) == Trial(40, {20: 1.5, 40: 2.0, 80: None}, Ended.NO_FASTER)
    assert remembered("b", path).budget == 512 and remembered("c", path) is None
    for content in ("", "[]", '{"a": 1}', '{"a": {"budget": -1, "rates": {}, "why": ""}}'):
        path.write_text(content)
        assert remembered("a", path) is None
    remember("b", Trial(512, {512: 3.0}, Ended.TIME), path)
    assert remembered("b", path).budget == 512


@pytest.mark.parametrize(
    "options", [{"budget_seconds": "much"}, {"budget_seconds": float("nan")}, {"budget_tokens": -1}]
)
def test_what_is_no_budget(options):
    with pytest.raises(Exception, match="neither auto nor a number above 0"):
        ExtractOptions(**options)


class Notes(Silent):
    def __init__(self):
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


def test_extraction_tries_once_and_remembers(tmp_path, monkeypatch):
    """Real items, real encoders.

    The plan has the budget, a resume keeps it, the next corpus finds it in the user's cache.
    """
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(Audio, "candidate_budgets", {"cpu": (0.5, 1.0)})
    monkeypatch.setattr(Text, "candidate_budgets", {"cpu": (4, 8)})
    manifest, file = corpus.make(tmp_path / "a", 12)
    options = corpus.options(budget_seconds="auto", budget_tokens="auto")
    dry = Notes()
    extract(manifest, tmp_path / "dry.h5", options, source=file, progress=dry, dry_run=True)
    assert not any("budget" in line for line in dry.lines), "a dry run computes nothing"
    first, then = Notes(), Notes()
    report = extract(manifest, tmp_path / "a.h5", options, source=file, progress=first)
    assert [line.split(":")[0] for line in first.lines if "budget" in line] == [
        "budget audio",
        "budget text",
    ]
    path = tmp_path / "cache" / "mer" / "budgets.json"
    known = json.loads(path.read_text())
    assert len(known) == 2 and {entry["budget"] for entry in known.values()} <= {0.5, 1.0, 4, 8}
    monkeypatch.setattr(
        "mer.pipeline.extraction.budget.try_budget", lambda *a, **k: pytest.fail("tried again")
    )
    other, other_file = corpus.make(tmp_path / "b", 6, seed=3)
    again = extract(other, tmp_path / "b.h5", options, source=other_file, progress=then)
    assert sum("remembered for this device" in line for line in then.lines) == 2
    assert report.utterances == 12 and again.utterances == 6


def test_a_resumed_run_keeps_its_budget(tmp_path, monkeypatch):
    """Killed, then asked for with auto: the plan that is there holds, so that no part is computed
    again.
    """
    manifest, file = corpus.make(tmp_path, 12)

    def killed(*args, **keywords):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("mer.pipeline.extraction.publish.write_head", killed)
        with pytest.raises(KeyboardInterrupt):
            extract(manifest, tmp_path / "feats.h5", corpus.options(), source=file)
    settings = Settings.read(
        tmp_path / "feats.shards" / ".work" / "plan.json", fingerprint_of(manifest)
    )
    monkeypatch.setattr(
        "mer.pipeline.extraction.settle.choose_budgets", lambda *a: pytest.fail("tried")
    )
    extract(
        Manifest.read(file),
        tmp_path / "feats.h5",
        corpus.options(budget_seconds="auto"),
        source=file,
    )
    assert settings.budgets == {"audio": 32_000, "text": 24}


def fingerprint_of(manifest: Manifest) -> str:
    from mer.pipeline.extraction.fingerprint import fingerprint

    return fingerprint(manifest, corpus.options())
