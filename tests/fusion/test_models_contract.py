"""What `mer.fusion.models` promises, held for every entry of its registry, so that a new model is
tested by being named there.
"""

from __future__ import annotations

import math
import sys
from dataclasses import replace

import pytest
import torch

import mer.fusion.ops.limits as limits
from mer.fusion.models import REGISTRY, model_class, reads_summary
from mer.pipeline.errors import DataError

from tests.fusion.models import (
    VARIANTS,
    Operators,
    absent,
    make_batch,
    make_layered,
    make_layered_spec,
    make_model,
    make_spec,
    rows,
    total,
    with_context,
    with_turns,
)

ALL = ("audio", "text", "vision")
SETS = [("audio",), ("text",), ("audio", "text"), ("text", "vision"), ALL]
TASKS = ("single", "multi", "regression")
every_model = pytest.mark.parametrize("name", sorted([*REGISTRY, *VARIANTS]))
# those that answer by another function; "drkf apart" is DRKF with other losses
every_network = pytest.mark.parametrize(
    "name", sorted([*REGISTRY, "concat attentive", "drkf linear"])
)
every_entry = pytest.mark.parametrize("name", sorted(REGISTRY))
every_task = pytest.mark.parametrize("task", TASKS)


def close(a, b, limit=1e-5):
    assert a.shape == b.shape
    assert (a - b).abs().max() < limit


@every_model
@every_task
@pytest.mark.parametrize("modalities", SETS, ids="+".join)
def test_any_modalities_and_any_task_or_one_clear_line(name, task, modalities):
    spec = make_spec(modalities, task)
    try:
        model = make_model(name, spec)
    except DataError as refused:
        assert modalities != ALL, "a model must take a store that has everything"
        assert "\n" not in str(refused)
        return
    for b in (1, 5):
        batch = make_batch(spec, b)
        loss, terms = total(model, batch)
        assert set(terms) <= set(model.weights(1.0)) and terms
        assert all(t.ndim == 0 and t.isfinite() for t in terms.values()), terms
        loss.backward()
        assert all(isinstance(v, float) for v in model.diagnostics().values())
        p = model.eval()(batch)
        model.train()
        outputs = 1 if task == "regression" else 3
        assert p.logits.shape == (b, outputs) and p.logits.isfinite().all()
        for logits in (p.unimodal or {}).values():
            assert logits.shape == (b, outputs) and logits.isfinite().all()
        if p.attention is not None:
            assert p.attention.shape == (b, len(modalities)) and (p.attention >= 0).all()
            close(p.attention.sum(1), torch.ones(b))
        if p.disagreement is not None:
            assert (
                p.disagreement.shape == (b,)
                and ((0 <= p.disagreement) & (p.disagreement <= 1)).all()
            )


@every_network
@every_task
def test_overfits_eight_utterances(name, task):
    spec = make_spec(("vision",) if name == "vision" else ("audio", "text"), task)
    model, batch = make_model(name, spec).eval(), make_batch(spec)  # eval: without dropout
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(30):
        loss, _ = total(model, batch, step / 30)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    logits = model(batch).logits
    if task == "single":
        assert (logits.argmax(1) == batch.target).all()
    elif task == "multi":
        assert ((logits > 0) == batch.target.bool()).all()
    else:
        assert (logits - batch.target).abs().mean() < 0.5  # of targets spread over [-3, 3]


@every_model
@every_task
def test_every_term_is_finite_and_reaches_every_parameter(name, task):
    spec = make_spec(ALL, task)
    model, batch = make_model(name, spec), make_batch(spec)
    loss, terms = total(model, batch)
    assert all(t.requires_grad for t in terms.values())
    for term, value in terms.items():
        grads = torch.autograd.grad(
            value, list(model.parameters()), retain_graph=True, allow_unused=True
        )
        norm = sum(float(g.abs().sum()) for g in grads if g is not None)
        assert math.isfinite(norm) and norm > 0, term
    loss.backward()
    untouched = [
        n
        for n, p in model.named_parameters()
        if p.requires_grad and (p.grad is None or not p.grad.isfinite().all())
    ]
    assert not untouched
    # that of attention over the steps is no zero, either, as it would be of a mask without steps
    attend = [p for n, p in model.named_parameters() if n.startswith("attend.")]
    assert bool(attend) == (name == "concat attentive")
    assert all(p.grad.abs().sum() > 0 for p in attend)


