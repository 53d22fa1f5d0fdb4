from __future__ import annotations

import doctest
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mer.fusion.modules import kf, orl, pooling
from mer.fusion.modules.dropout import LockedDropout
from mer.fusion.modules.kf import Block, FusionEncoder, label_pairs, sample_pairs, sinusoids
from mer.fusion.modules.orl import (
    Adapter,
    ResidualAutoencoder,
    Temperature,
    active_blocks,
    ramp,
    twice,
)
from mer.fusion.modules.pooling import Moments, Standardise, masked_mean, masked_mean_std
from mer.pipeline.errors import DataError


@pytest.mark.parametrize("module", [kf, orl, pooling], ids=lambda m: m.__name__)
def test_doctests(module):
    assert doctest.testmod(module).failed == 0


# Pooling


def test_pooling_equals_the_unpadded_sequence_and_passes_no_nan_gradient():
    x = torch.randn(3, 5, 4)
    lengths = torch.tensor([5, 2, 0])
    mask = torch.arange(5) < lengths[:, None]
    padded = x.where(mask[..., None], torch.nan).requires_grad_()
    for pool, oracle in (
        (masked_mean, lambda r: r.mean(0)),
        (masked_mean_std, lambda r: torch.cat([r.mean(0), (r.var(0, correction=0) + 1e-8).sqrt()])),
    ):
        found = pool(padded, mask)
        for i, n in enumerate([5, 2]):
            assert torch.allclose(found[i], oracle(x[i, :n]), atol=1e-6)
        assert found[2].isfinite().all()
        assert torch.autograd.grad(found.square().sum(), padded)[0].isfinite().all()


def test_moments_of_chunks_equal_those_of_the_whole():
    x = 1000 + torch.randn(50, 3) * torch.tensor([1.0, 1e-2, 0.0])  # the last channel is constant
    x[:, 2] = 7.0
    moments = Moments()
    for chunk in x.split([1, 20, 0, 29]):
        moments.update(chunk)
    layer = Standardise(3)
    assert torch.equal(layer(x), x)  # the identity until told otherwise
    layer.set(moments)
    assert torch.allclose(layer.mean, x.double().mean(0).float())
    assert torch.allclose(layer.std[:1], x.double().std(0, correction=0)[:1].float())
    # a spread of 1e-5 of the offset is rounding of half-precision features
    assert layer.std[1:].tolist() == [1.0, 1.0]
    assert layer(x)[:, 2].abs().max() < 1e-6


# ORL


def test_adapter_ignores_padding_and_returns_zeros_there():
    adapter = Adapter(4, 6)
    x = torch.randn(2, 5, 4)
    mask = torch.arange(5) < torch.tensor([[5], [2]])
    found = adapter(x.where(mask[..., None], torch.nan), mask)
    assert torch.equal(found, adapter(x, mask))
    assert not found[~mask].any()


def test_fewer_active_blocks_leave_the_others_untrained():
    model, x = ResidualAutoencoder(8, (4, 2), 3), torch.randn(2, 5, 8)
    output, codes = model(x, active=2)
    assert output.shape == x.shape and codes.shape == (2, 5, 4)
    output.sum().backward()
    assert [any(p.grad is not None for p in block.parameters()) for block in model.encoders] == [
        True,
        True,
        False,
    ]


