"""DMD against numbers that the authors' own modules computed (github.com/mdswyz/DMD, commit
516d4e1, MIT).

`tests/golden/dmd_tiny.npz` (its key meta/provenance says how it was made) holds one configuration's
outputs and loss terms; the set under MER_TEST_DATA adds two more configurations, the modules alone,
and gradients. No weights are needed: they follow from `recipe`.
"""

from __future__ import annotations

import json
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from mer.fusion.batch import Batch, DataSpec
from mer.fusion.losses.graph import (
    distillation,
    edge_regulariser,
    logit_distances,
    representation_distances,
)
from mer.fusion.models.dmd import DMD, PUBLISHED, DMDConfig, from_published
from mer.fusion.modules.crossmodal import CrossModalEncoder, band_mask, sinusoids
from mer.fusion.modules.graph_distillation import GDUnit

LETTERS = {"l": "text", "v": "vision", "a": "audio"}
NAMES = tuple(LETTERS.values())
INPUT = {"text": "text", "audio": "audio", "vision": "video"}
TOLERANCE = dict(rtol=1e-5, atol=1e-5)
EXCERPT = Path(__file__).parents[1] / "golden" / "dmd_tiny.npz"
FILES = ("dmd_mosi_tiny", "dmd_unaligned_tiny", "dmd_mosi_full")
GRAPH = dict(edge_temperature=8.0, homo_representation="l1", weight_representation=10.0)