@every_model
@every_task
def test_what_lies_beyond_the_lengths_is_never_read(name, task):
    spec = make_spec(ALL, task)
    model = make_model(name, spec).eval()
    zero, nan = make_batch(spec), make_batch(spec, padding=torch.nan)
    longer = replace(
        zero, x={m: torch.cat([x, torch.full_like(x, 1e6)], 1) for m, x in zero.x.items()}
    )
    found = []
    for batch in (zero, nan, longer):
        torch.manual_seed(1)
        model.zero_grad()
        loss, terms = total(model, batch)
        loss.backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        with torch.no_grad():
            found.append((model(batch), torch.stack(list(terms.values())), gradient))
    for prediction, terms, gradient in found[1:]:
        close(prediction.logits, found[0][0].logits)
        close(terms, found[0][1], 1e-4)
        close(gradient, found[0][2], 1e-3)
        for field in ("attention", "disagreement"):
            if getattr(prediction, field) is not None:
                close(getattr(prediction, field), getattr(found[0][0], field))


@every_model
@every_task
def test_a_row_does_not_depend_on_its_batch(name, task):
    spec = make_spec(ALL, task)
    model, batch = make_model(name, spec).eval(), make_batch(spec)
    with torch.no_grad():
        together = model(batch)
        order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(3))
        close(model(rows(batch, order)).logits, together.logits[order])
        for i in range(len(batch)):
            alone = model(rows(batch, torch.tensor([i])))
            close(alone.logits[0], together.logits[i])
            if together.attention is not None:
                close(alone.attention[0], together.attention[i])


@every_model
@every_task
def test_the_losses_do_not_depend_on_the_order_of_the_rows(name, task):
    spec = make_spec(ALL, task)
    model, batch = make_model(name, spec).eval(), make_batch(spec)
    order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(3))
    values = []
    for seed, b in ((0, batch), (1, batch), (0, rows(batch, order))):
        torch.manual_seed(seed)
        values.append(total(model, b)[1])
    drawn = {term for term, value in values[0].items() if value != values[1][term]}
    assert drawn <= {"ed"}, "only emotion discrimination draws its pairs"
    for term in values[0].keys() - drawn:
        close(values[2][term], values[0][term])


@every_model
def test_a_missing_modality_leaves_no_trace(name):
    spec = make_spec(ALL)
    model = make_model(name, spec)
    batch = make_batch(spec)
    for gone in (
        absent(batch, "audio", [1, 4]),
        absent(batch, "text", list(range(8))),
        absent(absent(batch, "text", [0]), "vision", [0]),
    ):
        loss, terms = total(model.train(), gone)
        assert all(t.isfinite() for t in terms.values()), terms
        model.zero_grad()
        loss.backward()
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
        p = model.eval()(gone)
        assert p.logits.isfinite().all()
        if p.attention is not None:
            for i, m in enumerate(ALL):
                assert (p.attention[gone.lengths[m] == 0, i] == 0).all()
    nothing = absent(absent(absent(batch, "audio", [2]), "text", [2]), "vision", [2])
    assert model(nothing).logits.isfinite().all()
    close(model(nothing).logits[[0, 1, 3]], model(batch).logits[[0, 1, 3]])


@every_model
@every_task
def test_rows_without_a_label_teach_nothing(name, task):
    spec = make_spec(ALL, task)
    model, batch = make_model(name, spec), make_batch(spec)
    unknown = batch.target.clone()
    unknown[:] = -1 if task == "single" else torch.nan
    some = batch.target.clone()
    some[:3] = unknown[:3]
    for target in (some, unknown):
        loss, terms = total(model, replace(batch, target=target))
        assert all(t.isfinite() for t in terms.values()), terms
        loss.backward()
    assert torch.equal(model.eval()(batch).logits, model(replace(batch, target=unknown)).logits)


