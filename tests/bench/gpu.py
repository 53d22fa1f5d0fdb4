"""What only a GPU can show, in one go: `python -m tests.bench gpu --out DIR --minutes 8`.

Most telling first, each part in a process of its own with its own share of the time; what a part
leaves goes to those behind it. `DIR/summary.md` and `summary.json` are written after every part, so
that a machine may be taken away at any time; `DIR/<part>.log` is what it printed.

- `parity`: the GPU tests of the kernels and of the extraction (pytest -m gpu);
- `sanitizer`: one small case of each kernel path under compute-sanitizer, where that is installed;
- `extraction`: wav2vec2-large and roberta-large of random weights over lengths like MELD's, from
  generated waveforms and tokens, against a loop of transformers in fp16, with the device's share of
  busy time;
- `drkf`: 30 epochs and 5 seeds on features of MELD's shape;
- `contrastive`: the loss against eager, compiled and CUDA-graphed peers;
- `tiles`: the launcher's tiles and paths against their neighbours.

It needs PyTorch and the pinned packages; a part that lacks one says so. It runs from a plain copy
of the tree: no git (MER_COMMIT names the commit), no pip, and nothing of what only decoding and the
command line need. `--tiny` is a dry run on the CPU, for its own tests.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from tests.bench.machine import describe
from tests.bench.parts import Part, replace, run_all, table

PARTS = (
    Part("parity", 0.20),
    Part("sanitizer", 0.08),
    Part("extraction", 0.26),
    Part("drkf", 0.20),
    Part("contrastive", 0.20),
    Part("tiles", 0.06),
)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--parts", default=",".join(part.name for part in PARTS))
    parser.add_argument("--tiny", action="store_true", help="a dry run on the CPU")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    options.out = options.out.resolve()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.part:
        from tests.bench import gpu_parts

        gpu_parts.run(options.part, options.out, options.seconds, tiny=options.tiny)
        return
    wanted = options.parts.split(",")
    if unknown := sorted(set(wanted) - {part.name for part in PARTS}):
        raise SystemExit(f"no such part: {', '.join(unknown)}")
    if not options.tiny and not has_gpu():
        raise SystemExit("no CUDA device here; --tiny is a dry run on the CPU")
    parts = [part for part in PARTS if part.name in wanted]
    head = {"command": " ".join(["python -m tests.bench gpu", *argv]), "machine": describe()}

    def tell(told: list[dict]) -> None:
        write_summary(options.out, {**head, "parts": told})

    tiny = ["--tiny"] if options.tiny else []
    run_all("gpu", parts, options.out, 60 * options.minutes, tell, *tiny)
    print(f"wrote {options.out / 'summary.md'}")


def has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def write_summary(out: Path, found: dict) -> None:
    replace(out / "summary.json", json.dumps(found, indent=1) + "\n")
    machine = found["machine"]
    text = [
        f"# {machine['gpu'] or 'dry run on the CPU: no figures of a GPU'}",
        "",
        f"`{found['command']}` at {machine['commit']}; "
        + ", ".join(f"{name} {version}" for name, version in machine["versions"].items()),
    ]
    for said in found["parts"]:
        text += ["", f"## {said['part']}", "", f"{said['ended']}, {said['seconds']} s"]
        rows = said.get("rows", [])
        for kind in dict.fromkeys(tuple(row) for row in rows):
            text += ["", *table([row for row in rows if tuple(row) == kind])]
        if "log" in said:
            text += ["", "```text", said["log"].strip(), "```"]
    replace(out / "summary.md", "\n".join(text) + "\n")
