"""DHMD: the dictionary, its monitors, and the ablations that each reconstructed choice has."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mer.fusion.losses import info_nce
from mer.fusion.modules.dictionary import (
    Dictionary,
    dead_atoms,
    jensen_shannon,
    sparsemax,
    top_atom_overlap,
    usage_entropy,
)

from tests.fusion.models import make_batch, make_model, make_spec, total

ALL = ("audio", "text", "vision")
EAGER = {"impl": "eager", "atoms": 8}


def simplex_projection(z: list[float]) -> list[float]:
    """By bisection on the threshold: sum max(0, z - t) falls from above 1 to 0 as t rises."""
    low, high = min(z) - 1, max(z)
    for _ in range(200):
        t = (low + high) / 2
        low, high = (t, high) if sum(max(0.0, v - t) for v in z) > 1 else (low, t)
    return [max(0.0, v - low) for v in z]


@settings(max_examples=80, deadline=None)
@given(st.lists(st.floats(-20, 20), min_size=1, max_size=12))
def test_sparsemax_is_the_projection_onto_the_simplex(z):
    p = sparsemax(torch.tensor(z, dtype=torch.double))
    assert p.tolist() == pytest.approx(simplex_projection(z), abs=1e-9)


def test_sparsemax_gradient_ties_and_shift():
    torch.manual_seed(0)
    z = torch.randn(3, 6, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(sparsemax, z)
    assert sparsemax(torch.zeros(4)).tolist() == [0.25] * 4
    torch.testing.assert_close(sparsemax(z + 100), sparsemax(z))
    assert sparsemax(torch.tensor([1e4, 0.0], dtype=torch.bfloat16)).tolist() == [1.0, 0.0]


def test_sparsemax_has_exact_zeros_where_softmax_has_none():
    z = torch.tensor([3.0, 1.0, 0.0])
    assert sparsemax(z).tolist() == [1.0, 0.0, 0.0] and (z.softmax(0) > 0).all()


def test_jensen_shannon():
    p, q = torch.tensor([0.5, 0.5, 0.0]), torch.tensor([0.0, 0.5, 0.5])
    mixture = [0.25, 0.5, 0.25]
    expected = -sum(m * math.log(m) for m in mixture) - math.log(2)
    assert jensen_shannon(p, q).item() == pytest.approx(expected, abs=1e-6)
    assert jensen_shannon(p, p).item() == pytest.approx(0, abs=1e-7)
    logits = torch.tensor([5.0, 0.0, -5.0], requires_grad=True)
    jensen_shannon(sparsemax(logits), q).backward()  # zeros on both sides
    assert logits.grad.isfinite().all()


def test_monitors():
    even, one = torch.full((1, 8), 0.125), torch.eye(8)[:1]
    assert usage_entropy(even).item() == pytest.approx(1) and usage_entropy(
        one
    ).item() == pytest.approx(0)
    assert dead_atoms(even).item() == 0 and dead_atoms(one).item() == pytest.approx(7 / 8)
    activation = torch.zeros(2, 3, 4)
    activation[0, :, 1] = activation[1, 0, 1] = activation[1, 1, 2] = activation[1, 2, 3] = 1.0
    present = torch.ones(2, 3, dtype=torch.bool)
    assert top_atom_overlap(activation, present).item() == pytest.approx(1 / 3)
    present[1, 1:] = False
    assert top_atom_overlap(activation, present).item() == 1


@pytest.mark.parametrize(
    "shared,activation", list(product([True, False], ["sparsemax", "softmax"]))
)
def test_dictionary(shared, activation):
    """Activations on the simplex, unit codes that are mixtures of atoms, and padding that is never
    the strongest step.
    """
    torch.manual_seed(0)
    book = Dictionary(ALL, 6, 5, shared=shared, activation=activation)
    assert book.atoms.shape[0] == (1 if shared else 3)
    x = {m: torch.randn(4, 7, 6) for m in ALL}
    masks = {m: torch.arange(7) < torch.tensor([7, 3, 1, 0])[:, None] for m in ALL}
    found = book(x, masks)
    assert found.activation.shape == (3, 4, 5) and found.code.shape == (3, 4, 6)
    torch.testing.assert_close(found.activation[:, :3].sum(-1), torch.ones(3, 3))
    torch.testing.assert_close(found.code[:, :3].norm(dim=-1), torch.ones(3, 3))
    assert (found.activation[:, 3] == 0).all() and (found.code[:, 3] == 0).all()
    louder = {m: torch.where(masks[m][..., None], v, 1e3) for m, v in x.items()}
    torch.testing.assert_close(book(louder, masks).activation, found.activation)


def test_code_by_hand():
    """One atom wins outright: the code is that atom's direction."""
    book = Dictionary(("text",), 2, 2, temperature=0.01)
    with torch.no_grad():
        book.atoms.copy_(torch.tensor([[[3.0, 4.0], [-3.0, -4.0]]]))
    book.query["text"] = torch.nn.Identity()
    found = book({"text": torch.tensor([[[1.0, 1.0]]])}, {"text": torch.tensor([[True]])})
    assert found.activation.tolist() == [[[1.0, 0.0]]]
    assert found.code.flatten().tolist() == pytest.approx([0.6, 0.8])