@every_model
def test_one_class_and_one_row_batches(name):
    spec = make_spec(ALL)
    model, batch = make_model(name, spec), make_batch(spec)
    for b in (replace(batch, target=torch.ones_like(batch.target)), rows(batch, torch.tensor([0]))):
        loss, terms = total(model, b)
        assert all(t.isfinite() for t in terms.values()), terms
        loss.backward()
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@every_model
@every_task
def test_state_dict_round_trip(name, task):
    spec = make_spec(ALL, task)
    model, batch = make_model(name, spec), make_batch(spec)
    model.calibrate([batch])
    if task != "regression":
        model.set_class_weights(torch.tensor([1.0, 2.0, 3.0]))
    model.losses(batch, 1.0)  # what a model keeps of its training batches is state, too
    other = make_model(name, spec, seed=9)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.eval()(batch).logits, model.eval()(batch).logits)
    found = []
    for m in (model, other):
        torch.manual_seed(0)
        found.append((total(m, batch)[1], m.diagnostics()))
    assert found[0] == found[1]


def calls(work) -> int:
    """How many functions, of Python or of C, Python calls while `work()` runs."""
    count = 0

    def hook(frame, event, argument):
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(hook)
    try:
        work()
    finally:
        sys.setprofile(before)
    return count


PUBLISHED_LOSSES = ("dmd", {"as_published": ("margin", "hetero_repr_repels")})


@pytest.mark.parametrize(
    ("name", "args"), [*((name, {}) for name in sorted(REGISTRY)), PUBLISHED_LOSSES]
)
@every_task
def test_nothing_loops_over_utterances_pairs_or_steps(name, args, task, monkeypatch):
    """A training step is as many calls and as many operators for four times the utterances, and for
    three times the steps.
    """
    # six views of 32 rows: the contrastive losses of both sizes are to take one path
    monkeypatch.setattr(limits, "DENSE_ROWS", 256)
    spec = make_spec(ALL, task)
    model, batch = make_model(name, spec, **args), make_batch(spec, 8)
    x, lengths = (
        {m: each(m) for m in ALL}
        for each in (lambda m: batch.x[m].repeat(1, 3, 1), lambda m: 3 * batch.lengths[m])
    )

    def step(batch) -> None:
        total(model, batch)[0].backward()

    def measured(batch) -> tuple[int, int]:
        step(batch)  # what is done once only, or once for a size: masks of the contrastive losses
        model.zero_grad()
        with Operators() as asked:
            step(batch)
        model.zero_grad()  # so that every step makes its gradients
        return calls(lambda: (step(batch), model.zero_grad())), asked.count

    wanted = measured(batch)
    assert min(wanted) > 50
    assert measured(make_batch(spec, 32)) == wanted
    assert measured(replace(batch, x=x, lengths=lengths)) == wanted


@every_model
def test_float32_is_close_to_float64(name):
    spec = make_spec(ALL)
    model, batch = make_model(name, spec).eval(), make_batch(spec)
    single = model(batch).logits
    loss = total(model, batch)[0]
    double = replace(batch, x={m: x.double() for m, x in batch.x.items()})
    model.double()
    assert model(double).logits.dtype == torch.float64
    close(model(double).logits.float(), single, 1e-4)
    assert total(model, double)[0].isfinite() and loss.isfinite()


@every_model
@every_task
def test_autocast_keeps_the_losses_in_float32(name, task):
    spec = make_spec(("vision",) if name == "vision" else ("audio", "text"), task)
    model, batch = make_model(name, spec).eval(), make_batch(spec)
    torch.manual_seed(0)
    exact, _ = total(model, batch)
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, terms = total(model, batch)
    loss.backward()
    assert {t.dtype for t in terms.values()} == {torch.float32}
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    assert abs(loss - exact) < 0.05 * (1 + exact.abs())


@every_model
def test_inference_draws_no_random_numbers(name):
    spec = make_spec(ALL)
    model, batch = make_model(name, spec).eval(), make_batch(spec)
    before = torch.get_rng_state()
    first = model(batch).logits
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(model(batch).logits, first)


@every_model
def test_training_is_a_function_of_the_seed(name):
    spec = make_spec(ALL)
    model, batch = make_model(name, spec), make_batch(spec)

    def value():
        torch.manual_seed(5)
        return total(model, batch)[0]

    assert torch.equal(value(), value())


