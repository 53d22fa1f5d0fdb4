"""What people read of the known corpora: the list, the page of one, and the table in the docs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

TASKS = {"single": "one class", "multi": "several classes at once", "regression": "a number"}
OWN = (
    "table: your own CSV, TSV, JSONL or Parquet: `mer prepare table --from FILE`",
    "folder: your own files by their names: `mer prepare folder --root DIR --pattern PATTERN`",
    "emobox: EmoBox's lists of 32 corpora, with their folds: `mer prepare emobox --meta DIR "
    "--root DIR`",
)
WIDTH = 11  # of the first column of a page


def kind_of(task: str, labels: Sequence[str]) -> str:
    """What the labels of a set are.

    >>> kind_of("regression", ["valence", "arousal"]), kind_of("multi", ["joy", "anger"])
    ('2 numbers', 'several classes at once')
    """
    several = task == "regression" and len(labels) > 1
    return f"{len(labels)} numbers" if several else TASKS[task]


def in_list(corpus: Mapping) -> list[str]:
    """The lines of one corpus of `overview` in the list of all."""
    sets = corpus["labels"]
    tasks = dict.fromkeys(kind_of(task, sets[name]) for name, task in corpus["tasks"].items())
    facts = (
        corpus["size"],
        corpus["language"],
        ", ".join(corpus["modalities"]),
        " or ".join(tasks),
        corpus["licence"],
    )
    return [
        f"{corpus['name']}: {corpus['title']}",
        f"  {' | '.join(facts)}",
        f"  here: {corpus['here']}",
    ]


def page(corpus: Mapping) -> list[str]:
    """All that is known of one corpus of `overview`."""
    lines = [f"{corpus['name']}: {corpus['title']}"]

    def say(what: str, value: object) -> None:
        lines.append(f"  {what:<{WIDTH}}{value}")

    for what in ("here", "size", "language"):
        say(what, corpus[what])
    say("modalities", ", ".join(corpus["modalities"]))
    for number, (name, labels) in enumerate(corpus["labels"].items()):
        default = "" if number or len(corpus["labels"]) == 1 else ", the default"
        note = f"; {corpus['notes'][name]}" if name in corpus["notes"] else ""
        task = kind_of(corpus["tasks"][name], labels)
        say("labels", f"{name}{default}: {', '.join(labels)} ({task}{note})")
        for split, counts in corpus["expected"][name].items():
            told = ", ".join(f"{label} {count:,}" for label, count in counts.items())
            say("", f"  expected, {split}: {told}")
    if corpus["fixed_sentences"]:
        say("text", "the same sentences in every emotion: text carries no emotion")
    if corpus["folds"]:
        say("folds", ", ".join(f"--folds {by}" for by in corpus["folds"]))
    for clip, why in corpus["known_bad"].items():
        say("known bad", f"{clip}: {why}")
    say("licence", corpus["licence"])
    if corpus["restricted"]:
        say("", "features are as restricted as the clips: read the licence before passing them on")
    say("obtain", corpus["obtain"])
    for modality in ("audio", "text", "vision"):
        if encoder := corpus.get(f"{modality}_encoder"):
            layer = corpus.get(f"{modality}_layer")
            say("encoder", f"{modality}: {encoder}{f', layer {layer}' if layer else ''}")
    say("prepare", f"mer prepare {corpus['name']} --root DIR")
    if corpus["cite"]:
        say("cite", corpus["cite"])
    return lines


def table(corpora: Sequence[Mapping]) -> str:
    """The corpora of `overview` as a table in Markdown, sorted by name."""
    rows = ["| corpus | | size | language | modalities | labels | folds | licence |"]
    rows.append("|---|---|---|---|---|---|---|---|")
    for corpus in sorted(corpora, key=lambda corpus: corpus["name"]):
        sets = []
        for name, labels in corpus["labels"].items():
            kind = str(len(labels))
            if corpus["tasks"][name] == "multi":
                kind = f"{len(labels)}, several at once"
            elif corpus["tasks"][name] == "regression":
                kind = kind_of("regression", labels)
            sets.append(f"{name} ({kind})")
        cells = (
            f"[{corpus['name']}](#{corpus['name']})",
            corpus["title"],
            corpus["size"],
            corpus["language"],
            ", ".join(corpus["modalities"]),
            ", ".join(sets),
            ", ".join(corpus["folds"]),
            corpus["licence"],
        )
        rows.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    return "\n".join(rows)
