"""The tables of docs/results.md and of the README, from what `python -m tests.bench` wrote into
tests/bench/results. `python -m docs` puts them into the pages, between marks that name each;
tests/test_docs.py holds the pages to the files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from functools import cache, partial
from pathlib import Path

from mer.fusion.measures.intervals import holm

ROOT = Path(__file__).parent.parent
FOLDER = "tests/bench/results"
PAGES = (
    ROOT / "README.md",
    *(
        ROOT / "docs" / f"{name}.md"
        for name in ("results", "training", "extraction", "papers/drkf")
    ),
)

MARKED = re.compile(r"(<!-- ([a-z-]+): written by `python -m docs` -->\n).*?(<!-- end -->)", re.S)
LEVEL = 0.05  # of a difference that is called one, after Holm's correction
GROUPS = {"dialogue": "dialogues", "speaker": "speakers", "utterance": "utterances"}


def filled(text: str) -> str:
    """A page with each of its marked parts as the files of results have it now."""
    return MARKED.sub(lambda found: f"{found[1]}\n{PARTS[found[2]]()}\n\n{found[3]}", text)


@cache
def results(name: str) -> dict:
    """A file of results: command, machine and rows; of one that has not been made yet, none."""
    path = ROOT / FOLDER / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else {"rows": []}


def rows(name: str, **wanted: str | int) -> list[dict]:
    """Those of its rows that have these values."""
    return [
        row
        for row in results(name)["rows"]
        if all(row.get(key) == value for key, value in wanted.items())
    ]


def percent(value: float, sign: str = "") -> str:
    """With one decimal; never a zero with a sign."""
    text = f"{100 * value:{sign}.1f}"
    return "0.0" if float(text) == 0 else text


def span(interval: Iterable[float], sign: str = "") -> str:
    return f"[{', '.join(percent(end, sign) for end in interval)}]"


def figure(one: dict) -> str:
    """Mean, deviation over seeds and interval."""
    return f"{percent(one['mean'])} ± {percent(one['sd'])} {span(one['interval'])}"


def pooled(one: dict) -> str:
    """The figure of all folds together, and its interval."""
    return f"{percent(one['pooled'])} {span(one['interval'])}"


def gap(one: dict) -> str:
    """A paired difference and its interval."""
    return f"{percent(one['difference'], '+')} {span(one['interval'], '+')}"


def excludes_zero(interval: Iterable[float]) -> bool:
    low, high = interval
    return low > 0 or high < 0


def table(head: Iterable[str], body: Iterable[Iterable[str]]) -> str:
    """A table of Markdown."""
    head = list(head)
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def counted(row: dict) -> str:
    """How large the test part of a row is."""
    of = row["bootstrap"]
    return f"Test: {row['n']:,} utterances, intervals over {of['groups']} {GROUPS[of['unit']]}."


def source(*names: str, up: str = "..") -> str:
    """Command, machine and commit of each file, a line each, and which have not been made yet; `up`
    leads from the page's folder to the root.
    """
    lines = []
    for name in names:
        made = results(name)
        if not made["rows"]:
            lines.append(f"- {name}.json: not measured yet")
            continue
        machine = made["machine"]
        torch = machine["versions"]["torch"]
        lines.append(
            f"- `{made['command']}`: [{name}.json]({up}/{FOLDER}/{name}.json), commit "
            f"{machine['commit']}, {machine['cores']} cores of an {machine['cpu']}, Python "
            f"{machine['python']}, torch {torch}"
        )
    return "\n".join(lines)


def aims() -> str:
    """What was aimed at before anything was trained, and what came out."""
    lines = []
    alone, *around = rows("real-context", corpus="meld")
    best = max(around, key=lambda row: row["wf1"]["mean"])
    lines.append(
        [
            "MELD, text: WF1 of at least 58.5 with context",
            f"{figure(best['wf1'])}, `{best['model']}`, {best['context']}; without context "
            f"{percent(alone['wf1']['mean'])}",
            gap(best["minus none"]["wf1"]),
            met(best["wf1"]["mean"] >= 0.585),
        ]
    )
    tried = [row for row in rows("real-mosi") if "minus none" in row]
    for name, some in (
        ("`concat`", [row for row in tried if row["model"] == "concat"]),
        (f"the highest of {len(tried)}, which flatters", tried),
    ):
        if not some:
            continue
        best = max(some, key=lambda row: row["wa"]["mean"])
        above = best["minus none"]["wa"]
        lines.append(
            [
                f"MOSI: accuracy of at least 78.5 with context, and an interval above none; {name}",
                f"{figure(best['wa'])}, `{best['model']}`, {best['context']}",
                gap(above),
                met(best["wa"]["mean"] >= 0.785 and above["interval"][0] > 0),
            ]
        )
    (nemo,) = rows("real", corpus="nemo")
    lines.append(
        [
            "nEMO, audio: a mix of all layers not below the last one, WF1",
            pooled(nemo["mix"]["wf1"]),
            gap(nemo["mix minus stored"]["wf1"]),
            met(nemo["mix minus stored"]["wf1"]["difference"] >= 0),
        ]
    )
    return table(["aim", "reached", "minus none, or the last layer", ""], lines)


def met(reached: bool) -> str:
    return "met" if reached else "not met"


def meld() -> str:
    head = ["learnt", "model, what it reads", "context", "WF1", "minus", "WA", "minus", "UA"]
    (layers,) = rows("real", corpus="meld")
    lines = []
    for kind, name in (("stored", "the last layer"), ("mix", "all layers, mixed")):
        against = ("last", layers["mix minus stored"]) if kind == "mix" else None
        said = ["emotion", f"`text`, {name}, preset", "none"]
        lines.append([*said, *three(layers[kind], against)])
    for row in rows("real-models"):
        if row["model"] == "text":  # as above
            continue
        said = ["emotion", f"`{row['model']}`, the last layer, {row['seeds']} seeds", "none"]
        lines.append([*said, *three(row, ("`text`, last", row["minus text"]))])
    for learnt, name in (("emotion", "real-context"), ("sentiment", "real-sentiment")):
        for row in rows(name, model="text"):
            if not row["corpus"].startswith("meld"):
                continue
            against = ("none", row["minus none"]) if "minus none" in row else None
            said = [learnt, "`text`, all layers, mixed, 8 epochs", row["context"]]
            lines.append([*said, *three(row, against)])
    names = ("real", "real-models", "real-context", "real-sentiment")
    return "\n\n".join([counted(layers), table(head, lines), source(*names)])


def three(row: dict, against: tuple[str, dict] | None) -> list[str]:
    """WF1 and WA, each with its difference from another row, and UA."""
    cells = []
    for name in ("wf1", "wa"):
        cells += [figure(row[name]), f"{against[0]}: {gap(against[1][name])}" if against else ""]
    return [*cells, figure(row["ua"])]


def nemo() -> str:
    (row,) = rows("real", corpus="nemo")
    head = ["", "the last layer", "all layers, mixed", "mix minus last"]
    lines = [
        [
            name.upper(),
            pooled(row["stored"][name]),
            pooled(row["mix"][name]),
            gap(row["mix minus stored"][name]),
        ]
        for name in ("wf1", "wa", "ua")
    ]
    return "\n\n".join([counted(row), table(head, lines), source("real")])


def mosi() -> str:
    head = ["model", "context", "accuracy", "minus none", "minus `concat`", "WF1"]
    every = rows("real-mosi")
    if not every:
        return source("real-mosi")
    lines = []
    for row in every:
        gaps = [gap(row[key]["wa"]) if key in row else "" for key in MOSI_GAPS]
        said = [f"`{row['model']}`", row["context"], figure(row["wa"])]
        lines.append([*said, *gaps, figure(row["wf1"])])
    found = [row["minus none"]["wa"] for row in every if "minus none" in row]
    apart = sum(excludes_zero(one["interval"]) for one in found)
    corrected = sum(p < LEVEL for p in holm([one["p"] for one in found]))
    said = (
        f"Of the {len(found)} differences from none, {apart} have an interval without 0; by Holm's "
        f"correction over all of them {corrected} are below {LEVEL}."
    )
    return "\n\n".join([counted(every[0]), table(head, lines), said, source("real-mosi")])


MOSI_GAPS = ("minus none", "minus concat")


def mosi_alone() -> str:
    (counts,) = (row["counts"] for row in results("mosi")["rows"] if "counts" in row)
    head = ["model", "accuracy", "minus logistic regression", "minus `concat`"]
    lines = []
    for row in results("mosi")["rows"]:
        if "test_mean" not in row:
            continue
        name = row["model"]
        learnt = len(row["test"]) > 1
        spread = f" ± {percent(row['test_sd'])}" if learnt else ""
        gaps = [
            "" if same else gap(row[key])
            for key, same in (
                ("minus LR", name == "logistic regression, all"),
                ("minus concat", name == "concat"),
            )
        ]
        value = f"{percent(row['test_mean'])}{spread} {span(row['interval'])}"
        lines.append([f"`{name}`" if learnt else name, value, *gaps])
    said = (
        f"Training: {counts['train']:,} utterances, dev: {counts['dev']}, test: {counts['test']}; "
        f"intervals over {counts['test_videos']} videos."
    )
    return "\n\n".join([said, table(head, lines), source("mosi")])


def mosi_dev() -> str:
    """Dev beside test accuracy of each configuration that the models chose among."""
    tried = [row for row in results("mosi")["rows"] if "afterwards" in row]
    configurations = list(dict.fromkeys(short(row) for row in tried))
    lines = []
    for model in dict.fromkeys(row["afterwards"] for row in tried):
        cells = {}
        for row in tried:
            if row["afterwards"] == model:
                text = f"{percent(row['dev'])}, {percent(row['test'])}"
                cells[short(row)] = f"**{text}**" if row["chosen"] else text
        lines.append([f"`{model}`", *(cells[name] for name in configurations)])
    return table(["model", *configurations], lines)


def short(row: dict) -> str:
    """What differs between the configurations of a model."""
    chosen = dict(one.split("=") for one in row["settings"])
    return f"{chosen['train.epochs']} epochs, dropout {chosen['model_args.dropout']}"


def mosi_classes() -> str:
    found = rows("mosi_subsets", task="single")
    models = list(dict.fromkeys(row["model"] for row in found))
    of = {(row["model"], row["modalities"]): row for row in found}
    subsets = list(dict.fromkeys(row["modalities"] for row in found))
    lines = []
    for subset in subsets:
        cells = [figure(of[model, subset]["wa"]) for model in models]
        lines.append([subset.replace(",", " + "), *cells])
    gaps = [gap(of[model, subsets[-1]]["minus text"]["wa"]) for model in models]
    lines.append(["all three minus text", *gaps])
    head = ["modalities", *(f"`{model}`" for model in models)]
    return "\n\n".join([counted(found[0]), table(head, lines)])


def mosi_numbers() -> str:
    names = {
        "acc2_has0": "Acc-2 Has0",
        "f1_has0": "F1 Has0",
        "acc2_non0": "Acc-2 Non0",
        "f1_non0": "F1 Non0",
        "acc7": "Acc-7",
    }
    lines = []
    for row in rows("mosi_subsets", task="regression"):
        plain = [
            f"{row[name]['mean']:.2f} [{', '.join(f'{end:.2f}' for end in row[name]['interval'])}]"
            for name in ("mae", "pearson")
        ]
        shares = [f"{percent(row[n]['mean'])} {span(row[n]['interval'])}" for n in names]
        lines.append([f"`{row['model']}`", row["modalities"].replace(",", " + "), *shares, *plain])
    head = ["model", "modalities", *names.values(), "MAE", "Pearson"]
    return "\n\n".join([table(head, lines), source("mosi_subsets")])


def synthetic() -> str:
    head = ["corpus", "model", "UA", "minus the better single one", "minus `concat`", "WF1"]
    every = rows("synthetic")
    lines = []
    for row in every:
        gaps = [
            f"{percent(one['ua'], '+')} {span(one['interval'], '+')}" if one else ""
            for one in map(row.get, ("minus_better_single", "minus_concat"))
        ]
        name = f"seed {row['generator_seed']}"
        lines.append([name, f"`{row['model']}`", figure(row["ua"]), *gaps, figure(row["wf1"])])
    return "\n\n".join([counted(every[0]), table(head, lines), source("synthetic")])


def synthetic_readme() -> str:
    """The table of the README, of the first corpus, and what it shows of DRKF."""
    head = [
        "model",
        "UA, mean ± sd of 5 seeds",
        f"95 % interval ({groups(rows('synthetic')[0])})",
        "WF1",
    ]
    lines = []
    for row in rows("synthetic", generator_seed=0):
        ends = " … ".join(map(percent, row["ua"]["interval"]))
        lines.append([f"`{row['model']}`", spread(row["ua"]), ends, spread(row["wf1"])])
    (drkf,) = rows("synthetic", generator_seed=0, model="drkf")
    single, concat = drkf["minus_better_single"], drkf["minus_concat"]
    told = (
        "tells the two apart" if excludes_zero(concat["interval"]) else "does not tell them apart"
    )
    ends = {one["model"]: " … ".join(map(percent, one["interval"])) for one in (single, concat)}
    second = {row["model"]: spread(row["ua"]) for row in rows("synthetic", generator_seed=1)}
    others = ", ".join(f"`{name}` {second[name]}" for name in ("concat", single["model"]))
    made = results("synthetic")
    said = (
        f"DRKF: {percent(single['ua'], '+')} points UA over `{single['model']}`, the single "
        f"modality that is better on dev (paired interval {ends[single['model']]}). Over `concat` "
        f"it is {percent(concat['ua'], '+')} ({ends['concat']}, p {concat['p']:.2f}): a paired "
        f"test {told}. On the corpus of another generator seed, on which nothing was chosen, DRKF "
        f"has {second['drkf']}, {others}. (`{made['command']}`, commit "
        f"{made['machine']['commit']}, [results]({FOLDER}/synthetic.json).)"
    )
    return "\n\n".join([table(head, lines), said])


def groups(row: dict) -> str:
    of = row["bootstrap"]
    return f"{of['groups']} {GROUPS[of['unit']]}"


def spread(one: dict) -> str:
    return f"{percent(one['mean'])} ± {percent(one['sd'])}"


def trimodal() -> str:
    head = ["model", "modalities", "UA", "three minus this", "WF1"]
    lines = []
    for row in rows("trimodal"):
        said = [f"`{row['model']}`", row["modalities"].replace(",", " + ")]
        if "refused" in row:
            lines.append([*said, f"refused: {row['refused']}", "", ""])
            continue
        above = gap(row["three minus this"]["ua"]) if "three minus this" in row else ""
        lines.append([*said, figure(row["ua"]), above, figure(row["wf1"])])
    return "\n\n".join([counted(rows("trimodal")[0]), table(head, lines), source("trimodal")])


def ratios(*parts: str) -> str:
    """Some parts of the table of every ratio, and which of them ran out of time."""
    head = ["", "mer", "beside", "that takes", "ratio", "aim"]
    lines = []
    for row in results("all")["rows"]:
        if row["part"] in parts:
            theirs = f"{row['theirs']} {row['unit']}" if row["peer"] else ""
            ours = f"{row['ours']} {row['unit']}"
            lines.append([row["what"], ours, row["peer"], theirs, str(row["ratio"]), row["aim"]])
    if not lines:
        return source("all")
    cut = [
        f"- {part['part']}: {part['ended']}"
        for part in results("all")["parts"]
        if part["part"] in parts and part["ended"] != "done"
    ]
    return "\n\n".join([table(head, lines), "\n".join([source("all"), *cut])])


def training_steps() -> str:
    """A step of each preset in an earlier tree, now, and now in bfloat16."""
    head = ["preset", "before, ms of CPU per step", "now", "ratio", "now, bf16", "ratio"]
    lines = []
    for row in rows("steps"):
        line = [f"`{row['preset']}`", row["before_cpu_ms"], row["now_cpu_ms"], row["ratio"]]
        line += [row.get("bf16_cpu_ms", ""), row.get("bf16_ratio", "")]
        lines.append([str(cell) for cell in line])
    return "\n\n".join([table(head, lines), source("steps")])


def ablation() -> str:
    """DRKF whole and without each of its parts."""
    from tests.bench.ablation import COLUMNS, cells

    found = rows("ablation")
    sizes = {row["corpus"]: counted(row) for row in found}
    said = "\n".join(f"- {corpus}. {size}" for corpus, size in sizes.items())
    return "\n\n".join([said, table(COLUMNS, map(cells, found)), source("ablation", up="../..")])


def discrimination() -> str:
    """What emotion discrimination learns by DRKF's presets, on dev and on test."""
    from tests.bench.discrimination import COLUMNS, summaries

    *found, _ = rows("discrimination")
    return "\n\n".join([table(COLUMNS, summaries(found)), source("discrimination", up="../..")])


def augmentation() -> str:
    """What more noise before DRKF's autoencoders does, on dev."""
    from tests.bench.augmentation import COLUMNS, summaries

    found = rows("augmentation")
    if not found:
        return source("augmentation", up="../..")
    return "\n\n".join([table(COLUMNS, summaries(found)), source("augmentation", up="../..")])


PARTS: dict[str, Callable[[], str]] = {
    "aims": aims,
    "meld": meld,
    "nemo": nemo,
    "mosi": mosi,
    "mosi-alone": mosi_alone,
    "mosi-dev": mosi_dev,
    "mosi-classes": mosi_classes,
    "mosi-numbers": mosi_numbers,
    "synthetic": synthetic,
    "synthetic-readme": synthetic_readme,
    "trimodal": trimodal,
    "speed-training": partial(ratios, "startup", "demo", "concat", "steps", "seeds"),
    "training-steps": training_steps,
    "ablation": ablation,
    "discrimination": discrimination,
    "augmentation": augmentation,
    "speed-extraction": partial(ratios, "extraction", "transcripts"),
}
