"""Manners of the command line: its help, its hints, its completion, all mistakes at once."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import click
import pytest
from click.shell_completion import BashComplete

from mer.cli import main
from mer.commands import group as commands
from mer.fusion.config import presets
from mer.fusion.models import REGISTRY
from mer.pipeline.manifest import Manifest

from tests.fusion.stores import make_store
from tests.whole_way.mer import TINY, mer, refused

# ---- Help


def test_help_lists_every_command_in_working_order_with_an_example_for_each_group():
    text = mer("--help").out
    titles = [*commands.GROUPS]
    assert [line[:-1] for line in text.splitlines() if line[:-1] in titles] == titles
    listed = re.findall(r"^  ([a-z]+)  ", text, flags=re.M)
    assert sorted(listed) == sorted(main.commands)
    order = ["datasets", "prepare", "extract", "train", "evaluate", "report", "runs", "predict"]
    assert [name for name in listed if name in order] == order
    assert text.count("  $ mer ") == len(titles)
    assert mer("help").out == text


@pytest.mark.parametrize("name", [name for name in commands.EXAMPLES if name in main.commands])
def test_examples_are_command_lines_that_can_be_read(name):
    words = shlex.split(commands.EXAMPLES[name])
    assert words[:2] == ["mer", name]
    text = mer(name, "--help").out
    assert text.rstrip().endswith(commands.EXAMPLES[name]) and mer("help", name).out == text
    command = main.commands[name]
    command.make_context(name, words[2:]).close()


def test_a_command_that_no_group_names_is_listed_too():
    @click.group(cls=commands.Group)
    def other() -> None:
        pass

    other.command("train")(lambda: None)
    other.command("zebra")(lambda: None)
    text = other.get_help(click.Context(other))
    assert text.index("train") < text.index(commands.OTHERS) < text.index("zebra")


MODELS = ("transformers", "torchaudio", "matplotlib", "sklearn", "scipy", "dask", "av")
COMPILER = ("sympy", "torch._dynamo", "torch._inductor", "torch.distributed.tensor")
# what a command may not import, in the order in which they are run: what one makes the next reads
NEEDLESS = {
    "--help": ("torch", "numpy", "pyarrow", "h5py", "rich", "soundfile", *MODELS),
    "inspect feats.h5": ("torch", "pandas", *MODELS),
    "train feats.h5 --model concat --set train.epochs=1 --out run": (
        "soundfile",
        *MODELS,
        *COMPILER,
    ),
    "evaluate run": ("soundfile", *MODELS, *COMPILER),
    "runs .": ("torch", "soundfile", *MODELS),
    "layers feats.h5": (*MODELS, *COMPILER),
}


def imported(command: str, names: tuple[str, ...], folder: Path) -> list[str]:
    """Which of the modules a command has imported, in a process of its own."""
    code = (
        "import sys\nfrom mer.cli import main\n"
        "status = 0\n"
        "try: main(sys.argv[2:])\nexcept SystemExit as end: status = end.code or 0\n"
        "print('\\n#', *sorted(set(sys.argv[1].split(',')) & sys.modules.keys()))\n"
        "sys.exit(status)\n"
    )
    asked = [sys.executable, "-c", code, ",".join(names), *command.split()]
    done = subprocess.run(asked, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1].split()[1:]


def test_commands_import_nothing_that_they_do_not_need(tmp_path):
    """Each in a process of its own; matplotlib where a picture is asked for shows that the list
    would be seen.
    """
    make_store(tmp_path, n=60, means={"audio": 3})
    found = {command: imported(command, names, tmp_path) for command, names in NEEDLESS.items()}
    assert not any(found.values()), found
    assert imported("evaluate run --figures .", MODELS, tmp_path) == ["matplotlib"]


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        ("predict nix clip.wav", 1, "none of that name"),
        ("predict . clip.wav", 1, "no run.json"),
        ("predict run --with nix clip.wav", 1, "none of that name"),
        ("predict run nix.wav", 3, "nix.wav: no such file"),
        ("predict run nix nix.txt", 3, "none of 2 clips is there: nix, nix.txt"),
        ("predict run nix.csv", 1, "nix.csv: no such file"),
        ("predict run --manifest nix.parquet", 1, "nix.parquet: no such file"),
        ("predict run --audio nix.wav --text hi", 3, "nix.wav: no such file"),
        ("evaluate nix", 1, "none of that name"),
        ("compare run nix", 1, "none of that name"),
    ],
)
def test_a_wrong_path_is_told_before_torch_is_loaded(command, code, said, tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").touch()
    (tmp_path / "clip.wav").touch()
    for name in ("mer.commands.predicting", "mer.fusion.runs.checkpoint", "torch"):
        monkeypatch.setitem(sys.modules, name, None)  # to import it is an error
    line = refused(*command.split(), code=code, cwd=tmp_path)
    assert said in line


def test_encoders_are_loaded_without_what_they_do_not_need(tmp_path):
    """Of a clip of 16 kHz: no compiler, nothing of SciPy or scikit-learn, whether they are
    installed or not, and no processes of dask.
    """
    needless = ("sklearn", "scipy", "matplotlib", "pandas", "dask", "distributed", *COMPILER)
    extract = "extract --dataset synthetic --size 12"
    assert imported(extract, (*needless, "transformers"), tmp_path) == ["transformers"]
    mer(
        "train",
        "feats.h5",
        "--model",
        "concat",
        "--set",
        "train.epochs=1",
        "--out",
        "run",
        cwd=tmp_path,
    )
    clip = next((tmp_path / "data").rglob("*.wav")).relative_to(tmp_path)
    assert imported(f"predict run {clip} --text hello", (*needless, "av"), tmp_path) == []


def test_version():
    lines = mer("version").out.splitlines()
    assert lines[0] == f"mer {metadata.version('mer')}" and any("torch 2" in line for line in lines)


# ---- Hints


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    return Path(make_store(tmp_path_factory.mktemp("hints")).path)


@pytest.mark.parametrize(
    ("words", "guess", "code"),
    [
        ("trian", "'train'", 2),
        ("ls", "'runs'", 2),
        ("help eval", "'evaluate'", 2),
        ("evaluate x --split valid", "'dev'", 2),
        ("evaluate x --split Test", "'test'", 2),
        ("train f --folds Speaker", "'speaker'", 2),
        ("train f --model DRKF", "'drkf'", 1),
        ("train f --model concatenate", "'concat'", 1),
        ("train f --preset drkf-papr", "'drkf-paper'", 1),
        ("train f --set optim.learning_rate=1", "'lr'", 1),
        ("train f --set learning_rate=1", "'optim.lr'", 1),
        ("train f --set lr=1", "'optim.lr'", 1),
        ("train f --set train.lr=1", "'optim.lr'", 1),
        ("train f --set optm.lr=1", "'optim'", 1),
        ("train f --set train.class_weight=Balanced", "'balanced'", 1),
        ("train f --set train.select_metric=accuracy", "'wa'", 1),
        ("train f --epochs 3", "--set train.epochs=VALUE", 2),
        ("train f --batch-size 3", "--set train.batch_size=VALUE", 2),
        ("train f --learning-rate 3", "--set optim.lr=VALUE", 2),
        ("train f --modle drkf", "--model", 2),
        ("train f --device gpu", "'cuda'", 1),
        ("prepare synthetc", "'synthetic'", 1),
        ("extract --dataset MELD", "'meld'", 1),
        ("extract --dataset synthetic --dtype half", "'float16'", 2),
        ("prepare meld --labels sentimet --root .", "'sentiment'", 1),
        ("inspect f --flag silnt", "'silent'", 2),
        ("import parqet f", "'parquet'", 2),
        ("export f o --to parket", "'parquet'", 2),
        ("runs --sorted dev", "'--sort'", 2),
    ],
)
def test_did_you_mean(words, guess, code, features, tmp_path):
    asked = [str(features) if word == "f" else word for word in words.split()]
    line = refused(*asked, code=code, cwd=tmp_path)
    assert "id you mean" in line or "It is a setting" in line
    assert guess in line.split("id you mean")[-1].split("It is a setting")[-1], line


def test_a_word_like_nothing_gets_no_guess(features):
    for words in (["train", features, "--model", "xyzzy"], ["xyzzy"], ["train", "--xyzzy", "1"]):
        assert "id you mean" not in mer(*words, code=None).err


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        ("extract clips", "--manifest FILE"),
        ("fingerprint clips", "--manifest FILE"),
        ("prepare meld clips.csv", "mer prepare table --from FILE"),
        ("prepare clips.csv", "a file of yours: `mer prepare table --from clips.csv`"),
        ("extract --dataset clips.csv", "`mer prepare table --from clips.csv`"),
        ("extract --dataset m.parquet", "`mer extract --manifest`"),
        ("prepare gone.jsonl", "`mer prepare table --from gone.jsonl`"),
        ("prepare clips", "`mer prepare folder --root clips"),
    ],
)
def test_own_files_in_the_place_of_something_else_are_told_their_command(words, remedy, tmp_path):
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips.csv").write_text("audio\n")
    outcome = mer(*words.split(), code=None, cwd=tmp_path)
    assert outcome.code in (1, 2) and remedy in " ".join(outcome.err.split())


# ---- All mistakes at once


def lines_of(*words) -> list[str]:
    outcome = mer(*words, code=None)
    assert outcome.code in (1, 2)
    return [line for line in outcome.err.splitlines() if line.startswith("mer: ")]


def test_all_mistakes_of_a_command_line_are_told(features):
    words = ("--seeds", "x", "--folds", "y", "--epochs", "3", "--lerning", "4", "--device")
    lines = lines_of("train", features, *words[:-1])
    assert len(lines) == 4
    for part in ("--seeds", "--folds", "--epochs", "--lerning"):
        assert any(part in line for line in lines)
    assert [line.count("train --help`)") for line in lines] == [0, 0, 0, 1]


def test_all_mistakes_of_the_values_are_told(tmp_path):
    asked = ("--model", "DRKF", "--set", "optim.lrr=1", "--set", "train.epochs=x")
    lines = lines_of("train", tmp_path / "gone.h5", *asked)
    assert len(lines) == 4
    for part in ("gone.h5", "DRKF", "optim.lrr", "train.epochs"):
        assert any(part in line for line in lines)
    lines = lines_of(
        *("extract", "--dataset", "meldd", "--workers", "2", "--shard", "1/2"),
        *("--budget-seconds", "x"),
    )
    assert len(lines) == 3
    assert len(lines_of("report", tmp_path / "a", tmp_path / "b", tmp_path / "c")) == 3
    assert len(lines_of("compare", tmp_path / "a", tmp_path / "b")) == 2


# ---- The store as an argument


QUICK = ("--model", "concat", "--set", "train.epochs=1", "--set", "model_args.hidden=8")


def test_train_takes_the_store_as_an_argument_or_an_option(features, tmp_path, monkeypatch):
    first = mer("train", features, *QUICK, "--no-test", cwd=tmp_path)
    again = mer("train", "--features", features, *QUICK, "--no-test", cwd=tmp_path)
    assert first.out == again.out and "already trained" in again.err
    mer("train", features, "--features", features, *QUICK, "--no-test", cwd=tmp_path)
    refused("train", features, "--features", "b.h5", code=2, says=["two stores", "b.h5"])
    refused("train", code=2, says=["mer train FEATS.H5"])
    monkeypatch.setenv("MER_TRAIN_FEATURES", "b.h5")
    mer("train", features, *QUICK, "--no-test", cwd=tmp_path)
    (row,) = mer("runs", "--json", cwd=tmp_path).out.splitlines()
    assert json.loads(row)["run"].startswith("runs/toy-concat-1")


# ---- A generated corpus of another size; the same line for fingerprint and extract


def test_extract_of_the_synthetic_corpus_takes_size_and_seed(tmp_path):
    where = tmp_path / "data" / "synthetic" / "manifest.parquet"
    asked = ("extract", "--dataset", "synthetic", *TINY, "--dry-run")
    mer(*asked, "--size", "12", "--seed", "3", cwd=tmp_path)
    first = Manifest.read(where)
    assert len(first) == 12 and first.source["seed"] == 3
    written = where.stat().st_mtime_ns
    for more in ((), ("--size", "12"), ("--seed", "3")):  # it is that one
        mer(*asked, *more, cwd=tmp_path)
        assert where.stat().st_mtime_ns == written
    outcome = mer(*asked, "--seed", "4", "--size", "24", cwd=tmp_path)
    assert "of another size or seed" in outcome.err
    assert len(Manifest.read(where)) == 24 and Manifest.read(where).source["seed"] == 4
    mer(*asked, "--seed", "5", cwd=tmp_path)  # as large as it was
    assert len(Manifest.read(where)) == 24 and Manifest.read(where).source["seed"] == 5
    for words in (("--dataset", "meld"), ("--manifest", where)):
        refused("extract", *words, "--size", "3", code=2, says=["--dataset synthetic"])


def test_another_size_keeps_drawn_faces(tmp_path):
    where = tmp_path / "data" / "synthetic" / "manifest.parquet"
    mer("prepare", "synthetic", "--size", "12", "--vision", cwd=tmp_path)
    asked = ("extract", "--dataset", "synthetic", *TINY, "--dry-run")
    outcome = mer(*asked, "--vision-encoder", "builtin:tiny-vit", "--size", "16", cwd=tmp_path)
    assert "made anew, with drawn faces as it was" in outcome.err
    rows = Manifest.read(where).rows
    assert len(rows) == 16 and all((where.parent / u.video).is_file() for u in rows)
    mer("prepare", "synthetic", "--size", "12", cwd=tmp_path)
    outcome = mer(*asked, "--size", "16", cwd=tmp_path)
    assert "faces" not in outcome.err and not any(u.video for u in Manifest.read(where).rows)


def test_the_same_line_goes_for_fingerprint_and_extract(tmp_path):
    line = [
        *("--dataset", "synthetic", "--size", "12", "--out", "f.h5", "--device", "cpu", *TINY),
        *("--budget-seconds", "8", "--budget-tokens", "auto", "--max-failures", "1", "--yes"),
        *("--pool", "2", "--no-lock", "--force", "--offline"),
    ]
    key = mer("fingerprint", *line, cwd=tmp_path).out.strip()
    assert not (tmp_path / "f.h5").exists()
    mer("extract", *line, cwd=tmp_path)
    stored = json.loads(mer("inspect", "f.h5", "--json", cwd=tmp_path).out)
    assert key == stored["fingerprint"]
    told = mer("fingerprint", *line, "--workers", "2", "--dry-run", "--json", cwd=tmp_path).out
    assert json.loads(told) == {"fingerprint": key}
    names = {p.name for p in main.commands["extract"].params}
    assert {p.name for p in main.commands["fingerprint"].params} == names
    assert mer("fingerprint", *line, "--pool", "3", cwd=tmp_path).out.strip() != key


NONE_OF = ("--dataset", "synthetic", "--size", "12", "--dry-run")


@pytest.mark.parametrize("command", ["extract", "fingerprint"])
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--vision-crop", "centre"), "--vision-crop needs --vision-encoder"),
        (("--vision-crop", "none"), "--vision-crop needs --vision-encoder"),
        (("--vision-fps", "2"), "--vision-fps needs --vision-encoder"),
        (("--vision-pool", "cls"), "--vision-pool needs --vision-encoder"),
        (("--vision-boxes", "b.csv"), "--vision-boxes needs --vision-encoder"),
        (("--vision-faces", "y.onnx"), "--vision-faces needs --vision-encoder"),
        (("--vision-no-face", "fail"), "--vision-no-face needs --vision-encoder"),
        (("--vision-layer", "2"), "--vision-layer needs --vision-encoder"),
        (("--budget-pictures", "8"), "--budget-pictures needs --vision-encoder"),
        (
            ("--vision-encoder", "none", "--vision-fps", "2", "--vision-pool", "cls"),
            "--vision-fps and --vision-pool need --vision-encoder",
        ),
        (("--audio-encoder", "none", "--audio-layer", "1"), "--audio-layer needs --audio-encoder"),
        (
            ("--audio-encoder", "none", "--audio-window", "clip"),
            "--audio-window needs --audio-encoder",
        ),
        (("--text-encoder", "none", "--text-layer", "1"), "--text-layer needs --text-encoder"),
        (
            ("--text-encoder", "none", "--text-windows", "windows"),
            "--text-windows needs --text-encoder",
        ),
    ],
)
def test_an_option_without_its_encoder_is_refused(command, options, said, synthetic):
    refused(command, *NONE_OF, *options, code=2, says=[said], cwd=synthetic)


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory) -> Path:
    """A folder with a prepared synthetic corpus without faces."""
    folder = tmp_path_factory.mktemp("synthetic")
    mer("prepare", "synthetic", "--size", "12", cwd=folder)
    return folder


def test_options_with_their_encoder_and_from_the_environment_pass(synthetic, monkeypatch):
    mer("extract", *NONE_OF, "--audio-encoder", "none", "--text-layer", "1", cwd=synthetic)
    monkeypatch.setenv("MER_EXTRACT_VISION_FPS", "2")  # it stands there for other runs
    mer("extract", *NONE_OF, cwd=synthetic)


def test_a_corpus_without_films_says_how_it_is_prepared_with_them(synthetic):
    asked = ("extract", *NONE_OF, "--vision-encoder", "builtin:tiny-vit")
    said = refused(
        *asked, says=["has a picture", "`mer prepare synthetic --vision`"], cwd=synthetic
    )
    assert len(said) <= 300 + len(str(synthetic))
    mer("prepare", "synthetic", "--size", "12", "--vision", cwd=synthetic)
    mer(*asked, cwd=synthetic)
    mer("prepare", "synthetic", "--size", "12", cwd=synthetic)


# ---- Completion


def completed(*words: str) -> list[str]:
    complete = BashComplete(main, {}, "mer", "_MER_COMPLETE")
    return [item.value for item in complete.get_completions(list(words[:-1]), words[-1])]


def test_completion_knows_commands_options_corpora_models_and_presets():
    assert completed("tr") == ["train"]
    assert "--features" in completed("train", "--fea")
    corpora = ["m3ed", "meld", "mer2023", "mer2024", "mosei", "mosi"]
    corpora += ["msp_improv", "msp_podcast", "mustard"]
    assert completed("extract", "--dataset", "m") == corpora
    assert completed("prepare", "ta") == ["table"] and completed("extract", "--dataset", "ta") == []
    assert completed("train", "--model", "") == sorted(REGISTRY)
    assert completed("train", "--preset", "") == sorted(presets())
    assert completed("evaluate", "run", "--split", "t") == ["train", "test"]


def test_the_shell_gets_its_script_and_its_answers_quickly():
    program = [
        sys.executable,
        "-c",
        "import sys; sys.argv[0] = 'mer'; from mer.cli import main; main()",
    ]
    script = subprocess.run(
        program, env={**os.environ, "_MER_COMPLETE": "bash_source"}, capture_output=True, text=True
    )
    assert "_MER_COMPLETE=bash_complete" in script.stdout
    asked = {
        "_MER_COMPLETE": "bash_complete",
        "COMP_WORDS": "mer train --model d",
        "COMP_CWORD": "3",
    }
    answer = subprocess.run(program, env={**os.environ, **asked}, capture_output=True, text=True)
    assert answer.stdout.split() == ["plain,dhmd", "plain,dmd", "plain,drkf"]