@every_model
def test_class_weights_move_the_loss_and_regression_refuses_them(name):
    spec = make_spec(ALL)
    model, batch = make_model(name, spec).eval(), make_batch(spec)
    torch.manual_seed(0)
    before = total(model, batch)[0]
    model.set_class_weights(torch.tensor([0.0, 5.0, 1.0]))
    torch.manual_seed(0)
    assert total(model, batch)[0] != before
    with pytest.raises(DataError, match="class weights"):
        make_model(name, make_spec(ALL, "regression")).set_class_weights(torch.ones(1))


@every_model
def test_calibration_removes_the_scale_of_the_features(name):
    """Offsets and scales of the features must not matter once the statistics of the training rows
    are known.
    """
    spec = make_spec(ALL)
    batch = make_batch(spec)
    moved = replace(batch, x={m: 50.0 * x + 100.0 for m, x in batch.x.items()})
    found = []
    for data in (batch, moved):
        model = make_model(name, spec).eval()
        # a generator: one pass must do
        model.calibrate(rows(data, i) for i in torch.arange(8).split(3))
        found.append(model(data).logits)
    close(found[0], found[1], 1e-3)


@every_entry
def test_only_pooled_models_ask_for_summaries(name):
    """`summary` is read off the class: a method of that name would count as yes."""
    model, config = model_class(name)
    assert model.summary is (name in ("audio", "text", "vision", "concat"))
    assert reads_summary(name, config()) is model.summary


@every_model
def test_what_a_model_reads_follows_from_its_arguments(name):
    spec = make_spec(("vision",) if name == "vision" else ALL)
    model = make_model(name, spec)
    assert model.summary is reads_summary(name.partition(" ")[0], model.config)
    assert model.summary is (name in ("audio", "text", "vision", "concat"))


@every_entry
def test_defaults_build(name):
    """The defaults of the config class, not the small ones of these tests."""
    model, config = model_class(name)
    spec = make_spec(ALL)
    assert model(config(), spec).eval()(make_batch(spec, 2)).logits.shape == (2, 3)


# ---- Several layers: the same promises behind the mix


@every_model
@every_task
def test_layers_every_parameter_is_reached_and_the_losses_are_finite(name, task):
    spec = make_layered_spec(ALL, task)
    model = make_layered(name, spec)
    batch = make_batch(spec, summary=model.summary)
    loss, terms = total(model, batch)
    assert set(terms) <= set(model.weights(1.0))
    loss.backward()
    mixes = [n for n, _ in model.named_parameters() if n.startswith("mix.")]
    assert mixes and set(mixes) <= set(model.lr_scale)
    for n, p in model.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all(), n
        assert not n.startswith("mix.") or p.grad.abs().sum() > 0, n


@every_model
@every_task
def test_layers_what_lies_beyond_the_lengths_is_never_read(name, task):
    spec = make_layered_spec(ALL, task)
    model = make_layered(name, spec).eval()
    found = []
    for padding in (0.0, torch.nan):
        batch = make_batch(spec, padding=padding, summary=model.summary)
        batch = absent(batch, "audio", [1, 4])
        if not padding:
            batch.x["audio"][[1, 4]] = 0
        torch.manual_seed(1)
        model.zero_grad()
        loss, terms = total(model, batch)
        loss.backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
        with torch.no_grad():
            found.append((model(batch).logits, torch.stack(list(terms.values())), gradient))
    for zero, nan in zip(*found, strict=True):
        assert torch.equal(zero, nan)


@every_model
@every_task
def test_layers_a_row_does_not_depend_on_its_batch(name, task):
    spec = make_layered_spec(ALL, task)
    model = make_layered(name, spec).eval()
    batch = make_batch(spec, summary=model.summary)
    with torch.no_grad():
        together = model(batch).logits
        order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(3))
        close(model(rows(batch, order)).logits, together[order])
        close(model(rows(batch, torch.tensor([2]))).logits[0], together[2])


@every_model
@every_task
def test_layers_state_dict_round_trip(name, task):
    spec = make_layered_spec(ALL, task)
    model = make_layered(name, spec)
    batch = make_batch(spec, summary=model.summary)
    model.calibrate([batch])
    if task != "regression":
        model.set_class_weights(torch.tensor([1.0, 2.0, 3.0]))
    model.losses(batch, 1.0)
    other = make_layered(name, spec, seed=9)
    assert other.layer_weights() != model.layer_weights()
    other.load_state_dict(model.state_dict())
    assert other.layer_weights() == model.layer_weights()
    assert torch.equal(other.eval()(batch).logits, model.eval()(batch).logits)
    found = []
    for m in (model, other):
        torch.manual_seed(0)
        found.append((total(m, batch)[1], m.diagnostics()))
    assert found[0] == found[1]


