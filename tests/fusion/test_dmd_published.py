"""Each switch of `as_published`, one by one: what the public code gives, what is right, and by how
much they differ.

All numbers come from the golden excerpt (three utterances, the second padded from 8 steps to 8 with
zeros in text, audio, vision). The defects that belong to training rather than to the model (summed
and lost batches of an accumulation, test-set selection) are held by the trainer's tests.
"""

from __future__ import annotations

import pytest
import torch

from mer.fusion.losses.disentangle import orthogonality, orthogonality_over_batch
from mer.fusion.losses.graph import representation_distances
from mer.fusion.losses.margin import margin_loss, margin_loss_as_published
from mer.fusion.losses.supervised import same_emotion
from mer.fusion.models.dmd import PUBLISHED, DMDConfig
from mer.fusion.modules.crossmodal import band_mask, causal_mask
from mer.fusion.modules.decoupling import Decoupling
from mer.fusion.modules.graph_distillation import GDUnit
from mer.pipeline.errors import DataError

from tests.fusion.test_dmd_golden import EXCERPT, batch_of, build, load, with_graphs

LENGTHS = {
    "text": torch.tensor([8, 6, 8]),
    "audio": torch.tensor([8, 2, 8]),
    "vision": torch.tensor([8, 3, 8]),
}
WHOLE, PADDED = [0, 2], 1


def without(*names: str, **changes):
    """The excerpt's model with these switches off and all others on, and its batch with true
    lengths.
    """
    arrays, meta = load(EXCERPT)
    model = build(
        arrays, meta, as_published=tuple(n for n in PUBLISHED if n not in names), **changes
    )
    with torch.no_grad():
        return model.encode(batch_of(arrays, arrays["labels"], LENGTHS))


@pytest.fixture(scope="module")
def published():
    return without()


def test_every_switch_has_a_test():
    tested = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert set(PUBLISHED) <= tested


def test_valid_convolution():
    """Streams of 50 steps become 46, 50 and 48 under the MOSEI kernels 5, 1 and 3: the aligned
    corpus is no longer aligned.
    """
    widths, kernels = {"text": 4, "audio": 4, "vision": 4}, {"text": 5, "audio": 1, "vision": 3}
    x, mask = torch.randn(2, 50, 4), torch.ones(2, 50, dtype=torch.bool)
    steps = {
        valid: [
            Decoupling(widths, 4, kernels, valid=valid)(m, x, mask).origin.shape[1] for m in widths
        ]
        for valid in (True, False)
    }
    assert steps == {True: [46, 50, 48], False: [50, 50, 50]}
    with pytest.raises(
        DataError,
        match="text: 4 steps are fewer than the convolution's kernel 5; set model_args.kernel_text "
        "lower",
    ):
        Decoupling(widths, 4, kernels, valid=True)("text", x[:, :4], mask[:, :4])
    arrays, meta = load(EXCERPT)
    built = build(arrays, meta)
    with pytest.raises(
        DataError, match="length_text = 2 leaves no step to a convolution of kernel_text = 3"
    ):
        type(built)(DMDConfig(as_published=("all",), length_text=2), built.spec)


def test_flatten():
    """The flattened layers know one padded length; without them weights depend on no
    length at all.
    """
    arrays, meta = load(EXCERPT)
    fixed = DMDConfig(
        width=10, heads=2, as_published=("flatten",), length_text=8, length_audio=8, length_vision=8
    )
    longer = DMDConfig(
        width=10, heads=2, as_published=("flatten",), length_text=9, length_audio=8, length_vision=8
    )
    spec = build(arrays, meta).spec
    model = type(build(arrays, meta))
    count = {
        name: sum(p.numel() for p in model(c, spec).parameters())
        for name, c in (("8", fixed), ("9", longer))
    }
    # one more step of text: its alignment, homo head in and out (with bias), and its logit
    assert count["9"] - count["8"] == 10 * (10 + 10 + 10 + 1 + 1)
    free = [
        sum(
            p.numel() for p in model(DMDConfig(width=10, heads=2, length_text=n), spec).parameters()
        )
        for n in (8, 9, 500)
    ]
    assert len(set(free)) == 1


