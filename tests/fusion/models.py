"""Small batches and small models for the tests of this folder."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mer.fusion.batch import Batch, Context, ContextSpec, DataSpec, FeatureSet
from mer.fusion.models import build, model_class

WIDTHS = {"audio": 6, "text": 5, "vision": 4}
STEPS = {"audio": 9, "text": 5, "vision": 3}
LABELS = ("anger", "joy", "neutral")
SMALL = {
    "drkf": {
        "d": 16,
        "layers": 2,
        "heads": 2,
        "ffn": 32,
        "ae_blocks": 3,
        "ae_layers": (8, 4),
        "d_p": 16,
        "ed_anchors": 1.0,
    },
    "fusion": {"d": 16, "layers": 2, "heads": 2, "ffn": 32},
    "dmd": {
        "width": 8,
        "heads": 2,
        "layers": 1,
        "memory_layers": 1,
        "graph_width_homo": 8,
        "graph_width_hetero": 8,
    },
    "dhmd": {
        "width": 8,
        "heads": 2,
        "layers": 1,
        "memory_layers": 1,
        "graph_width_homo": 8,
        "graph_width_hetero": 8,
    },
}

# Options that make another model of one of the registry; the contract is held for them, too.
VARIANTS = {
    "concat attentive": {"pooling": "attentive", "attention": 4},
    "drkf apart": {"mi_negatives": "other", "kl_reduction": "classes"},
    "drkf linear": {"fe": "linear"},
}


def make_spec(modalities=("audio", "text"), task="single") -> DataSpec:
    labels = ("sentiment",) if task == "regression" else LABELS
    return DataSpec({m: WIDTHS[m] for m in modalities}, dict.fromkeys(modalities), task, labels)


def make_layered_spec(modalities=("audio", "text"), task="single") -> DataSpec:
    """As `make_spec`, of stores with several layers: four layer means and a stack of two for audio,
    three layer means for text, a stack of three for vision.
    """
    spec = make_spec(modalities, task)
    layers = {
        "audio": FeatureSet("audio", WIDTHS["audio"], means=4, stack=(2, 4)),
        "text": FeatureSet("text", WIDTHS["text"], means=3),
        "vision": FeatureSet("vision", WIDTHS["vision"], stack=(0, 1, 2)),
    }
    return replace(spec, sets={m: (layers[m],) for m in modalities})


def make_layered(name: str, spec: DataSpec, *, seed: int = 0):
    """A model behind the mix of its layers, its weights not all equal."""
    torch.manual_seed(seed)
    kind = name.partition(" ")[0]
    args = SMALL.get(kind, {}) | VARIANTS.get(name, {})
    model = build(kind, model_class(kind)[1](**args), spec)
    for mix_name, weight in model.named_parameters():
        if mix_name.startswith("mix."):
            weight.data.normal_()
    return model


def make_batch(
    spec: DataSpec, b: int = 8, *, seed: int = 0, padding: float = 0.0, summary: bool = False
) -> Batch:
    """Random features, ragged lengths, labels in turn; `padding` is what lies beyond the lengths.
    `summary`: one step each, of all that a pooled model is given.
    """
    g = torch.Generator().manual_seed(seed)
    x, lengths = {}, {}
    for m in spec.modalities:
        width = sum(block.numbers for block in spec.blocks(m, summary=summary))
        steps = 1 if summary else STEPS[m]
        n = torch.randint(1, steps + 1, (b,), generator=g)
        n[b // 2] = steps
        x[m] = torch.randn(b, steps, width, generator=g)
        x[m][torch.arange(steps) >= n[:, None]] = padding
        lengths[m] = n
    if spec.task == "single":
        target = torch.arange(b) % len(LABELS)
    elif spec.task == "multi":
        # four label sets, each twice
        target = torch.tensor([[i % 4 & 1, i % 4 >> 1, 1] for i in range(b)]).float()
    else:
        target = torch.linspace(-3, 3, b)[:, None] if b > 1 else torch.ones(1, 1)
    return Batch(x, lengths, target, torch.arange(b))


def with_context(batch: Batch, spec: DataSpec, *, seed: int = 0, padding: float = 0.0) -> Batch:
    """`batch` with random neighbours as the spec asks for them: the first row has none, the second
    all; some lack a modality; `padding` is in the place of what is not there.
    """
    g = torch.Generator().manual_seed(seed + 1)
    b, offsets = len(batch), torch.tensor(spec.context.offsets)
    met = torch.rand(b, len(offsets), generator=g) < 0.7
    met[0] = False
    met[1:2] = True
    x, there = {}, {}
    for m in spec.modalities:
        x[m] = torch.randn(b, len(offsets), batch.x[m].shape[2], generator=g)
        there[m] = met & (torch.rand(met.shape, generator=g) < 0.8)
        x[m][~there[m]] = padding
    speaker = torch.randint(0, 3, met.shape, generator=g)
    return replace(batch, context=Context(x, there, offsets.expand(b, -1), speaker))


def with_turns(spec: DataSpec, kind: str = "both", width: int = 2) -> DataSpec:
    """`spec` with a context."""
    return replace(spec, context=ContextSpec(kind, width))


def make_model(name: str, spec: DataSpec, *, seed: int = 0, **args):
    torch.manual_seed(seed)
    kind = name.partition(" ")[0]
    model, config = model_class(kind)
    return model(config(**(SMALL.get(kind, {}) | VARIANTS.get(name, {}) | args)), spec)


def total(model, batch: Batch, progress: float = 1.0):
    terms, weights = model.losses(batch, progress), model.weights(progress)
    return sum(weights[name] * value for name, value in terms.items()), terms


def rows(batch: Batch, index: torch.Tensor) -> Batch:
    x, lengths = ({m: v[index] for m, v in d.items()} for d in (batch.x, batch.lengths))
    context = None
    if batch.context is not None:
        x_there = (batch.context.x, batch.context.there)
        seen, there = ({m: v[index] for m, v in d.items()} for d in x_there)
        context = Context(seen, there, batch.context.offset[index], batch.context.speaker[index])
    return Batch(x, lengths, batch.target[index], batch.row[index], context)


def absent(batch: Batch, modality: str, index: list[int]) -> Batch:
    """`batch` with `modality` missing, and NaN in its place, for the rows at `index`."""
    x, lengths = batch.x[modality].clone(), batch.lengths[modality].clone()
    x[index], lengths[index] = torch.nan, 0
    return replace(batch, x={**batch.x, modality: x}, lengths={**batch.lengths, modality: lengths})


class Operators(TorchDispatchMode):
    """Counts what PyTorch is asked for, the backward pass included."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **(kwargs or {}))