@pytest.mark.parametrize("used", [(True, True), (True, False), (False, True)])
def test_one_pass_for_both_has_the_gradients_of_two(used):
    """The input gets that of the first alone, the parameters those of both."""
    torch.manual_seed(0)
    model = ResidualAutoencoder(8, (4, 2), 3).double()
    h = torch.randn(2, 5, 8, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(2, 2, 5, 8, dtype=torch.float64)

    def call(x: torch.Tensor) -> torch.Tensor:
        return model(x)[0]

    gradients = []
    for views in (twice(call, h, model), (call(h), call(h.detach()))):
        terms = zip(views, weights, used, strict=True)
        total = sum((view * weight).sum() for view, weight, uses in terms if uses)
        inputs = [h, *model.parameters()]
        found = torch.autograd.grad(total, inputs, allow_unused=True, retain_graph=True)
        again = torch.autograd.grad(total, inputs, allow_unused=True)
        for a, b in zip(found, again, strict=True):
            assert (a is None and b is None) or torch.equal(a, b)
        gradients.append(found)
    assert (gradients[0][0] is None) == (not used[0])
    for ours, theirs in zip(*gradients, strict=True):
        if ours is not None or theirs is not None:
            torch.testing.assert_close(ours, theirs)
    with torch.no_grad():
        once, again = twice(call, h, model)
    assert torch.equal(once, call(h)) and torch.equal(once, again)


def test_schedules():
    assert [ramp(p, 0.2) for p in (0.0, 0.1, 0.2, 1.0)] == [0.0, 0.5, 1.0, 1.0]
    assert ramp(0.0, 0.0) == 1.0
    grown = [active_blocks(p / 100, 0.5, 5) for p in range(101)]
    assert (
        grown == sorted(grown)
        and grown[0] == 1
        and set(grown) == {1, 2, 3, 4, 5}
        and grown[50] == 5
    )
    assert active_blocks(0.0, 0.0, 5) == 5


def test_temperature_starts_where_told_and_stays_within_bounds():
    tau = Temperature(0.1, low=0.01, high=1.0)
    assert tau().item() == pytest.approx(0.1, abs=1e-6)
    for theta, limit in ((-50.0, 0.01), (50.0, 1.0)):
        with torch.no_grad():
            tau.theta.fill_(theta)
        assert tau().item() == pytest.approx(limit, abs=1e-6)


def test_locked_dropout_has_one_mask_for_all_steps():
    x = torch.ones(4, 7, 50)
    torch.manual_seed(0)
    y = LockedDropout(0.25)(x)
    assert torch.equal(y, y[:, :1].expand_as(y))
    assert y.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert not torch.equal(y[0], y[1])
    assert LockedDropout(0.25).eval()(x) is x


# KF


def encoder(**args) -> FusionEncoder:
    torch.manual_seed(0)
    options = {
        "layers": 2,
        "heads": 2,
        "ffn": 16,
        "dropout": 0.0,
        "positions": "sinusoidal",
        "max_positions": 12,
    } | args
    return FusionEncoder(("audio", "text"), 8, **options).eval()


def sequences(b: int = 3) -> tuple[dict, dict]:
    g = torch.Generator().manual_seed(1)
    h = {"audio": torch.randn(b, 6, 8, generator=g), "text": torch.randn(b, 4, 8, generator=g)}
    mask = {
        m: torch.arange(x.shape[1]) < torch.randint(1, x.shape[1] + 1, (b, 1), generator=g)
        for m, x in h.items()
    }
    return h, mask


@pytest.mark.parametrize("positions", ["sinusoidal", "learned"])
def test_reading_cls_alone_equals_the_whole_last_layer(positions):
    """The published wiring computes every row of the last layer and throws all but [CLS] away."""
    fe = encoder(positions=positions)
    h, mask = sequences()
    seen = {}
    last = fe.blocks[-1]
    hook = last.register_forward_hook(
        lambda _, args, kwargs, out: seen.update(x=args[0], keys=args[1]), with_kwargs=True
    )
    z, share = fe(h, mask, attention=True)
    hook.remove()
    assert torch.allclose(z, fe.norm(last(seen["x"], seen["keys"]))[:, 0], atol=1e-6)
    row = last.attention_row(seen["x"], seen["keys"])
    assert torch.allclose(row.sum(1), torch.ones(3)) and not row[~seen["keys"]].any()
    # [cls] 6 audio [sep] 4 text [sep]
    spans = torch.stack([row[:, 1:7].sum(1), row[:, 8:12].sum(1)], 1)
    assert torch.allclose(share, spans / spans.sum(1, keepdim=True))


def test_the_first_row_has_the_gradients_of_the_whole_layer():
    """No key and no value of it is computed; one row has nothing but its first step."""
    torch.manual_seed(0)
    block = Block(8, 2, 16, 0.0).double()
    x = torch.randn(3, 6, 8, dtype=torch.float64, requires_grad=True)
    keys = torch.arange(6) < torch.tensor([[6], [1], [4]])
    weights = torch.randn(3, 1, 8, dtype=torch.float64)
    inputs = [x, *block.parameters()]
    first, whole = block(x, keys, first=True), block(x, keys)[:, :1]
    torch.testing.assert_close(first, whole)
    ours, theirs = (torch.autograd.grad((y * weights).sum(), inputs) for y in (first, whole))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


def test_positions_start_anew_in_every_modality():
    """Text must not move when the longest clip of the batch grows (defect 18 of the
    authors' code).
    """
    fe = encoder()
    h, mask = sequences()
    longer = {"audio": torch.cat([h["audio"], torch.randn(3, 20, 8)], 1), "text": h["text"]}
    wider = {
        "audio": torch.cat([mask["audio"], torch.zeros(3, 20, dtype=torch.bool)], 1),
        "text": mask["text"],
    }
    assert torch.allclose(fe(h, mask)[0], fe(longer, wider)[0], atol=1e-6)


def test_order_of_steps_matters():
    fe = encoder()
    with torch.no_grad():
        fe.position_scale.fill_(1.0)
    h, _ = sequences()
    mask = {m: torch.ones(x.shape[:2], dtype=torch.bool) for m, x in h.items()}
    assert not torch.allclose(
        fe(h, mask)[0], fe({m: x.flip(1) for m, x in h.items()}, mask)[0], atol=1e-4
    )


def test_bad_options_are_one_line():
    with pytest.raises(DataError, match="sinusoidal, learned"):
        encoder(positions="rotary")
    with pytest.raises(DataError, match="3 heads"):
        encoder(heads=3)
    with pytest.raises(DataError, match="max_positions = 4"):
        encoder(positions="learned", max_positions=4)(*sequences())


def test_sinusoids_by_the_formula():
    table = sinusoids(3, 4, device=torch.device("cpu"), dtype=torch.float64)
    assert table[2].tolist() == pytest.approx(
        [math.sin(2), math.sin(0.02), math.cos(2), math.cos(0.02)]
    )
    assert sinusoids(3, 5, device=torch.device("cpu"), dtype=torch.float64).shape == (3, 5)


# Pairs of emotion discrimination


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 3), max_size=9))
def test_label_pairs_equal_the_double_loop(labels):
    """Acceptance 6.4."""
    y = torch.tensor(labels, dtype=torch.int64)
    i, j, same = label_pairs(y[:, None] == y[None])
    loop = [
        (a, b, labels[a] == labels[b])
        for a in range(len(labels))
        for b in range(len(labels))
        if a != b
    ]
    assert list(zip(i.tolist(), j.tolist(), same.tolist(), strict=True)) == loop


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=12),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(0, 100),
)
def test_sampled_pairs_are_right_distinct_and_as_many_as_there_are(
    labels, positives, negatives, seed
):
    y = torch.tensor(labels)
    same = y[:, None] == y[None]
    other = ~torch.eye(len(y), dtype=torch.bool)
    j, target, valid = sample_pairs(
        same,
        other,
        positives=positives,
        negatives=negatives,
        generator=torch.Generator().manual_seed(seed),
    )
    for a in range(len(y)):
        for kind, wanted in ((True, positives), (False, negatives)):
            chosen = [
                int(p)
                for p, t, v in zip(j[a], target[a], valid[a], strict=True)
                if v and bool(t) == kind
            ]
            pool = [b for b in range(len(y)) if b != a and (labels[b] == labels[a]) == kind]
            assert len(chosen) == len(set(chosen)) == min(wanted, len(pool))
            assert set(chosen) <= set(pool)