def test_no_padding_mask(published):
    """With the mask the padded utterance changes, the others do not."""
    right = without("no_padding_mask")
    for name in ("logits", "shared_logits"):
        a, b = getattr(published, name), getattr(right, name)
        torch.testing.assert_close(a[WHOLE], b[WHOLE], rtol=1e-5, atol=1e-5)
        assert (a[PADDED] - b[PADDED]).abs().item() > 0.01


def test_last_step(published):
    """The last real step instead of the last padded one: same for whole utterances, another
    prediction for the padded one.
    """
    right = without("last_step", "no_padding_mask", readout="last")
    coded = without("no_padding_mask")
    torch.testing.assert_close(published.last[:, WHOLE], right.last[:, WHOLE], rtol=1e-5, atol=1e-5)
    assert (coded.last[:, PADDED] - right.last[:, PADDED]).abs().max() > 0.1


def test_band_mask(published):
    """For equal lengths the band is causal; for 4 queries and 8 keys the first query sees five
    keys, where its time has one fourth of 8.
    """
    right = without("band_mask", causal=True)
    torch.testing.assert_close(published.logits, right.logits, rtol=1e-5, atol=1e-5)
    four, eight = torch.ones(1, 4, dtype=torch.bool), torch.ones(1, 8, dtype=torch.bool)
    assert band_mask(4, 8).sum(1).tolist() == [5, 6, 7, 8]
    assert causal_mask(four, eight)[0].sum(1).tolist() == [2, 4, 6, 8]
    assert torch.equal(causal_mask(four, four)[0], torch.ones(4, 4, dtype=torch.bool).tril())


def test_zero_positions(published):
    """Steps whose channel 0 vanishes get their position back: nothing else moves."""
    right = without("zero_positions")
    torch.testing.assert_close(published.logits[WHOLE], right.logits[WHOLE], rtol=1e-5, atol=1e-5)
    assert (published.logits[PADDED] - right.logits[PADDED]).abs().item() > 1e-3


def test_relu_representation(published):
    """The in-place ReLU hid the negative half from the GD-Unit."""
    right = without("relu_representation").homo_representation
    torch.testing.assert_close(right.relu(), published.homo_representation)
    assert published.homo_representation.min() == 0 and right.min() < -0.1


def test_no_gate(published):
    arrays, _ = load(EXCERPT)
    right = without("no_gate").logits
    # In the excerpt the lengths do not matter here: the mask is off in both.
    torch.testing.assert_close(
        right,
        torch.from_numpy(arrays["definition/output_logit_gated"]).float(),
        rtol=1e-5,
        atol=1e-5,
    )
    assert (right - published.logits).abs().max() > 0.1


def test_authors_prior():
    """.482 and .327 on the favoured edges, vision -> audio among them; uniform is 1/6."""
    authors = {
        s: GDUnit(("text", "vision", "audio"), 1, 4, 4, space=s, prior="authors")
        for s in ("homo", "hetero")
    }
    homo, hetero = (dict(zip(g.names(), g.prior.tolist(), strict=True)) for g in authors.values())
    assert [homo[e] for e in ("text->vision", "text->audio")] == pytest.approx(
        [0.482, 0.482], abs=1e-3
    )
    assert homo["vision->audio"] == pytest.approx(0.0088, abs=1e-4)
    assert [hetero[e] for e in ("text->vision", "text->audio", "vision->audio")] == pytest.approx(
        [0.327] * 3, abs=1e-3
    )
    assert GDUnit(
        ("text", "vision", "audio"), 1, 4, 4, space="homo"
    ).prior.tolist() == pytest.approx([1 / 6] * 6)


def test_homo_repr_unused():
    """126.06 times 0.05 is missing from the published total of 16.59."""
    total = {}
    for off in ((), ("homo_repr_unused",)):
        model, batch, arrays = with_graphs(as_published=tuple(n for n in PUBLISHED if n not in off))
        terms, weights = model.losses(batch, 0.0), model.weights(0.0)
        total[off] = sum(weights[k] * v.item() for k, v in terms.items())
    missing = total["homo_repr_unused",] - total[()]
    assert missing == pytest.approx(0.05 * float(arrays["loss/f32/loss_repr_homo"]), rel=1e-5)
    assert missing == pytest.approx(6.303, abs=1e-3)


