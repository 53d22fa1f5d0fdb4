"""transformers without torch's compiler: quicker to import, and the models compute the same."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

from mer.pipeline.encoders import lean

ROOT = Path(__file__).parents[2]
NEEDLESS = ("torch._dynamo", "torch.distributed.tensor", "sympy", "sklearn", "scipy")
# A model of each way to see (both ways, from left to right, sound, a picture), whose masks and
# attention are made by what the stand-ins are part of; padding included.
MODELS = """
import hashlib, json, sys
import torch

def digests():
    from transformers import (
        LlamaConfig, LlamaModel, RobertaConfig, RobertaModel,
        ViTConfig, ViTModel, Wav2Vec2Config, Wav2Vec2Model,
    )
    size = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16)
    words = dict(
        input_ids=torch.arange(3, 11).view(2, 4),
        attention_mask=torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]),
    )
    sound = dict(conv_dim=(8, 8), conv_kernel=(10, 8), conv_stride=(5, 4))
    sound |= dict(num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2)
    pixels, samples = torch.ones(1, 3, 32, 32), torch.ones(1, 800)
    asked = {
        "roberta": (RobertaModel, RobertaConfig(vocab_size=20, **size), words),
        "llama": (LlamaModel, LlamaConfig(vocab_size=20, **size), words),
        "vit": (ViTModel, ViTConfig(image_size=32, **size), dict(pixel_values=pixels)),
        "wav2vec2": (Wav2Vec2Model, Wav2Vec2Config(**sound, **size), dict(input_values=samples)),
    }
    found = {}
    for name, (kind, config, given) in asked.items():
        torch.manual_seed(0)
        with torch.inference_mode():
            states = kind(config).eval()(**given).last_hidden_state
        assert states.isfinite().all()
        found[name] = hashlib.sha256(states.numpy().tobytes()).hexdigest()
    return found

def listed():
    import transformers, transformers.models
    both = (transformers, transformers.models)
    names = [sorted(module._class_to_module.items()) for module in both]
    assert len(names[0]) > 1000 and len(names[1]) > 1000
    return hashlib.sha256(json.dumps(names).encode()).hexdigest()
"""


def in_a_process(code: str) -> dict:
    command = [sys.executable, "-W", "error", "-c", MODELS + code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


LEAN = f"""
from mer.pipeline.encoders import lean
lean.import_transformers()
from transformers.utils import import_utils
reads = import_utils.create_import_structure_from_path.cache_info()
found = dict(listed=listed(), reads=[reads.misses, reads.currsize])
found |= dict(digests=digests(), needless=sorted(set({NEEDLESS}) & sys.modules.keys()))

from transformers import masking_utils
assert import_utils.is_torch_distributed_available()
assert "_dynamo" not in vars(torch)
compiled = torch.compile(lambda x: x.sin() * 2, backend="eager")
x = torch.ones(3)
assert (compiled(x) == x.sin() * 2).all()
found["mode"] = type(masking_utils.TransformGetItemToIndex()).__module__
print(json.dumps(found))
"""


def test_models_compute_the_same_without_what_they_do_not_need():
    """And the compiler is there when it is asked for, whole."""
    plain = in_a_process("print(json.dumps([digests(), 'torch._dynamo' in sys.modules, listed()]))")
    found = in_a_process(LEAN)
    assert plain[1] and found["needless"] == []
    assert found["digests"] == plain[0] and len(set(plain[0].values())) == 4
    assert found["listed"] == plain[2]
    misses, folders = found["reads"]
    assert misses == folders > 128  # none was read again
    assert found["mode"] == "torch._dynamo._trace_wrapped_higher_order_op"


def test_what_cannot_be_imported_so_is_left_to_who_needs_it(monkeypatch):
    monkeypatch.setattr(lean, "SHARED", ("transformers.no_such_module",))
    for name in (lean.MODELS, lean.COMPILER):
        monkeypatch.delitem(sys.modules, name, raising=False)
    before = dict(sys.modules)
    lean.import_transformers()
    assert not {lean.COMPILER, lean.INDEXING} & (sys.modules.keys() - before.keys())
    assert all(sys.modules.get(name) is module for name, module in before.items())


def test_packages_are_looked_up_by_name():
    """Those of modules whose package has another name, too."""
    whole, looks = importlib.metadata.packages_distributions(), []

    def all_of_them():
        looks.append(1)
        return whole

    found = lean._Installed(all_of_them)
    for name in ("torch", "numpy"):
        assert found[name] == whole[name]
    assert not looks
    for name in ("PIL", "yaml"):
        assert found.get(name) == whole[name]
    assert found.get("no_such_module", []) == [] and len(looks) == 1
    assert dict(found).keys() == whole.keys()