def test_sampled_pairs_are_balanced_and_uniform():
    """Acceptance 6.4: half of the pairs are positives where labels allow it; every partner comes
    up.
    """
    g = torch.Generator().manual_seed(0)
    y = torch.randint(0, 4, (64,), generator=g)
    same, other = y[:, None] == y[None], ~torch.eye(64, dtype=torch.bool)
    count = torch.zeros(64, 64)
    for _ in range(300):
        j, target, valid = sample_pairs(same, other, positives=1, negatives=1, generator=g)
        assert valid.all() and target.float().mean() == 0.5
        count.scatter_add_(1, j, torch.ones_like(j, dtype=torch.float))
    pool = (same & other)[0].nonzero()[:, 0]
    assert (count[0, pool] > 0).all() and count[0, pool].max() < 5 * count[0, pool].mean()


def test_one_class_and_one_row_give_no_negatives_and_no_pairs():
    one = torch.ones(4, 4, dtype=torch.bool)
    _, target, valid = sample_pairs(one, ~torch.eye(4, dtype=torch.bool), positives=1, negatives=1)
    assert valid[target].all() and not valid[~target].any()
    assert not sample_pairs(
        one[:1, :1], torch.zeros(1, 1, dtype=torch.bool), positives=2, negatives=1
    )[2].any()