def test_hetero_repr_repels():
    """Equal representations cost 1 as published and 0 when they are to match; opposite ones the
    other way round, 0 and 2.
    """
    x = torch.tensor([[[1.0, 2.0]], [[2.0, 4.0]], [[-1.0, -2.0]]])
    ends = torch.tensor([0, 0]), torch.tensor([1, 2])
    assert representation_distances(x, *ends, kind="repel").flatten().tolist() == pytest.approx(
        [1, 0]
    )
    assert representation_distances(x, *ends, kind="match").flatten().tolist() == pytest.approx(
        [0, 2], abs=1e-6
    )


def test_hetero_repr_reduced():
    """2.080226 as coded on the excerpt; weighed per sample it is another number, that of the plain
    sum.
    """
    value = {}
    for off in ((), ("hetero_repr_reduced",)):
        model, batch, arrays = with_graphs(as_published=tuple(n for n in PUBLISHED if n not in off))
        value[off] = 10 * model.losses(batch, 0.0)["hetero_representation"].item()
    assert value[()] == pytest.approx(2.080226, abs=1e-5)
    o = model.encode(batch)
    graph, x = model.graph["hetero"], o.hetero_representation
    edges = graph(o.hetero_logits, x)
    by_hand = 0.0
    for e, (s, t) in enumerate(zip(graph.student, graph.teacher, strict=True)):
        for b in range(3):
            cosine = torch.dot(x[s, b], x[t, b]) / (x[s, b].norm() * x[t, b].norm())
            by_hand += (edges[e, b] + graph.prior[e]).item() * max(0.0, cosine.item()) / 3
    assert value["hetero_repr_reduced",] == pytest.approx(10 * by_hand, abs=1e-5)
    assert abs(value["hetero_repr_reduced",] - value[()]) > 1e-3


def test_orthogonality(published):
    """0.796 summed over the batch axis, 0.349 over the features, and squared cosines see the
    opposite codes that max(0, cos) accepts.
    """
    arrays, _ = load(EXCERPT)
    parts = published.parts
    coded = sum(orthogonality_over_batch(p.specific, p.shared) for p in parts.values()).item()
    right = sum(
        orthogonality(p.specific, p.shared, p.mask, kind="hinge") for p in parts.values()
    ).item()
    assert (coded, right) == (pytest.approx(0.796309, abs=1e-5), pytest.approx(0.348997, abs=1e-5))
    for letter, m in (("l", "text"), ("v", "vision"), ("a", "audio")):
        for kind, key in (("hinge", "relu"), ("absolute", "abs"), ("squared", "sq")):
            value = orthogonality(
                parts[m].specific, parts[m].shared, parts[m].mask, kind=kind
            ).item()
            assert value == pytest.approx(
                float(arrays[f"loss/definition/ort_{letter}_{key}_mean"]), abs=1e-5
            )


def test_margin(published):
    """As coded, labels 1.2 and 1.2000003 are two classes, and the loss follows suit; rounded scores
    are one class.
    """
    x = published.aligned

    def coded(*labels):
        return margin_loss_as_published(x.flatten(0, 1), torch.tensor(labels).repeat(3)).item()

    def right(*labels):
        same, known = same_emotion(torch.tensor(labels)[:, None], task="regression")
        return margin_loss(x, same, known, torch.ones(3, 3, dtype=torch.bool)).item()

    assert coded(1.2, -0.6, 1.2) == pytest.approx(0.259500, abs=1e-5)
    assert abs(coded(1.2, -0.6, 1.2000003) - coded(1.2, -0.6, 1.2)) > 1e-3
    assert right(1.2, -0.6, 1.2000003) == right(1.2, -0.6, 1.2)
    assert abs(right(1.2, -0.6, 1.2) - coded(1.2, -0.6, 1.2)) > 1e-3


def test_unused_layers():
    """Six parameters of the published model never get a gradient; by default there are none of that
    kind.
    """
    model, batch, _ = with_graphs()
    terms, weights = model.losses(batch, 0.0), model.weights(0.0)
    sum(weights[k] * v for k, v in terms.items()).backward()
    idle = {n for n, p in model.named_parameters() if p.grad is None}
    assert idle == {f"unused.{m}.{kind}" for m in model.modalities for kind in ("weight", "bias")}