@every_model
def test_layers_calibration_removes_the_scale_of_every_layer(name):
    spec = make_layered_spec(ALL)
    found = []
    for moved in (False, True):
        model = make_layered(name, spec).eval()
        batch = make_batch(spec, summary=model.summary)
        if moved:
            for x in batch.x.values():
                scale = torch.linspace(1, 200, x.shape[2])
                x.mul_(scale).add_(scale)
        model.calibrate([rows(batch, index) for index in torch.arange(8).split(3)])
        found.append(model(batch).logits)
    close(found[0], found[1], 1e-3)


@every_model
@every_task
def test_layers_all_weight_on_one_is_the_model_on_that_layer(name, task):
    """The mix in front changes nothing but what is read."""
    spec = make_layered_spec(ALL, task)
    model = make_layered(name, spec).eval()
    batch = make_batch(spec, summary=model.summary)
    plain = {}
    for m, x in batch.x.items():
        parts = x.split([b.numbers for b in spec.blocks(m, summary=model.summary)], -1)
        plain[m] = torch.cat([part[..., : spec.modalities[m]] for part in parts], -1)
    for n, p in model.named_parameters():
        if n.startswith("mix."):
            p.data.zero_()
            p.data[0] = 200.0
    close(model(batch).logits, model.core(replace(batch, x=plain)).logits)


@every_model
def test_layers_float64_and_autocast(name):
    spec = make_layered_spec(ALL)
    model = make_layered(name, spec).eval()
    batch = make_batch(spec, summary=model.summary)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, terms = total(model, batch)
    assert {t.dtype for t in terms.values()} == {torch.float32}
    single = model(batch).logits
    double = replace(batch, x={m: x.double() for m, x in batch.x.items()})
    close(model.double()(double).logits.float(), single, 1e-4)


# ---- Conversation context: the same promises with neighbours


def pooled(spec, name):
    """The batch and, for pooled models, its neighbours as they are given them."""
    summary = name in ("audio", "text", "vision", "concat")
    batch = make_batch(spec, summary=summary)
    return with_context(batch, spec)


def turn_parameters(model) -> list[str]:
    """The names of what is only there for neighbours."""
    return [name for name, _ in model.named_parameters() if "turns." in name]


@every_model
@every_task
def test_context_every_parameter_is_reached_and_the_losses_are_finite(name, task):
    spec = with_turns(make_spec(ALL, task))
    model = make_model(name, spec)
    loss, terms = total(model, pooled(spec, name))
    assert set(terms) <= set(model.weights(1.0))
    loss.backward()
    assert turn_parameters(model)
    for n, p in model.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all(), n
        # to add one number to all keys of an attention changes nothing
        assert "turns." not in n or p.grad.abs().sum() > 0, n


@every_model
@every_task
def test_context_masked_neighbours_are_never_read(name, task):
    spec = with_turns(make_spec(ALL, task))
    model = make_model(name, spec).eval()
    whole = pooled(spec, name)
    nobody = ~torch.stack(list(whole.context.there.values())).any(0)
    there = whole.context.there
    strange = replace(
        whole.context,
        x={m: x.masked_fill(~there[m][..., None], torch.nan) for m, x in whole.context.x.items()},
        offset=whole.context.offset.masked_fill(nobody, 10**9),
        speaker=whole.context.speaker.masked_fill(nobody, 10**9),
    )
    found = []
    for context in (whole.context, strange):
        torch.manual_seed(1)
        model.zero_grad()
        loss, terms = total(model, replace(whole, context=context))
        loss.backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        with torch.no_grad():
            logits = model(replace(whole, context=context)).logits
        found.append((logits, torch.stack(list(terms.values())), gradient))
    for zero, nan in zip(*found, strict=True):
        assert torch.equal(zero, nan)


