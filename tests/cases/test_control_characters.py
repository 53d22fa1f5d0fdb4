"""What a file or a name holds cannot move a terminal's cursor, paint, or begin a line of its own;
JSON carries it exactly.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner

from mer.cli import main
from mer.pipeline.manifest import Manifest
from mer.pipeline.runtime.limits import LINE_CHARACTERS
from mer.pipeline.runtime.progress import Lines
from mer.pipeline.runtime.terminal import escape, escape_json, listed, one_line, shown

HOSTILE = "\x1b[31mred\x07\x9b2J\r\n\u202eabc\u2066\u2028\x7f"


def harmless(text: str) -> bool:
    return not any(
        c != "\n" and (c < " " or "\x7f" <= c <= "\x9f" or c in "\u202e\u2066\u2028") for c in text
    )


def test_spelled_out():
    assert escape("a\x1b[31m\tb\r\n\x9b\u202e") == "a\\x1b[31m\\tb\\r\\n\\x9b\\u202e"
    for harmless_text in (
        "caf\u00e9",
        "\u0645\u0631\u062d\u0628\u0627 \U0001f600",
        "a byte of a file's name: \udc80",
    ):
        assert escape(harmless_text) == harmless_text
    assert escape("a\nb\x1b", breaks=True) == "a\nb\\x1b"


@pytest.mark.parametrize(
    "value", [HOSTILE, "\ud83d", "\udc80", "\U0001f600", {"a\x9b": ["\u2066"]}]
)
def test_json_means_the_same(value):
    text = escape_json(json.dumps(value, ensure_ascii=False))
    assert json.loads(text) == value and harmless(text) and text.encode()


def test_lines_are_bounded():
    shared: list = []
    for _ in range(60):
        shared = [shared, shared]  # its whole text would have 2^60 brackets
    assert shown(shared).startswith("[[[") and shown(10**5000).startswith("a number of 16,610")
    assert len(shown("x" * 10**6)) == 80 and shown("\x1b" * 10**6, 20).startswith("\\x1b")
    assert listed(range(20)).endswith("11 and 8 more")
    line = one_line(f"place: {'x' * 10**6}; remedy")
    assert (
        line.startswith("place: ")
        and line.endswith("; remedy")
        and len(line) <= LINE_CHARACTERS + 3
    )


def table(tmp_path):
    rows = [
        {
            "id": f"{i}{HOSTILE}",
            "text": "x",
            "label": f"{'ab'[i % 2]}{HOSTILE}x",
            "speaker": f"s{i}{HOSTILE}x",
        }
        for i in range(6)
    ]
    rows[0]["audio"] = "gone\x1b.wav"
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return rows


def test_prepare(tmp_path):
    rows = table(tmp_path)
    command = [
        "prepare",
        "table",
        "--from",
        str(tmp_path / "t.jsonl"),
        "--out",
        str(tmp_path / "m.parquet"),
        "--name",
        "n\x1b",
    ]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 0 and harmless(done.output) and "\\x1b[31mred" in done.output
    assert not any(line.startswith("abc") for line in done.output.splitlines())
    found = json.loads(CliRunner().invoke(main, [*command, "--json"]).stdout)
    assert found["missing"] == [rows[0]["id"].strip("\u2028\u2066")] and found["dataset"] == "n\x1b"
    assert Manifest.read(tmp_path / "m.parquet").rows[0].audio == "gone\x1b.wav"


@pytest.mark.parametrize(
    "arguments",
    [
        ["prepare", HOSTILE],
        ["prepare", "table", "--from", HOSTILE],
        ["prepare", "table", "--from", f"{HOSTILE}.csv"],
        ["prepare", "meld", "--root", HOSTILE],
        [HOSTILE],
        ["prepare", f"--{HOSTILE}"],
        ["extract", "--manifest", HOSTILE],
        ["inspect", HOSTILE],
        ["verify", HOSTILE],
        ["import", "npz", HOSTILE],
        ["import", HOSTILE, "x"],
        ["report", HOSTILE],
        ["inspect", "x", "--flag", HOSTILE],
        ["train", "--features", HOSTILE],
        ["export", HOSTILE, "x", "--to", "npy"],
    ],
)
def test_errors(arguments):
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code not in (0, 130) and "internal" not in done.output
    lines = done.output.splitlines()
    # one mistake, one line; without DATASET the unknown option is the second of two
    mistakes = 2 if arguments == ["prepare", f"--{HOSTILE}"] else 1
    assert harmless(done.output) and len(lines) == mistakes, done.output
    assert all(line.startswith("mer: ") for line in lines), done.output


def test_notes_of_long_work(capsys):
    Lines(sys.stdout).note(HOSTILE)
    assert harmless(capsys.readouterr().out)


@pytest.mark.slow
def test_extract_and_inspect(tmp_path):
    table(tmp_path)
    manifest, store = str(tmp_path / "m.parquet"), str(tmp_path / "f\x1b[31m.h5")
    CliRunner().invoke(
        main, ["prepare", "table", "--from", str(tmp_path / "t.jsonl"), "--out", manifest]
    )
    encoders = ["--audio-encoder", "none", "--text-encoder", "builtin:tiny-roberta"]
    for command in (
        ["extract", "--manifest", manifest, *encoders, "--out", store, "--offline"],
        ["inspect", store],
    ):
        code = "import sys; from mer.cli import main; main(sys.argv[1:])"
        done = subprocess.run(
            [sys.executable, "-c", code, *command], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert harmless(done.stdout) and harmless(done.stderr)
    assert "\\x1b[31mred" in done.stdout
