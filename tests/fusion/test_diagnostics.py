"""What log.jsonl and the curves say of an epoch is of all its batches, by their rows: the last one,
which may have eight rows, says little, and bounds of mutual information depend on the batch's size.
"""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import pytest
import torch

from mer.fusion import config
from mer.fusion.models import model_class
from mer.fusion.report import figures, pictures
from mer.fusion.runs.records import Epoch
from mer.fusion.runtime.parallel import ALONE
from mer.fusion.training import experiment, one_epoch

from tests.fusion.stores import make_store, quiet
from tests.fusion.test_train import settings

ROWS = 72  # of train in the stores of these tests: batches of 32, 32 and 8


def logged(folder) -> list[dict]:
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [json.loads(line)["diagnostics"] for line in lines]


@pytest.mark.parametrize("name", ["drkf", "dmd", "dhmd"])
def test_diagnostics_are_means_over_all_batches_by_rows(tmp_path, monkeypatch, name):
    kind = model_class(name)[0]
    seen: list[tuple[int, dict[str, float]]] = []
    losses, observed = kind.losses, kind.observed
    sizes: list[int] = []

    def counted(self, batch, progress):
        sizes.append(len(batch))
        return losses(self, batch, progress)

    def kept(self):
        found = observed(self)
        seen.append((sizes[-1], {key: float(value) for key, value in found.items()}))
        return found

    monkeypatch.setattr(kind, "losses", counted)
    monkeypatch.setattr(kind, "observed", kept)
    small = ("train.epochs=2", "train.batch_size=32")
    if name == "drkf":
        sets = settings(*small, model=name)
    else:
        width = ("model_args.width=8", "model_args.heads=2", "optim.accumulate=1")
        sets = config.load(model=name, sets=[*small, *width])
    experiment.train(make_store(tmp_path), sets, tmp_path / "run", note=quiet)
    assert len(seen) == 6 and sorted(rows for rows, _ in seen[:3]) == [8, 32, 32]
    for epoch, found in enumerate(logged(tmp_path / "run")):
        batches = seen[3 * epoch : 3 * epoch + 3]
        assert batches[0][1].keys() <= found.keys() and len(batches[0][1]) >= 2
        for key in batches[0][1]:
            there = [(rows, one[key]) for rows, one in batches if not math.isnan(one[key])]
            wanted = sum(rows * value for rows, value in there) / sum(rows for rows, _ in there)
            assert found[key] == pytest.approx(wanted, rel=1e-5, abs=1e-6), key


def test_the_cap_of_the_bounds_by_hand(tmp_path):
    """log(2B - 1) for NT-Xent and log(B) for InfoNCE, in batches of 32, 32 and 8."""
    sets = settings("train.epochs=1", "train.batch_size=32", model="drkf")
    experiment.train(make_store(tmp_path), sets, tmp_path / "run", note=quiet)
    (found,) = logged(tmp_path / "run")
    pairs = (64 * math.log(63) + 8 * math.log(15)) / ROWS
    assert found["mi_cap_nt_xent"] == pytest.approx(pairs)
    assert found["mi_cap_info_nce"] == pytest.approx((64 * math.log(32) + 8 * math.log(8)) / ROWS)
    for name, value in found.items():
        if name.startswith("mi_bound_"):
            kind = "info_nce" if name.count("_") > 2 else "nt_xent"
            assert value <= found[f"mi_cap_{kind}"] + 1e-6


def test_a_batch_that_says_nothing_is_left_out():
    """By hand: 0.5 of 10 rows and 0.8 of 20; NaN of 30. What no batch has stays undefined."""
    seen = one_epoch.Diagnostics()
    batches = ((10, 0.5, math.nan), (30, math.nan, math.nan), (20, 0.8, math.nan))
    for rows, value, nothing in batches:
        found = {"a": torch.tensor(value), "b": torch.tensor(nothing), "c": value}
        seen.add(SimpleNamespace(observed=lambda found=found: found), rows)
    # a batch of which something else is known
    seen.add(SimpleNamespace(observed=lambda: {"a": torch.tensor(0.2), "d": 3.0}), 30)
    means = seen.means(ALONE)
    assert means["a"] == pytest.approx((5 + 16 + 6) / 60)
    assert means["c"] == pytest.approx((5 + 16) / 30) and means["d"] == 3.0
    assert math.isnan(means["b"])


def test_the_cap_is_drawn_beside_the_bounds():
    def epoch(**found: float) -> Epoch:
        return Epoch(epoch=1, train={}, seconds=0.0, dev={}, diagnostics=found)

    def names(entry: Epoch) -> dict[str, tuple]:
        picture = pictures.curves([[entry]], pictures.bounds, "bounds")
        lines = figures.draw(picture).axes[0].lines
        return {line.get_label(): (line.get_linestyle(), *line.get_ydata()) for line in lines}

    caps = {"mi_cap_nt_xent": 4.1, "mi_cap_info_nce": 3.5, "mi_cap_of_tomorrow": 1.0}
    found = names(epoch(mi_bound_audio=2.0, **caps))
    assert found["cap with one modality"] == ("--", 4.1) and found["cap with two"] == (":", 3.5)
    assert found.keys() == {"audio", "cap with one modality", "cap with two"}
    # of an earlier mer
    assert names(epoch(mi_bound_audio=2.0)).keys() == {"audio"}
