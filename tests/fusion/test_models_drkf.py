"""What is particular to DRKF: which term reaches what, and what every switch does."""

from __future__ import annotations

import dataclasses
import inspect
from dataclasses import replace

import pytest
import torch

import mer.fusion.ops as ops
from mer.fusion.losses import info_nce, nt_xent
from mer.fusion.models.drkf import DRKFConfig, balanced_accuracy
from mer.fusion.modules.kf import LinearFusion
from mer.fusion.modules.pooling import masked_mean
from mer.pipeline.errors import DataError

from tests.fusion.models import absent, make_batch, make_model, make_spec, total


def reached(model, term: torch.Tensor) -> set[str]:
    """First part of the names of the parameters with a gradient that is not zero."""
    named = list(model.named_parameters())
    grads = torch.autograd.grad(term, [p for _, p in named], retain_graph=True, allow_unused=True)
    return {
        name.split(".")[0]
        for (name, _), g in zip(named, grads, strict=True)
        if g is not None and g.any()
    }


def terms_of(spec=None, **args):
    spec = spec or make_spec()
    model = make_model("drkf", spec, **args)
    return model, model.losses(make_batch(spec), 1.0)


def test_terms_and_weights_by_name():
    model, terms = terms_of()
    want = {
        "ec": 1,
        "uni_audio": 0.2,
        "uni_text": 0.2,
        "mi_audio": 0.2,
        "mi_text": 0.2,
        "mi_audio_text": 0.2,
    }
    want |= {"rec_audio": 0.2, "rec_text": 0.2, "kl_audio": 1, "kl_text": 1, "ed": 0.2}
    assert model.weights(1.0) == want and set(terms) == set(want)


def test_three_modalities_average_the_cross_terms():
    model, terms = terms_of(make_spec(("audio", "text", "vision")))
    weights = model.weights(1.0)
    cross = {"mi_audio_text", "mi_audio_vision", "mi_text_vision"}
    assert cross <= set(terms) and all(weights[name] == pytest.approx(0.2 / 3) for name in cross)


def test_one_modality_has_no_cross_term_and_no_ed():
    model, terms = terms_of(make_spec(("text",)))
    assert (
        set(terms)
        == set(model.weights(1.0))
        == {"ec", "uni_text", "mi_text", "rec_text", "kl_text"}
    )
    assert model.eval()(make_batch(model.spec)).disagreement is None


def test_what_each_term_reaches():
    model, terms = terms_of()
    assert reached(model, terms["ec"]) == {"adapter", "fe", "ec"}
    assert reached(model, terms["ed"]) == {"adapter", "fe", "ed"}
    assert reached(model, terms["uni_audio"]) == {"adapter", "unimodal"}
    assert reached(model, terms["mi_audio"]) == {
        "adapter",
        "autoencoder",
        "projection",
        "temperature",
    }
    assert reached(model, terms["mi_audio_text"]) == {"adapter", "projection", "temperature"}
    assert reached(model, terms["kl_audio"]) == {"adapter", "autoencoder", "unimodal"}


def test_reconstruction_does_not_move_what_it_reconstructs():
    """Acceptance 6.5."""
    for stop, adapter in (("both", False), ("target", True), ("none", True)):
        model, terms = terms_of(rec_stop=stop)
        assert reached(model, terms["rec_audio"]) == {"autoencoder"} | (
            {"adapter"} if adapter else set()
        )


def test_mi_changes_the_gradient_of_the_adapter():
    """Acceptance 6.6, first half."""
    grads = []
    for w in (0.0, 0.2):
        model = make_model("drkf", make_spec(), w_mi=w, w_cross=w).eval()
        torch.manual_seed(0)
        total(model, make_batch(model.spec))[0].backward()
        grads.append(model.adapter["audio"].linear.weight.grad.clone())
    assert (grads[0] - grads[1]).abs().max() > 1e-5


