"""Messages count in words that fit: "1 utterance", never "1 utterances"."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
# Not the units of signals and files (samples, packets, bytes): of those there is never one.
NOUNS = (
    "cell class clip column dialogue epoch file fold folder group id label layer line name picture "
    "row run seed segment session shard speaker step transcript utterance value word worker"
).split()
# Counts that are more than one by the code around them.
SEVERAL = {
    "fusion/runtime/typed.py: len(args) values",  # of a tuple in the source
    "pipeline/extraction/outcome.py: self.utterances utterances",  # one is said otherwise
    "pipeline/interchange/labelling.py: len(texts) different labels",  # > MANY_CLASSES
}
# what is counted, perhaps behind one word: "3 rows", "3 hidden files"
COUNTED = re.compile(rf" (?:[a-z-]+ )?(?:{'|'.join(NOUNS)})(?:s|es)\b(?! none)")


def pieces(path: Path) -> Iterator[tuple[ast.FormattedValue, str]]:
    """Every value in a text of a file, with what follows it there."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.JoinedStr):
            for value, behind in zip(node.values, node.values[1:], strict=False):
                if isinstance(value, ast.FormattedValue) and isinstance(behind, ast.Constant):
                    yield value, str(behind.value)


def a_number(value: ast.FormattedValue) -> bool:
    """Whether a value is a count: neither text, nor a bound, whose name is in capitals."""
    spec = ast.unparse(value.format_spec) if value.format_spec is not None else ""
    said = ast.unparse(value.value)
    if said.startswith("plural(") or said.isupper() or said.rpartition(".")[2].isupper():
        return False
    counts = (
        "len(",
        "sum(",
        "count",
        "total",
        "missing",
        "leading",
        "trailing",
        "number",
        "without",
    )
    return "," in spec or any(word in said for word in counts)


def test_counts_are_spelled_with_their_noun():
    """`plural` chooses the noun; a text may do so itself only where it cannot be one."""
    files = [*ROOT.glob("*.py")]
    for room in ("commands", "pipeline", "fusion"):
        files += (ROOT / room).rglob("*.py")
    assert len(files) > 100
    wrong = []
    for path in sorted(files):
        for value, behind in pieces(path):
            bound = re.match(r"[^,;.]*, more than ", behind)
            if COUNTED.match(behind) and a_number(value) and not bound:
                said = f"{ast.unparse(value.value)}{COUNTED.match(behind)[0]}"
                if f"{path.relative_to(ROOT)}: {said}" not in SEVERAL:
                    wrong.append(f"{path.relative_to(ROOT)}:{value.lineno}: {said}")
    assert not wrong, "\n".join(wrong)
