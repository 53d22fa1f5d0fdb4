"""What each part of DRKF is worth: the preset against itself without that part, by the commands a
user has: `MER_TEST_DATA=DIR python -m tests.bench ablation --out OUT`.

`mer train` with the preset `drkf`, once whole and once for each of PARTS with that part switched
off, five seeds each, on the synthetic corpus (generator seeds 0 and 1) and on the text and audio
vectors of CMU-MOSI. Epochs are chosen on dev, test is scored once a run. A part is worth the whole
preset minus what is left without it: that difference and its interval are `mer compare`'s, seeds
and dialogues drawn together, and its p is corrected by Holm over the parts of a corpus. What is in
OUT already is not made or trained again, a run that was cut short goes on, and the results are
written after each corpus.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench.machine import save
from tests.bench.real_parts import import_mosi
from tests.bench.synthetic import extracted
from tests.bench.trimodal import Refused, mer

if TYPE_CHECKING:
    from mer.fusion.runs.records import Comparison

WHOLE = "whole"
PARTS = {
    # optimised representation learning: everything that works on H alone
    "ORL": ("w_mi=0", "w_cross=0", "w_rec=0", "w_kl=0"),
    "MI": ("w_mi=0",),
    "cross-MI": ("w_cross=0",),
    "KL": ("w_kl=0",),
    "rec": ("w_rec=0",),
    "ED": ("w_ed=0",),
    # the modalities' means through one linear layer in its place
    "FE": ("fe=linear",),
}
SHOWN = ("wa", "ua", "wf1")
COLUMNS = ("corpus", "seeds", "without", "WF1", "worth", "p (Holm)", "AUC of ED")  # of the table
DECIDES = "wf1"
SYNTHETIC = {"synthetic0": 0, "synthetic1": 1}  # by the seed of the generator
SETTINGS = {
    # untrained encoders have no layer that is better than another
    "synthetic0": ("data.layers=stored",),
    "synthetic1": ("data.layers=stored",),
    # of three modalities the two that DRKF was published for
    "mosi": ("data.modalities=audio,text",),
}


def corpora(text: str) -> tuple[str, ...]:
    """`synthetic0,mosi` as names of SETTINGS."""
    names = tuple(text.split(","))
    unknown = set(names) - set(SETTINGS)
    if unknown:
        raise argparse.ArgumentTypeError(f"{sorted(unknown)[0]}: known are {', '.join(SETTINGS)}")
    return names


def arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench ablation", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument(
        "--data",
        type=Path,
        default=os.environ.get("MER_TEST_DATA"),
        help="folder with mosi/mosi_utt.npz",
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--corpora", type=corpora, default=tuple(SETTINGS), help=",".join(SETTINGS))
    parser.add_argument("--seeds", type=int, default=5, help="of training")
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time")
    args = parser.parse_args(argv)
    if "mosi" in args.corpora and args.data is None:
        sys.exit("ablation: name the folder with mosi/mosi_utt.npz by --data or MER_TEST_DATA")
    return args


def store(corpus: str, args: argparse.Namespace) -> Path:
    """The features of a corpus, made unless they are there."""
    folder = args.out / corpus
    folder.mkdir(parents=True, exist_ok=True)
    if corpus in SYNTHETIC:
        return extracted(folder, SYNTHETIC[corpus])
    head = folder / "feats.h5"
    if not head.exists():
        import_mosi(args.data, head)
    return head


def trained(corpus: str, part: str, head: Path, args: argparse.Namespace) -> dict:
    """What `mer train` says of the preset without a part."""
    chosen = [*SETTINGS[corpus], *(f"model_args.{one}" for one in PARTS.get(part, ()))]
    sets = [text for one in chosen for text in ("--set", one)]
    started = time.perf_counter()
    said = mer(
        "train", head, "--out", folder(corpus, part, args), "--model", "drkf", *sets,
        "--seeds", args.seeds, "--jobs", args.jobs, "--device", "cpu", "--json",
    )  # fmt: skip
    print(f"{corpus} {part}: {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
    return json.loads(said)


def folder(corpus: str, part: str, args: argparse.Namespace) -> Path:
    """Of the runs without a part."""
    return args.out / corpus / "runs" / part


def row(corpus: str, part: str, found: dict) -> dict:
    """The figures of the preset without a part."""
    told = found.get("discrimination") or {}
    return {
        "corpus": corpus,
        "without": None if part == WHOLE else part,
        "settings": [*SETTINGS[corpus], *(f"model_args.{one}" for one in PARTS.get(part, ()))],
        "seeds": len(found["seeds"]),
        "n": found["n"],
        "bootstrap": found["bootstrap"],
        **{
            name: {
                "mean": found["metrics"][name],
                "sd": found["sd"][name],
                "interval": found["interval"][name],
            }
            for name in SHOWN
        },
        # of emotion discrimination on re-paired utterances
        "ed_auc": {pair: one["auc"] for pair, one in told.items()},
    }


def worth(whole: Path, without: Path) -> Comparison:
    """The whole preset minus what is left without a part, as `mer compare` has it."""
    from mer.fusion import report
    from mer.fusion.runs.checkpoint import Run

    return report.compare(Run.open(without), Run.open(whole), metric=DECIDES)


def ablated(corpus: str, args: argparse.Namespace) -> list[dict]:
    """A row for the whole preset and one for each part."""
    from mer.fusion.measures.intervals import holm

    head = store(corpus, args)
    rows = [row(corpus, part, trained(corpus, part, head, args)) for part in (WHOLE, *PARTS)]
    gaps = [worth(folder(corpus, WHOLE, args), folder(corpus, part, args)) for part in PARTS]
    together = holm([gap.metrics[DECIDES].p for gap in gaps])
    for one, gap, corrected in zip(rows[1:], gaps, together, strict=True):
        one["worth"] = {
            name: {
                "difference": gap.metrics[name].difference,
                "interval": list(gap.metrics[name].interval),
                "p": gap.metrics[name].p,
            }
            for name in SHOWN
        }
        one["worth"][DECIDES]["p_holm"] = corrected
    return rows


def points(difference: float) -> str:
    """A difference of shares in points; never a zero with a sign."""
    text = f"{100 * difference:+.1f}"
    return "0.0" if float(text) == 0 else text


def cells(one: dict) -> list[str]:
    """A row of COLUMNS, in percent."""
    figure = one[DECIDES]
    auc = " / ".join(f"{value:.2f}" for value in one["ed_auc"].values())
    told = [
        one["corpus"],
        str(one["seeds"]),
        one["without"] or "nothing",
        f"{100 * figure['mean']:.1f} ± {100 * figure['sd']:.1f}",
        *("", ""),
        auc if one["without"] != "ED" else "",
    ]
    if "worth" in one:
        gap = one["worth"][DECIDES]
        low, high = gap["interval"]
        told[4] = f"{points(gap['difference'])} [{points(low)}, {points(high)}]"
        told[5] = f"{gap['p_holm']:.2f}"
    return told


def main(argv: list[str]) -> None:
    args = arguments(argv)
    rows = []
    command = f"python -m tests.bench ablation --out OUT --corpora {','.join(args.corpora)}"
    for corpus in args.corpora:
        try:
            found = ablated(corpus, args)
        except Refused as error:
            sys.exit(f"ablation: {corpus}: {error}")
        rows += found
        for one in found:
            print(*cells(one), sep=" | ", flush=True)
        print(save("ablation", rows, command=f"{command} --seeds {args.seeds}"), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