def test_with_fe_on_raw_features_orl_cannot_reach_the_prediction():
    """Acceptance 6.6, second half: the published wiring, with frozen encoders."""
    model, terms = terms_of(fe_input="raw")
    on_the_way = {"fe", "ec", "fe_adapter"}
    assert reached(model, terms["ec"]) == on_the_way
    for name in terms.keys() - {"ec", "ed"}:
        assert not reached(model, terms[name]) & on_the_way, name


def test_kl_of_audio_knows_nothing_of_text():
    """Acceptance 6.1: the authors' audio term is computed from the text tensors (defect 3)."""
    spec = make_spec()
    model, batch = make_model("drkf", spec).eval(), make_batch(spec)
    for kind in ("label", "posterior"):
        model.config = replace(model.config, kl_target=kind)
        before = model.losses(batch, 1.0)["kl_audio"]
        other = {
            m: replace(batch, x={**batch.x, m: torch.randn_like(batch.x[m])})
            for m in ("audio", "text")
        }
        assert torch.equal(model.losses(other["text"], 1.0)["kl_audio"], before)
        assert model.losses(other["audio"], 1.0)["kl_audio"] != before


def test_progressive_options():
    assert [
        terms_of(progressive="ramp", progressive_share=0.5)[0].weights(p)["kl_audio"]
        for p in (0.0, 0.25, 0.5, 1.0)
    ] == [0, 0.5, 1, 1]
    assert terms_of(progressive="off")[0].weights(0.0)["kl_audio"] == 1
    model, _ = terms_of(progressive="blocks", progressive_share=0.5)
    active = []
    for progress in (0.0, 0.2, 0.5):
        model.losses(make_batch(model.spec), progress)
        active.append(model.diagnostics()["ae_blocks"])
    assert active == [1, 2, 3] and model.weights(0.0)["kl_audio"] == 1


@pytest.mark.parametrize(
    "field, gone",
    [
        ("w_mi", {"mi_audio", "mi_text"}),
        ("w_cross", {"mi_audio_text"}),
        ("w_rec", {"rec_audio", "rec_text"}),
        ("w_kl", {"kl_audio", "kl_text"}),
        ("w_uni", {"uni_audio", "uni_text"}),
        ("w_ed", {"ed"}),
    ],
)
def test_a_weight_of_zero_removes_its_terms(field, gone):
    everything = set(terms_of()[1])
    model, terms = terms_of(**{field: 0.0})
    assert set(terms) == set(model.weights(1.0)) == everything - gone


CHANGES = {
    "positions": "learned",
    "fe_input": "raw",
    "mi_projection": "raw",
    "mi_direction": "first",
    "kl_target": "posterior",
    "kl_smoothing": 0.3,
    "ed_natural": True,
    "tau": 0.5,
    "label_smoothing": 0.2,
    "ed_positives": 3,
    "rec_stop": "none",
    "ae_noise": 0.5,
}


@pytest.mark.parametrize("field", CHANGES)
def test_every_switch_changes_the_objective(field):
    found = []
    for args in ({}, {field: CHANGES[field]}):
        model = make_model("drkf", make_spec(), **args)
        torch.manual_seed(0)
        loss, terms = total(model, make_batch(model.spec))
        loss.backward()
        found.append(
            torch.cat(
                [
                    loss.detach()[None],
                    *[p.grad.flatten()[:3] for p in model.parameters() if p.grad is not None],
                ]
            )
        )
    assert found[0].shape != found[1].shape or not torch.allclose(found[0], found[1], atol=1e-7)


def test_options_that_make_no_sense_are_one_line():
    for args, words in (
        ({"progressive": "slow"}, "off, ramp, blocks"),
        ({"mi_projection": "raw"}, "set d_p to 256"),
        ({"tau": 2.0}, "tau_low"),
        ({"ae_blocks": 0}, "at least one"),
        ({"layers": 0}, "at least one"),
        ({"ae_layers": ()}, "at least one width"),
        ({"ed_anchors": 0.0}, "w_ed=0"),
        ({"ed_jaccard": 5.0}, "above 0 and be at most 1"),
        ({"ed_jaccard": 0.0}, "above 0 and be at most 1"),
        ({"tau_lr_scale": -1.0}, "at least 0"),
        ({"regression_loss": "huber"}, "l1, mse"),
    ):
        with pytest.raises(DataError, match=words):
            DRKFConfig(**args)


