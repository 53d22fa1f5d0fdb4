"""The parts of DMD against plain loops, and what a whole DMD promises beyond the contract of every
model.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mer.fusion.losses.disentangle import orthogonality
from mer.fusion.losses.graph import (
    distillation,
    edge_regulariser,
    logit_distances,
    representation_distances,
)
from mer.fusion.losses.margin import cosines, margin_loss, margin_loss_as_published, mean_hinge
from mer.fusion.models.dmd import DMDConfig
from mer.fusion.modules.crossmodal import CrossModalEncoder
from mer.fusion.modules.graph_distillation import GDUnit, pairs
from mer.pipeline.errors import DataError

from tests.fusion.models import absent, make_batch, make_model, make_spec, total

ALL = ("audio", "text", "vision")
LVA = ("text", "vision", "audio")


# --- margin loss


def hinge_in_loops(similarity, positive, negative, margin):
    anchors = []
    for i in range(len(similarity)):
        costs = [
            max(0.0, margin[i][n] - similarity[i][p] + similarity[i][n])
            for p in range(len(similarity[i])) if positive[i][p]
            for n in range(len(similarity[i])) if negative[i][n]
        ]  # fmt: skip
        if costs:
            anchors.append(sum(costs) / len(costs))
    return sum(anchors) / max(len(anchors), 1)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 9))
def test_mean_hinge_equals_loops(seed, a, n):
    g = torch.Generator().manual_seed(seed)
    # Steps of 1/8 so that ties between a positive and a threshold occur.
    similarity = (torch.randint(-8, 9, (a, n), generator=g) / 8).double()
    margin = (torch.randint(0, 5, (a, n), generator=g) / 8).double()
    kind = torch.randint(0, 3, (a, n), generator=g)
    expected = hinge_in_loops(
        similarity.tolist(), (kind == 1).tolist(), (kind == 2).tolist(), margin.tolist()
    )
    assert mean_hinge(similarity, kind == 1, kind == 2, margin).item() == pytest.approx(
        expected, abs=1e-12
    )


def test_mean_hinge_gradient():
    torch.manual_seed(0)
    similarity = torch.randn(4, 7, dtype=torch.double, requires_grad=True)
    kind = torch.randint(0, 3, (4, 7))
    assert torch.autograd.gradcheck(lambda s: mean_hinge(s, kind == 1, kind == 2, 0.3), similarity)


def test_margin_loss_pairs():
    """Anchors, positives of another modality and the same class, negatives of the same modality and
    another class; nothing else.
    """
    torch.manual_seed(1)
    m, b = 3, 5
    x, label = torch.randn(m, b, 4, dtype=torch.double), torch.tensor([0, 1, 0, 2, -1])
    present = torch.ones(m, b, dtype=torch.bool)
    present[1, 0] = False
    similarity = cosines(x.flatten(0, 1)).tolist()
    usable = [(i, k) for i in range(m) for k in range(b) if present[i, k] and label[k] >= 0]
    everyone = [(i, k) for i in range(m) for k in range(b)]
    positive = [
        [
            p in usable and q in usable and p[0] != q[0] and label[p[1]] == label[q[1]]
            for q in everyone
        ]
        for p in everyone
    ]
    negative = [
        [
            p in usable and q in usable and p[0] == q[0] and label[p[1]] != label[q[1]]
            for q in everyone
        ]
        for p in everyone
    ]
    expected = hinge_in_loops(similarity, positive, negative, [[0.15] * (m * b)] * (m * b))
    assert expected > 0
    loss = margin_loss(x, label[:, None] == label[None], label >= 0, present)
    assert loss.item() == pytest.approx(expected, abs=1e-12)


def test_margin_loss_of_one_class_is_zero_and_differentiable():
    x = torch.randn(2, 4, 3, requires_grad=True)
    loss = margin_loss(
        x,
        torch.ones(4, 4, dtype=torch.bool),
        torch.ones(4, dtype=torch.bool),
        torch.ones(2, 4, dtype=torch.bool),
    )
    loss.backward()
    assert loss == 0 and (x.grad == 0).all()


def test_published_margin_loss(test_data):
    """All of the authors' cases, those without an anchor and those with nearly equal floats
    included.
    """
    from tests.fusion.test_dmd_golden import load

    arrays, _ = load(test_data / "golden" / "dmd_losses.npz")
    cases = {k.split("/")[1] for k in arrays if k.startswith("hinge/")}
    assert len(cases) >= 5
    for case in cases:
        ids, feats = (torch.from_numpy(arrays[f"hinge/{case}/{k}"]) for k in ("ids", "feats"))
        assert margin_loss_as_published(feats, ids.flatten()).item() == pytest.approx(
            float(arrays[f"hinge/{case}/loss32"]), abs=1e-5
        )


# --- graph distillation


@pytest.mark.parametrize("modalities", [LVA, ("text", "audio")], ids="+".join)
@pytest.mark.parametrize("softmax", ["all", "incoming"])
def test_edges_are_distributions(modalities, softmax):
    torch.manual_seed(0)
    graph = GDUnit(modalities, 2, 4, 3, space="homo", softmax=softmax)
    m = len(modalities)
    edges = graph(torch.randn(m, 6, 2), torch.randn(m, 6, 4))
    assert edges.shape == (m * (m - 1), 6) and (edges >= 0).all()
    if softmax == "all":
        torch.testing.assert_close(edges.sum(0), torch.ones(6))
    else:
        torch.testing.assert_close(edges.unflatten(0, (m, -1)).sum(1), torch.ones(m, 6))
    total_prior = graph.prior.sum().item()
    assert total_prior == pytest.approx(1 if softmax == "all" else m)


def test_each_edge_weighs_its_own_pair():
    """A one-hot weight on edge e must cost the distance of exactly its student and teacher."""
    graph = GDUnit(LVA, 1, 4, 3, space="homo")
    logits = torch.tensor([0.0, 1.0, 3.0]).view(3, 1, 1)
    distances = logit_distances(logits, graph.student, graph.teacher, task="regression")
    index = {n: i for i, n in enumerate(LVA)}
    for e, (s, t) in enumerate(pairs(LVA)):
        weight = torch.zeros(6, 1)
        weight[e] = 1
        assert (
            distillation(distances, weight).item()
            == abs(logits[index[s]] - logits[index[t]]).item()
        )
    assert graph.names()[0] == "vision->text"  # teacher -> student


@pytest.mark.parametrize("task", ["single", "multi", "regression"])
def test_logit_distances(task):
    """0 for equal logits, positive for others, and teachers get no gradient."""
    torch.manual_seed(0)
    logits = torch.randn(2, 5, 1 if task == "regression" else 3, requires_grad=True)
    ends = torch.tensor([0]), torch.tensor([1])
    same = torch.cat([logits[:1], logits[:1]])
    assert logit_distances(same, *ends, task=task).abs().max() < 1e-5
    distance = logit_distances(logits, *ends, task=task)
    assert distance.shape == (1, 5) and (distance > 0).all()
    distance.sum().backward()
    assert (logits.grad[1] == 0).all() and (logits.grad[0] != 0).any()


def test_single_label_distance_is_a_tempered_divergence():
    s, t, temperature = torch.tensor([1.0, 0.0, -1.0]), torch.tensor([0.5, 2.0, 0.0]), 4.0
    p, q = ([math.exp(v / temperature) for v in z.tolist()] for z in (t, s))
    p, q = ([v / sum(z) for v in z] for z in (p, q))
    expected = temperature**2 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    value = logit_distances(
        torch.stack([s, t])[:, None],
        torch.tensor([0]),
        torch.tensor([1]),
        task="single",
        temperature=temperature,
    )
    assert value.item() == pytest.approx(expected, rel=1e-5)


def test_absent_modalities_have_no_edges():
    torch.manual_seed(0)
    graph = GDUnit(LVA, 1, 4, 3, space="homo")
    present = torch.tensor([[True, True, True], [True, False, False], [True, True, False]])
    edges = graph(torch.randn(3, 3, 1), torch.randn(3, 3, 4), present)
    weights = graph.weights(edges, present)
    named = dict(zip(graph.names(), range(6), strict=True))
    assert (weights[:, 0] > 0).all()
    for name, e in named.items():
        assert (weights[e, 1] > 0) == ("vision" not in name)
    assert (weights[:, 2] == 0).all() and edges[:, 1].sum().item() == pytest.approx(1)
    complete = (edges[:, 0] - 1 / 6).square().sum()  # the first row alone
    assert edge_regulariser(edges, graph.prior, present.all(0)).item() == pytest.approx(
        complete.item(), rel=1e-4
    )


def test_regulariser_holds_the_mean_edge_at_the_prior():
    edges = torch.tensor([[0.2, 0.4], [0.8, 0.6]])
    assert edge_regulariser(
        edges, torch.tensor([0.3, 0.7]), torch.tensor([True, True])
    ).item() == pytest.approx(0)
    assert edge_regulariser(
        edges, torch.tensor([0.5, 0.5]), torch.tensor([True, True])
    ).item() == pytest.approx(2 * 0.2**2)


def test_representation_distance_of_equal_rows():
    x = torch.randn(1, 4, 6).expand(2, 4, 6)
    ends = torch.tensor([0]), torch.tensor([1])
    assert representation_distances(x, *ends, kind="match").abs().max() < 1e-6
    assert representation_distances(x, *ends, kind="l1").abs().max() == 0


# --- the other parts


def test_orthogonality_reads_features_of_real_steps():
    s = torch.tensor([[[1.0, 0.0], [1.0, 1.0], [9.0, 9.0]]])
    c = torch.tensor([[[0.0, 2.0], [2.0, 2.0], [torch.nan, 0.0]]])
    mask = torch.tensor([[True, True, False]])
    assert orthogonality(s, c, mask).item() == pytest.approx(0.5)  # orthogonal, then equal
    assert orthogonality(s[:, :1], c[:, :1], mask[:, :1]).item() == 0


def test_encoder_without_a_source_step_gives_the_query_back():
    """No key to attend to: attention adds its output bias only, here 0."""
    torch.manual_seed(0)
    encoder = CrossModalEncoder(8, 2, 1).eval()
    x, source = torch.randn(2, 3, 8), torch.randn(2, 4, 8)
    none = torch.tensor([[True] * 4, [False] * 4])
    masks = dict(mask=torch.ones(2, 3, dtype=torch.bool), source_mask=none)
    out = encoder(x, source, **masks)
    changed = encoder(x, torch.randn(2, 4, 8), **masks)
    assert out.isfinite().all() and not torch.equal(out[0], changed[0])
    torch.testing.assert_close(out[1], changed[1])


def test_causal_encoder_sees_no_later_step():
    torch.manual_seed(0)
    encoder = CrossModalEncoder(8, 2, 2, causal=True).eval()
    x, source = torch.randn(1, 4, 8), torch.randn(1, 8, 8)
    later = source.clone()
    # the second half, which query steps 0 and 1 of 4 must not see
    later[:, 4:] = torch.randn(1, 4, 8)
    a, b = encoder(x, source), encoder(x, later)
    torch.testing.assert_close(a[:, :2], b[:, :2])
    assert not torch.allclose(a[:, 2:], b[:, 2:])


# --- the model


@pytest.mark.parametrize("name", ["dmd", "dhmd"])
def test_one_modality_is_refused_in_one_line(name):
    with pytest.raises(DataError, match="needs two; got only text: use --model text"):
        make_model(name, make_spec(("text",)))


def test_wrong_switches_are_named():
    with pytest.raises(
        ValueError, match="unknown 'gates' .did you mean 'no_gate'..; known: all, valid"
    ):
        DMDConfig(as_published=("gates",))
    with pytest.raises(ValueError, match="not divisible"):
        DMDConfig(width=30, heads=4)


@pytest.mark.parametrize("name", ["dmd", "dhmd"])
def test_utterance_vectors(name):
    """T = 1 everywhere, as in corpora of utterance-level features."""
    spec = make_spec(ALL, "regression")
    batch = make_batch(spec)
    short = replace(
        batch,
        x={m: x[:, :1] for m, x in batch.x.items()},
        lengths={m: torch.ones(8, dtype=torch.long) for m in ALL},
    )
    loss, terms = total(make_model(name, spec), short)
    assert loss.isfinite() and all(t.isfinite() for t in terms.values())


def test_flattening_names_the_length_it_needs():
    model = make_model(
        "dmd",
        make_spec(ALL),
        as_published=("flatten",),
        length_audio=4,
        length_text=8,
        length_vision=8,
    )
    with pytest.raises(DataError, match="audio: 9 steps.*set model_args.length_audio"):
        model(make_batch(make_spec(ALL)))


def test_valid_convolution_names_the_kernel():
    model = make_model("dmd", make_spec(ALL), as_published=("valid_convolution",), kernel_vision=7)
    with pytest.raises(
        DataError, match="vision: 3 steps are fewer than the convolution's kernel 7"
    ):
        model(make_batch(make_spec(ALL)))


@pytest.mark.parametrize("task", ["single", "multi", "regression"])
@pytest.mark.parametrize("modalities", [ALL, ("audio", "text")], ids="+".join)
def test_as_published_trains_on_every_task(task, modalities):
    spec = make_spec(modalities, task)
    lengths = dict(length_audio=9, length_text=9, length_vision=9)
    model = make_model("dmd", spec, as_published=("all",), **lengths)
    loss, terms = total(model, make_batch(spec))
    loss.backward()
    assert all(t.isfinite() for t in terms.values())


@pytest.mark.parametrize("name", ["dmd", "dhmd"])
def test_bf16_autocast(name):
    """Losses come out in float32, finite, and near those without autocast."""
    spec = make_spec(ALL)
    model, batch = make_model(name, spec).eval(), make_batch(spec)
    _, plain = total(model, batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, terms = total(model, batch)
    loss.backward()
    for k, value in terms.items():
        assert value.dtype == torch.float32, k
        assert value.item() == pytest.approx(plain[k].item(), rel=0.1, abs=0.02), k
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_edges_are_logged_and_ignore_absent_modalities():
    spec = make_spec(ALL)
    model = make_model("dmd", spec)
    model.losses(make_batch(spec), 0.0)
    logged = model.diagnostics()
    for space in ("homo", "hetero"):
        names = [k for k in logged if k.startswith(f"edge/{space}/")]
        assert len(names) == 6 and sum(logged[k] for k in names) == pytest.approx(1, abs=1e-5)
    assert "edge/homo/text->audio" in logged
    model.losses(absent(make_batch(spec), "vision", list(range(8))), 0.0)
    logged = model.diagnostics()
    assert all(v == 0 for k, v in logged.items() if "vision" in k)
