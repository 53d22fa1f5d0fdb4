"""`python -m tests.bench NAME [options]`: side-by-side ratios in one process, written as CSV/JSON
with machine, versions and commit.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path


def main() -> None:
    names = sorted(
        p.stem for p in Path(__file__).parent.glob("*.py") if "\ndef main(" in p.read_text()
    )
    if len(sys.argv) < 2 or sys.argv[1] not in names:
        sys.exit(f"usage: python -m tests.bench {{{','.join(names)}}} [--help]")
    import_module(f"tests.bench.{sys.argv[1]}").main(sys.argv[2:])


if __name__ == "__main__":
    main()