@every_model
def test_context_is_seen_and_a_row_does_not_depend_on_its_batch(name):
    spec = with_turns(make_spec(ALL))
    model, batch = make_model(name, spec).eval(), pooled(spec, name)
    with torch.no_grad():
        together = model(batch)
        order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(3))
        close(model(rows(batch, order)).logits, together.logits[order])
        for i in (0, 3):
            close(model(rows(batch, torch.tensor([i]))).logits[0], together.logits[i])
        without = model(replace(batch, context=None))
        # the first row has no neighbour: alone, or with nobody there, is the same
        close(without.logits[0], together.logits[0])
        assert (without.logits[1] - together.logits[1]).abs().max() > 1e-4
        if together.attention is not None:
            close(together.attention.sum(1), torch.ones(len(batch)))
        if together.disagreement is not None:  # of pairs of modalities, whoever speaks around them
            close(without.disagreement, together.disagreement)


@every_model
def test_context_who_speaks_and_how_far_away_matter(name):
    spec = with_turns(make_spec(ALL))
    model, batch = make_model(name, spec).eval(), pooled(spec, name)
    context = batch.context
    with torch.no_grad():
        logits = model(batch).logits
        for other in (
            replace(context, speaker=(context.speaker + 1) % 3),
            replace(context, offset=context.offset.flip(1)),
        ):
            assert (model(replace(batch, context=other)).logits[1] - logits[1]).abs().max() > 1e-6


@every_model
def test_context_state_dict_round_trip(name):
    spec = with_turns(make_spec(ALL))
    model, batch = make_model(name, spec), pooled(spec, name)
    model.calibrate([batch])
    other = make_model(name, spec, seed=9)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.eval()(batch).logits, model.eval()(batch).logits)
    names = list(model.state_dict())
    assert len({t.data_ptr() for t in model.state_dict().values()}) == len(names)


@every_model
def test_context_calibration_removes_the_scale_of_the_neighbours(name):
    spec = with_turns(make_spec(ALL))
    batch = pooled(spec, name)
    moved = replace(
        batch,
        x={m: 50.0 * x + 100.0 for m, x in batch.x.items()},
        context=replace(batch.context, x={m: 50.0 * x + 100.0 for m, x in batch.context.x.items()}),
    )
    found = []
    for data in (batch, moved):
        model = make_model(name, spec).eval()
        model.calibrate(rows(data, i) for i in torch.arange(8).split(3))
        found.append(model(data).logits)
    close(found[0], found[1], 1e-3)


@every_model
def test_context_without_one_a_model_is_what_it_was(name):
    """Neither its parameters nor the random numbers that they are drawn with."""
    spec = make_spec(ALL)
    plain = make_model(name, spec)
    assert not turn_parameters(plain)
    batch = make_batch(spec)
    more = with_context(batch, with_turns(spec))
    assert torch.equal(plain.eval()(batch).logits, plain(more).logits)


@every_model
def test_context_layers_are_mixed_for_neighbours_too(name):
    spec = with_turns(make_layered_spec(ALL))
    model = make_layered(name, spec)
    found = []
    for padding in (0.0, torch.nan):
        batch = make_batch(spec, summary=model.summary)
        batch = with_context(batch, spec, padding=padding)
        model.train().zero_grad()
        torch.manual_seed(1)
        total(model, batch)[0].backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
        found.append((model.eval()(batch).logits, gradient))
    assert all(torch.equal(zero, nan) for zero, nan in zip(*found, strict=True))
    m = model.modalities[0]
    other = replace(batch.context, x={**batch.context.x, m: batch.context.x[m] + 1})
    moved = model(replace(batch, context=other)).logits
    assert (moved - found[1][0]).abs().max() > 1e-6


@every_model
def test_context_float64_autocast_and_batches_taken_apart(name):
    spec = with_turns(make_spec(ALL))
    model, batch = make_model(name, spec).eval(), pooled(spec, name)
    whole = model(batch).logits
    close(torch.cat([model(part).logits for part in batch.split([3, 5])]), whole)
    assert torch.equal(model(batch.to("cpu")).logits, whole)
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, terms = total(model, batch)
    assert {t.dtype for t in terms.values()} == {torch.float32}
    turns = {m: x.double() for m, x in batch.context.x.items()}
    double = replace(
        batch,
        x={m: x.double() for m, x in batch.x.items()},
        context=replace(batch.context, x=turns),
    )
    close(model.double()(double).logits.float(), whole, 1e-4)
