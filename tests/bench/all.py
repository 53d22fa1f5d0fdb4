"""The ratios of all benches, small, in one table: `python -m tests.bench all --quick`.

Within 15 minutes on two idle cores; each part is a process of its own with its share of the time,
and the table is written after each: `results/all.md`, and with machine, versions and commit
`results/all.json`. Both sides of a ratio run by turns in one process, or as processes by turns; the
benches that the parts are made of say how, and have the full sizes. `ratio` is ours over theirs;
where it says "times as fast", theirs over ours. `--tiny` is a dry run with sizes that say nothing.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from tests.bench.machine import RESULTS, describe
from tests.bench.parts import Part, replace, run_all, table

# the aim of a ratio is in the part's own rows (tests/bench/all_parts.py)
PARTS = (
    Part("startup", 0.10),
    Part("demo", 0.17),
    Part("concat", 0.06),
    Part("steps", 0.10),
    Part("seeds", 0.12),
    Part("extraction", 0.22),
    Part("transcripts", 0.11),
    Part("contrastive", 0.12),
)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench all",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", required="--part" not in argv)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for all.md and all.json")
    parser.add_argument("--minutes", type=float, default=14.0)
    parser.add_argument("--parts", default=",".join(part.name for part in PARTS))
    parser.add_argument("--tiny", action="store_true", help="a dry run")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.part:
        from tests.bench import all_parts

        all_parts.run(options.part, options.out, tiny=options.tiny)
        return
    if options.tiny and options.out == RESULTS:
        raise SystemExit("--tiny says nothing of speed: name a folder of its own with --out")
    wanted = options.parts.split(",")
    if unknown := sorted(set(wanted) - {part.name for part in PARTS}):
        raise SystemExit(f"no such part: {', '.join(unknown)}")
    options.out.mkdir(parents=True, exist_ok=True)
    parts = [part for part in PARTS if part.name in wanted]
    head = {"command": " ".join(["python -m tests.bench all", *argv]), "machine": describe()}

    def tell(told: list[dict]) -> None:
        write(options.out, head, told)

    tiny = ["--tiny"] if options.tiny else []
    with tempfile.TemporaryDirectory() as work:
        run_all("all", parts, Path(work), 60 * options.minutes, tell, *tiny)
    print((options.out / "all.md").read_text())


COLUMNS = ("what", "ours", "peer", "theirs", "unit", "ratio", "aim")


def write(out: Path, head: dict, told: list[dict]) -> None:
    rows = [
        {"part": said["part"], **{name: row.get(name, "") for name in COLUMNS}}
        for said in told
        for row in said.get("rows", [])
    ]
    ends = [{name: said[name] for name in ("part", "ended", "seconds")} for said in told]
    replace(out / "all.json", json.dumps({**head, "parts": ends, "rows": rows}, indent=1) + "\n")
    machine = head["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    text = [
        f"# Ratios, `{head['command']}`",
        "",
        f"{machine['cpu']}, {machine['cores']} cores, load {machine['load']} at the beginning, at "
        f"{machine['commit']}; {versions}",
        "",
        *(table(rows) if rows else []),
    ]
    text += [f"\n{said['part']}: {said['ended']}" for said in told if said["ended"] != "done"]
    replace(out / "all.md", "\n".join(text) + "\n")