def test_every_field_of_the_config_says_what_it_is():
    source = inspect.getsource(DRKFConfig).splitlines()
    before = ["", *source]  # a comment stands behind its field or on the line above
    said = {
        line.split(":")[0].strip()
        for line, above in zip(source, before, strict=False)
        if "  # " in line or above.strip().startswith("# ")
    }
    assert {f.name for f in dataclasses.fields(DRKFConfig)} <= said


def test_ed_learns_from_labels_and_ignores_natural_pairs_by_default():
    """On two modalities that each name the emotion, ED is learnable; and a mixed pair is then
    called a disagreement.
    """
    spec = make_spec()
    batch = make_batch(spec, 24)
    code = 3 * torch.eye(3)[batch.target]
    for m in spec.modalities:
        batch.x[m][:] = torch.cat([code, torch.zeros(24, spec.modalities[m] - 3)], 1)[:, None]
    # eval: no dropout
    model = make_model(
        "drkf", spec, w_ed=1.0, w_mi=0.0, w_cross=0.0, w_rec=0.0, w_kl=0.0, w_uni=0.0
    ).eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(100):
        loss, terms = total(model, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert terms["ed"] < 0.3 and model.diagnostics()["ed_balanced_accuracy"] > 0.9
    text, lengths = batch.x["text"].roll(1, 0), batch.lengths["text"].roll(1)
    mixed = replace(batch, x={**batch.x, "text": text}, lengths={**batch.lengths, "text": lengths})
    assert model(batch).disagreement.max() < 0.5 < model(mixed).disagreement.min()


def test_disagreement_is_unknown_where_there_is_nothing_to_compare():
    spec = make_spec()
    model = make_model("drkf", spec).eval()
    found = model(absent(make_batch(spec), "text", [2])).disagreement
    assert found.isnan().tolist() == [i == 2 for i in range(8)]


def test_diagnostics_bound_mutual_information():
    spec = make_spec()
    model = make_model("drkf", spec)
    model.losses(make_batch(spec), 0.5)
    d = model.diagnostics()
    assert (
        d["mi_bound_audio"] <= torch.tensor(15.0).log()
        and d["mi_bound_audio_text"] <= torch.tensor(8.0).log()
    )
    assert (
        -1 <= d["cosine_text"] <= 1
        and d["tau"] == pytest.approx(0.1)
        and d["ramp"] == 1.0
        and d["ae_blocks"] == 3
    )


@pytest.mark.parametrize("impl", ["auto", "eager"])
@pytest.mark.parametrize("direction", ["both", "first"])
def test_mutual_information_is_one_call_over_complete_rows_and_equals_the_equations(
    monkeypatch, direction, impl
):
    """Three modalities, six terms; a row that lacks a modality leaves the terms of that one."""
    calls = []
    fused = ops.contrastive_terms
    monkeypatch.setattr(
        ops, "contrastive_terms", lambda *a, **k: calls.append(len(a[2])) or fused(*a, **k)
    )
    spec = make_spec(("audio", "text", "vision"))
    model = make_model("drkf", spec, mi_direction=direction, impl=impl).eval()
    complete = make_batch(spec)
    for batch, gone, want in (
        (complete, set(), [6]),
        (absent(complete, "text", [2, 5]), {2, 5}, [1] * 6),
        (absent(complete, "text", list(range(8))), set(range(8)), [1] * 3),
    ):
        calls.clear()
        terms = model.losses(batch, 1.0)
        assert calls == ([] if impl == "eager" else want)
        rows = {
            m: torch.tensor([i for i in range(8) if m != "text" or i not in gone])
            for m in spec.modalities
        }
        for name, (m, n) in {
            "mi_audio": ("audio", "audio"),
            "mi_text": ("text", "text"),
            "mi_audio_text": ("audio", "text"),
            "mi_audio_vision": ("audio", "vision"),
        }.items():
            both = [i for i in rows[m].tolist() if i in rows[n].tolist()]
            assert (name in terms) == bool(both)
            if not both:
                continue
            mask = {k: batch.mask(k) for k in (m, n)}
            h = {k: model.adapter[k](batch.x[k], mask[k]) for k in (m, n)}
            x, y = (model.projection[k](masked_mean(h[k], mask[k])[both]) for k in (m, n))
            tau = model.temperature()
            if m == n:
                augmented = masked_mean(model.augment(m, h[m], 1.0), mask[m])[both]
                loss = nt_xent(x, model.projection[m](augmented), temperature=tau, impl="eager")
            else:
                symmetric = direction == "both"
                loss = info_nce(x, y, temperature=tau, symmetric=symmetric, impl="eager")
            torch.testing.assert_close(terms[name], loss, rtol=1e-5, atol=1e-6)


def test_balanced_accuracy():
    said, truth = torch.tensor([True, True, False, True]), torch.tensor([True, False, False, False])
    assert balanced_accuracy(said, truth, torch.ones(4, dtype=torch.bool)).item() == pytest.approx(
        (1 + 1 / 3) / 2
    )
    assert balanced_accuracy(said, truth, torch.tensor([True, False, True, False])).item() == 1.0
    assert balanced_accuracy(said, truth, truth).isnan()


def test_presets_name_only_what_exists():
    from mer.fusion.config import load

    small, paper = load(preset="drkf").model_args, load(preset="drkf-paper").model_args
    assert small == DRKFConfig()
    more_of_ed = {"model_args": replace(small, ed_anchors=1.0, w_ed=1.0)}
    assert load(preset="drkf-ed") == replace(load(preset="drkf"), **more_of_ed)
    assert (paper.d, paper.layers, paper.heads, paper.ffn, paper.ae_layers) == (
        1024,
        6,
        8,
        4096,
        (256, 128, 64),
    )


def test_linear_fusion_is_a_layer_on_the_means_of_what_is_there():
    fe = LinearFusion(("audio", "text"), 2, turns=False)
    for name, scale in (("audio", 1.0), ("text", 10.0)):
        fe.linear[name].weight.data = scale * torch.eye(2)
        fe.linear[name].bias.data.zero_()
    # means (1, 2) and (1, 0); the second row has no text, the third nothing at all
    h = {
        "audio": torch.tensor([[[0.0, 4.0], [2.0, 0.0]]] * 3),
        "text": torch.tensor([[[1.0, 0.0], [9.0, 9.0]]] * 3),
    }
    mask = {
        "audio": torch.tensor([[True, True], [True, True], [False, False]]),
        "text": torch.tensor([[True, False], [False, False], [False, False]]),
    }
    z, attention = fe(h, mask, attention=True)
    # the layer norm of two numbers says which is larger: (11, 2), (1, 2), (0, 0)
    assert z.round(decimals=2).tolist() == [[1.0, -1.0], [-1.0, 1.0], [0.0, 0.0]]
    assert attention is None
    model = make_model("drkf linear", make_spec()).eval()
    assert model(make_batch(make_spec())).attention is None


def test_class_weights_reach_the_kl():
    """Set, and as they come back with a checkpoint; and without them it is as it was."""
    spec = make_spec()
    model, batch = make_model("drkf", spec).eval(), make_batch(spec)
    before = model.losses(batch, 1.0)["kl_text"].item()
    assert not model.weighs
    model.set_class_weights(torch.tensor([5.0, 1.0, 0.1]))
    assert model.weighs
    after = model.losses(batch, 1.0)["kl_text"].item()
    assert abs(after - before) > 1e-3
    other = make_model("drkf", spec).eval()
    assert other.losses(batch, 1.0)["kl_text"].item() == before
    other.load_state_dict(model.state_dict())
    assert other.losses(batch, 1.0)["kl_text"].item() == after