def recipe(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The weights of every golden run: uniform noise seeded by the parameter's name, scaled by its
    shape (float64, then float32).
    """
    u = 2 * np.random.RandomState(zlib.crc32(name.encode())).random_sample(shape) - 1
    if len(shape) > 1:
        u = np.sqrt(6 / ((shape[0] + shape[1]) * np.prod(shape[2:]))) * u
    elif name.endswith(".weight"):
        u = 1 + 0.2 * u
    else:
        u = 0.1 * u
    return u.astype(np.float32)


def config_of(meta: dict, **changes) -> DMDConfig:
    width, heads = meta["dst_feature_dim_nheads"]
    kernel = {f"kernel_{m}": meta[f"conv1d_kernel_size_{k}"] for k, m in LETTERS.items()}
    length = {f"length_{m}": meta["lens"][f"len_{k}"] for k, m in LETTERS.items()}
    layers = dict(
        width=width, heads=heads, layers=meta["nlevels"], memory_layers=max(meta["nlevels"], 3)
    )
    return DMDConfig(
        **layers, **kernel, **length, **GRAPH, **({"as_published": ("all",)} | changes)
    )


@cache
def load(path: Path) -> tuple[dict[str, np.ndarray], dict]:
    with np.load(path, allow_pickle=False) as z:
        arrays = {k: z[k] for k in z.files}
    return arrays, json.loads(str(arrays["meta/config"]))


def published_state(arrays: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    stored = {
        k.removeprefix("param/"): torch.from_numpy(v)
        for k, v in arrays.items()
        if k.startswith("param/")
    }
    if stored:
        return stored
    shapes = json.loads(str(arrays["meta/param_digest"]))
    return {
        n: torch.from_numpy(recipe(n, tuple(d["shape"])))
        for n, d in shapes.items()
        if not n.endswith(("version", "_float_tensor"))
    }


def build(arrays: dict, meta: dict, **changes) -> DMD:
    config = config_of(meta, **changes)
    dims = dict(zip(("text", "audio", "vision"), meta["feature_dims"], strict=True))
    model = DMD(config, DataSpec(dims, dict.fromkeys(dims), "regression", ("sentiment",))).eval()
    state = from_published(published_state(arrays), config)
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    # GD-Units: other files
    assert all(n.startswith(("standardise.", "graph.")) for n in missing), missing
    return model


def batch_of(arrays: dict, target=None, lengths=None) -> Batch:
    x = {m: torch.from_numpy(arrays[f"in/{k}"]) for m, k in INPUT.items()}
    n = len(x["text"])
    full = {m: torch.full((n,), v.shape[1]) for m, v in x.items()}
    target = torch.full((n, 1), torch.nan) if target is None else torch.tensor(target)[:, None]
    return Batch(x, full if lengths is None else lengths, target, torch.arange(n))


def named_outputs(o) -> dict[str, torch.Tensor]:
    """The 38 outputs under the authors' names and layouts: codes (T, B, d), everything
    convolutional (B, d, T).
    """
    named = {"logits_c": o.shared_logits, "output_logit": o.logits}
    for i, (k, m) in enumerate(LETTERS.items()):
        p = o.parts[m]
        named |= {
            f"logits_{k}_homo": o.homo_logits[i],
            f"repr_{k}_homo": o.homo_representation[i],
            f"c_{k}_sim": o.aligned[i],
        }
        named |= {
            f"logits_{k}_hetero": o.hetero_logits[i],
            f"repr_{k}_hetero": o.hetero_representation[i],
            f"last_h_{k}": o.last[i],
        }
        named |= {
            f"origin_{k}": p.origin.mT,
            f"recon_{k}": p.restored.mT,
            f"s_{k}_r": p.again.mT,
            f"proj_s_{k}": o.unused[i],
        }
        named |= {f"s_{k}": p.specific.transpose(0, 1), f"c_{k}": p.shared.transpose(0, 1)}
    return named


@pytest.mark.parametrize("file", FILES)
def test_every_output(test_data, file):
    check_outputs(test_data / "golden" / f"{file}.npz")


def test_every_output_of_the_excerpt():
    check_outputs(EXCERPT)


def check_outputs(path: Path) -> None:
    arrays, meta = load(path)
    with torch.no_grad():
        named = named_outputs(build(arrays, meta).encode(batch_of(arrays)))
    assert {f"out32/{k}" for k in named} == {k for k in arrays if k.startswith("out32/")} and len(
        named
    ) == 38
    for k, value in named.items():
        torch.testing.assert_close(
            value,
            torch.from_numpy(arrays[f"out32/{k}"]),
            **TOLERANCE,
            msg=lambda text, k=k: f"{path.stem} {k}: {text}",
        )


SELF = ("self_t7", "self_t7_zeros", "self_d9_t6")
CROSS = (
    "cross_q7_k11",
    "cross_q11_k7",
    "cross_q6_k6",
    "cross_q5_k9_v",
    "cross_q4_k8_zeros",
    "cross_d9_q3_k8",
)


@pytest.mark.parametrize("case", [f"{name}/mask{on}" for name in SELF + CROSS for on in (0, 1)])
def test_encoder_alone(test_data, case):
    """Every layer of the MulT encoder, self- and cross-attention, odd width, values that are not
    the keys, vanishing channels.
    """
    arrays, meta = load(test_data / "golden" / "transformer.npz")
    name, masked = case.split("/mask")
    shape = meta["cases"][name]
    encoder = CrossModalEncoder(
        shape["d"], shape["heads"], shape["layers"], band=masked == "1", zero_positions=True
    ).eval()
    prefix = f"param_d{shape['d']}/"
    state = {
        f"trans_l_mem.{k.removeprefix(prefix)}": torch.from_numpy(v)
        for k, v in arrays.items()
        if k.startswith(prefix)
    }
    state = from_published(state, DMDConfig())
    encoder.load_state_dict({k.removeprefix("memory.text."): v for k, v in state.items()})
    layers = []
    for layer in encoder.layers:
        layer.register_forward_hook(lambda module, args, out: layers.append(out.transpose(0, 1)))
    q, k, v = (
        torch.from_numpy(arrays[key]).transpose(0, 1)
        if (key := f"{name}/{part}") in arrays
        else None
        for part in "qkv"
    )
    with torch.no_grad():
        out = encoder(q, k, v).transpose(0, 1)
    torch.testing.assert_close(out, torch.from_numpy(arrays[f"{case}/out32/out"]), **TOLERANCE)
    for i, value in enumerate(layers):
        torch.testing.assert_close(
            value.double(), torch.from_numpy(arrays[f"{case}/out64/layer{i}"]), **TOLERANCE
        )
    if masked == "1":
        allowed = torch.from_numpy(arrays[f"{name}/additive_mask"]) == 0
        assert torch.equal(band_mask(*allowed.shape), allowed)


def test_positions(test_data):
    arrays, _ = load(test_data / "golden" / "transformer.npz")
    for d in (9, 10):
        torch.testing.assert_close(
            sinusoids(63, d), torch.from_numpy(arrays[f"pos_table_d{d}"][1:]), rtol=0, atol=1e-6
        )


def unit(space: str, *, width: int, size: int, outputs: int = 1) -> GDUnit:
    """A GD-Unit with the golden weights, which follow from the recipe."""
    graph = GDUnit(NAMES, outputs, width, size, space=space, prior="authors")
    theirs = {"logit": "W_logit", "representation": "W_repr", "edge": "W_edge"}
    state = {}
    for name, value in graph.state_dict().items():
        head, _, kind = name.partition(".")
        state[f"{space}.{theirs[head]}.{kind}"] = torch.from_numpy(
            recipe(f"{space}.{theirs[head]}.{kind}", tuple(value.shape))
        )
    graph.load_state_dict(
        {
            k.removeprefix(f"graph.{space}."): v
            for k, v in from_published(state, DMDConfig()).items()
        }
    )
    return graph


def published_graph_losses(
    graph: GDUnit, logits, reprs, *, space: str, per_sample: bool = False
) -> dict[str, torch.Tensor]:
    """Edges and the three losses as the authors weigh them: regulariser 10, representations 10."""
    present = torch.ones(logits.shape[:2], dtype=torch.bool)
    edges = graph(logits, reprs)
    weights = graph.weights(edges, present)
    ends = graph.student, graph.teacher
    representation = representation_distances(
        reprs, *ends, kind={"homo": "l1", "hetero": "repel"}[space]
    )
    if space == "hetero" and not per_sample:
        representation = representation.mean(1, keepdim=True)
    return {
        "edges": edges,
        "edges_origin": graph.scores(logits, reprs).sum(1, keepdim=True),
        "loss_reg": 10 * edge_regulariser(edges, graph.prior, present.all(0)),
        "loss_logit": distillation(logit_distances(logits, *ends, task="regression"), weights),
        "loss_repr": 10 * distillation(representation, weights),
    }


@pytest.mark.parametrize("batch", ["b16", "b1"])
@pytest.mark.parametrize("space", ["homo", "hetero"])
def test_graph_distillation(test_data, space, batch):
    """Edges, the three losses and every gradient: teachers detached, edges not."""
    arrays, meta = load(test_data / "golden" / "dmd_distill.npz")
    graph = unit(space, width=meta[f"hidden_{space}"], size=meta[f"gd_{space}"])
    index = {m: i for i, m in enumerate(NAMES)}
    assert [[index[s], index[t]] for s, t in graph.pairs] == arrays[
        "meta/pairs_student_teacher"
    ].tolist()
    np.testing.assert_allclose(graph.prior, arrays[f"{space}/prior"], rtol=1e-5)
    logits, reprs = (
        torch.from_numpy(arrays[f"{space}/{batch}/{k}"]).requires_grad_()
        for k in ("logits", "reprs")
    )
    losses = published_graph_losses(graph, logits, reprs, space=space)
    for name, value in losses.items():
        expected = torch.from_numpy(arrays[f"{space}/{batch}/out32/{name}"])
        torch.testing.assert_close(
            value.detach(),
            expected.reshape(value.shape),
            **TOLERANCE,
            msg=lambda text, n=name: f"{n}: {text}",
        )
    sources = {"logits": logits, "reprs": reprs, **dict(graph.named_parameters())}
    ours = {"W_logit": "logit", "W_repr": "representation", "W_edge": "edge"}
    for loss in ("loss_reg", "loss_logit", "loss_repr"):
        gradients = torch.autograd.grad(
            losses[loss], list(sources.values()), retain_graph=True, allow_unused=True
        )
        for (name, source), gradient in zip(sources.items(), gradients, strict=True):
            head, _, tail = name.partition(".")
            theirs = next((f"{k}.{tail}" for k, v in ours.items() if v == head), name)
            expected = torch.from_numpy(arrays[f"{space}/{batch}/out64/grad/{loss}/{theirs}"])
            gradient = torch.zeros_like(source) if gradient is None else gradient
            torch.testing.assert_close(
                gradient.double(),
                expected,
                rtol=1e-4,
                atol=1e-5,
                msg=lambda t, n=(loss, name): f"{n}: {t}",
            )


def test_hetero_representation_weighed_per_sample(test_data):
    """Defect 2: the cosine was averaged over the batch before the edges weighed it; 4.625746 as
    coded, 4.583512 by definition.
    """
    arrays, meta = load(test_data / "golden" / "dmd_distill.npz")
    graph = unit("hetero", width=meta["hidden_hetero"], size=meta["gd_hetero"])
    logits, reprs = (torch.from_numpy(arrays[f"hetero/b16/{k}"]) for k in ("logits", "reprs"))
    right = published_graph_losses(graph, logits, reprs, space="hetero", per_sample=True)[
        "loss_repr"
    ].item()
    coded = published_graph_losses(graph, logits, reprs, space="hetero")["loss_repr"].item()
    assert right == pytest.approx(
        float(arrays["hetero/b16/definition/loss_repr_per_sample"]), abs=1e-5
    )
    assert (right, coded) == (pytest.approx(4.583512, abs=1e-5), pytest.approx(4.625746, abs=1e-5))


def with_graphs(**changes) -> tuple[DMD, Batch, dict]:
    """The excerpt's model with its GD-Units, its batch with labels, and the excerpt."""
    arrays, meta = load(EXCERPT)
    model = build(arrays, meta, **changes)
    for space, graph in model.graph.items():
        width, size = graph.representation.in_features, graph.representation.out_features
        graph.load_state_dict(unit(space, width=width, size=size).state_dict())
    return model, batch_of(arrays, arrays["labels"]), arrays


def test_every_loss_term():
    """All terms of the published trainer and their total; orthogonality as torch 1.x reduced it."""
    model, batch, golden = with_graphs()
    terms, weights = model.losses(batch, 0.0), model.weights(0.0)
    single = {
        k: float(golden[f"loss/f32/{k}"])
        for k in ("loss_task_all", "loss_task_c", "loss_recon", "loss_s_sr", "loss_sim")
    }
    assert terms["task"].item() == pytest.approx(single["loss_task_all"], abs=1e-5)
    assert terms["shared"].item() == pytest.approx(single["loss_task_c"], abs=1e-5)
    for space in ("homo", "hetero"):
        assert terms[space].item() == pytest.approx(
            sum(float(golden[f"loss/f32/loss_task_{k}_{space}"]) for k in LETTERS), abs=1e-5
        )
        assert terms[f"{space}_logit"].item() == pytest.approx(
            float(golden[f"loss/f32/loss_logit_{space}"]), abs=1e-5
        )
        assert 10 * terms[f"{space}_edges"].item() == pytest.approx(
            float(golden[f"loss/f32/loss_reg_{space}"]), abs=1e-5
        )
        graph = sum(weights[k] * v.item() for k, v in terms.items() if k.startswith(f"{space}_"))
        assert graph == pytest.approx(
            float(golden[f"loss/f32/graph_distill_loss_{space}"]), abs=1e-5
        )
    assert 10 * terms["hetero_representation"].item() == pytest.approx(
        float(golden["loss/f32/loss_repr_hetero"]), abs=1e-5
    )
    assert terms["reconstruction"].item() == pytest.approx(single["loss_recon"], abs=1e-5)
    assert terms["cycle"].item() == pytest.approx(single["loss_s_sr"], abs=1e-5)
    assert terms["margin"].item() == pytest.approx(single["loss_sim"], abs=1e-5)
    assert terms["orthogonality"].item() == pytest.approx(
        float(golden["loss/f32/ort_legacy/loss_ort"]), abs=1e-5
    )
    total = sum(weights[k] * v for k, v in terms.items())
    assert total.item() == pytest.approx(
        float(golden["loss/f32/ort_legacy/combined_loss"]), rel=1e-6
    )
    edges = model.edges(model.encode(batch))
    for space in ("homo", "hetero"):
        torch.testing.assert_close(
            edges[space].detach(), torch.from_numpy(golden[f"loss/f32/edges_{space}"]), **TOLERANCE
        )


@pytest.mark.parametrize("variant", ["ort_none", "ort_rows"])
def test_gradient_of_the_total(test_data, variant):
    """Every parameter's gradient, without orthogonality and with the published hinge per row (the
    defect's right form, unmasked).
    """
    golden, _ = load(test_data / "golden" / "dmd_losses.npz")
    model, batch, _ = with_graphs(
        as_published=tuple(n for n in PUBLISHED if n != "orthogonality"), orthogonality="hinge",
        weight_orthogonality=0.0 if variant == "ort_none" else 0.01,
    )  # fmt: skip
    terms, weights = model.losses(batch, 0.0), model.weights(0.0)
    assert terms["orthogonality"].item() == pytest.approx(
        float(golden["f32/ort_rows/loss_ort"]), abs=1e-5
    )
    total = sum(weights[k] * v for k, v in terms.items())
    assert total.item() == pytest.approx(float(golden[f"f32/{variant}/combined_loss"]), rel=1e-6)
    total.backward()
    prefix = f"f64/{variant}/grad/"
    published = {}
    for k, v in golden.items():
        if k.startswith(prefix):
            module, _, name = k.removeprefix(prefix).partition("/")
            published[name if module == "dmd" else f"{module}.{name}"] = torch.from_numpy(v)
    expected = from_published(published, model.config)
    ours = {
        n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in model.named_parameters()
    }
    assert len(expected) > (20 if variant == "ort_none" else 5)
    for name, value in expected.items():
        torch.testing.assert_close(
            ours[name].double(), value, rtol=1e-4, atol=1e-5, msg=lambda t, n=name: f"{n}: {t}"
        )