# --- the model


@pytest.mark.parametrize("stage", ["coarse", "fine", "both"])
def test_stages(stage):
    spec = make_spec(ALL)
    model, batch = make_model("dhmd", spec, stage=stage, **EAGER), make_batch(spec)
    loss, terms = total(model, batch)
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    assert ("homo_logit" in terms) == (stage != "fine")
    assert ("homo_dictionary" in terms) == (stage != "coarse") == ("hetero_activation" in terms)
    logged = model.diagnostics()
    assert any(k.startswith("edge/") for k in logged) == (stage != "fine")
    assert any(k.startswith("dictionary/") for k in logged) == (stage != "coarse")


def test_coarse_is_dmd():
    """The same parameters, outputs and terms as DMD from the same seed."""
    spec = make_spec(ALL)
    coarse, dmd = make_model("dhmd", spec, stage="coarse").eval(), make_model("dmd", spec).eval()
    assert dict(coarse.state_dict()).keys() == dict(dmd.state_dict()).keys()
    coarse.load_state_dict(dmd.state_dict())
    batch = make_batch(spec)
    assert torch.equal(coarse(batch).logits, dmd(batch).logits)
    a, b = coarse.losses(batch, 0.0), dmd.losses(batch, 0.0)
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize(
    "choice",
    [
        {"dictionary": "separate"},
        {"activation": "softmax"},
        {"match_activations": False},
        {"join_codes": False},
        {"atoms": 2},
    ],
)
@pytest.mark.parametrize("modalities", [ALL, ("audio", "text")], ids="+".join)
def test_every_choice_trains(choice, modalities):
    spec = make_spec(modalities)
    model, batch = make_model("dhmd", spec, **(EAGER | choice)), make_batch(spec)
    loss, terms = total(model, batch)
    loss.backward()
    assert all(t.isfinite() for t in terms.values())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert ("homo_activation" in terms) == choice.get("match_activations", True)


def test_dictionary_term_is_the_sum_over_pairs():
    spec = make_spec(ALL)
    model, batch = make_model("dhmd", spec, **EAGER).eval(), make_batch(spec)
    found = model.encode(batch).matches["homo"]
    expected = sum(
        info_nce(
            found.code[i],
            found.code[j],
            temperature=model.config.match_temperature,
            symmetric=True,
            impl="eager",
        )
        for i, j in ((0, 1), (0, 2), (1, 2))
    )
    assert model.losses(batch, 0.0)["homo_dictionary"].item() == pytest.approx(
        expected.item(), rel=1e-5
    )


def test_activation_term_leaves_teacher_and_edges_alone():
    """With a single edge weight, only the student's activation moves; the GD-Unit gets no gradient
    from this term.
    """
    spec = make_spec(ALL)
    model, batch = make_model("dhmd", spec, **EAGER), make_batch(spec)
    term = model.losses(batch, 0.0)["homo_activation"]
    gradients = torch.autograd.grad(term, list(model.graph.parameters()), allow_unused=True)
    assert all(g is None for g in gradients)


def test_monitors_are_stored_and_survive_a_checkpoint():
    spec = make_spec(ALL)
    model, batch = make_model("dhmd", spec, **EAGER), make_batch(spec)
    for _ in range(3):
        model.losses(batch, 0.0)
    logged = model.diagnostics()
    for space in ("homo", "hetero"):
        assert 0 <= logged[f"dictionary/{space}/overlap"] <= 1
        for m in ALL:
            assert 0 < logged[f"dictionary/{space}/entropy/{m}"] <= 1
            assert 0 <= logged[f"dictionary/{space}/dead/{m}"] < 1
    torch.testing.assert_close(model.usage_homo.sum(1), torch.ones(3))
    other = make_model("dhmd", spec, seed=4, **EAGER)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.usage_homo, model.usage_homo)
    before = model.usage_homo.clone()
    model.eval().losses(batch, 0.0)
    assert torch.equal(model.usage_homo, before)  # dev batches do not count
