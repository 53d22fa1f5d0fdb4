"""The cache in CI: the very steps of .github/workflows/features.yml, with folders for the machines
and for the cache.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from tests.extract import corpus
from tests.fusion.stores import make_store

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / ".ci" / "features.sh"
JOB = yaml.safe_load((ROOT / ".github" / "workflows" / "features.yml").read_text())
STEPS = JOB["jobs"]["features"]["steps"]
SMALL = {"TRAIN_OPTIONS": "--preset concat --set train.epochs=30"}
SIZE = 96


def script(
    folder: Path, step: str, *, baseline: Path | None = None, **env: str
) -> subprocess.CompletedProcess[str]:
    """One step of the script in `folder`, as CI calls it; what it says to GitHub goes to files
    there.
    """
    plain = {
        k: v
        for k, v in os.environ.items()
        if not k.startswith(("GITHUB_", "MER_", "STORE", "FEATURE_", "TRAIN_"))
    }
    said = {
        "GITHUB_OUTPUT": str(folder / "output"),
        "GITHUB_STEP_SUMMARY": str(folder / "summary.md"),
        "OMP_NUM_THREADS": "1",
    }
    place = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    values = (
        {k: v for k, v in JOB["env"].items() if "${{" not in v} | SMALL | plain | said | place | env
    )
    if baseline is not None:
        values["BASELINE"] = str(baseline)
    return subprocess.run(
        ["bash", str(SCRIPT), step],
        cwd=folder,
        env=values,
        capture_output=True,
        text=True,
        timeout=600,
    )


@dataclass
class Machine:
    """A fresh runner: an empty folder, and the cache service as a folder that all share."""

    folder: Path
    cache: Path
    baseline: Path | None = None
    env: dict[str, str] = field(default_factory=dict)
    size: int | None = SIZE  # of the corpus that lies there; None: no media
    log: list[str] = field(default_factory=list)

    def __post_init__(self):
        self.folder.mkdir(parents=True)
        self.cache.mkdir(exist_ok=True)
        if self.size:
            mer = [
                str(Path(sys.executable).parent / "mer"),
                "prepare",
                "synthetic",
                "--root",
                "data/synthetic",
                "--size",
                str(self.size),
            ]
            subprocess.run(mer, cwd=self.folder, check=True, capture_output=True, timeout=600)

    def outputs(self) -> dict[str, str]:
        file = self.folder / "output"
        return (
            dict(line.split("=", 1) for line in file.read_text().splitlines())
            if file.exists()
            else {}
        )

    def summary(self) -> str:
        return (self.folder / "summary.md").read_text()

    def run(self, *, until: str = "compare") -> int:
        """The workflow's steps up to the script's `until`, as the runner takes them; the status of
        the first that fails, else 0.
        """
        hit = False
        for step in STEPS:
            action, command = step.get("uses", "").split("@")[0], step.get("run", "")
            stored = {
                k: re.sub(
                    r"\$\{\{ steps\.key\.outputs\.key \}\}", self.outputs().get("key", "?"), v
                )
                for k, v in step.get("with", {}).items()
            }
            if action == "actions/cache/restore":
                hit = self.restore(stored)
            elif action == "actions/cache/save":
                assert step["if"] == "steps.cache.outputs.cache-hit != 'true'"
                if not hit:
                    shutil.copytree(self.folder / stored["path"], self.cache / stored["key"])
            elif command.startswith(".ci/features.sh "):
                name = command.split()[1]
                done = script(self.folder, name, baseline=self.baseline, **self.env)
                self.log += [*done.stdout.splitlines(), *done.stderr.splitlines()]
                if done.returncode or name == until:
                    return done.returncode
        raise AssertionError(f"the workflow has no step {until}")

    def restore(self, stored: dict[str, str]) -> bool:
        """An exact hit, else the latest of the prefix.

        Files come back with other times, as from an archive of another machine.
        """
        older = sorted(self.cache.glob(stored["restore-keys"] + "*"), key=os.path.getmtime)
        exact = self.cache / stored["key"]
        found = exact if exact.exists() else (older[-1] if older else None)
        if found is not None:
            shutil.copytree(found, self.folder / stored["path"], copy_function=shutil.copyfile)
        return found == exact


@pytest.fixture(scope="module")
def first(tmp_path_factory) -> Machine:
    """The first run there ever was."""
    folder = tmp_path_factory.mktemp("ci")
    machine = Machine(folder / "first", folder / "cache")
    assert machine.run() == 0, machine.log
    return machine


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_second_run_extracts_nothing(first, tmp_path):
    """Another machine and folder: the corpus is written anew, the cache comes back with other
    times.
    """
    key = first.outputs()["key"]
    assert (
        first.outputs()["extracted"] == str(SIZE) and "no run of the main branch" in first.summary()
    )
    assert (first.cache / f"features-{key}").is_dir()
    second = Machine(tmp_path / "somewhere else", first.cache, first.folder / "runs" / "ci")
    assert second.run() == 0, second.log
    assert second.outputs() == {"key": key, "extracted": "0"}
    assert f"0 utterances extracted, {SIZE} reused, 0 failed" in second.summary()
    assert "neither better nor worse" in second.summary()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_planted_regression_fails(first, tmp_path):
    untrained = {"TRAIN_OPTIONS": "--preset concat --set optim.lr=1e-12 --set train.epochs=1"}
    worse = Machine(tmp_path / "worse", first.cache, first.folder / "runs" / "ci", untrained)
    assert worse.run() == 1, worse.log
    assert worse.outputs()["extracted"] == "0" and "runs/ci is worse by wf1" in worse.summary()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_other_options_are_another_key(first, tmp_path):
    """What the prefix of the key restores is of another recipe, and is replaced."""
    pooled = Machine(
        tmp_path / "pooled", first.cache, env={"FEATURE_OPTIONS": "--dataset synthetic --pool 4"}
    )
    assert pooled.run(until="features") == 0, pooled.log
    assert pooled.outputs()["key"] != first.outputs()["key"] and pooled.outputs()[
        "extracted"
    ] == str(SIZE)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_without_media(first, tmp_path):
    """The key is given; the store comes from the cache or an address, or the job says in one line
    what is missing.
    """
    key = first.outputs()["key"]
    bare = Machine(tmp_path / "bare", first.cache, env={"FEATURE_KEY": key}, size=None)
    assert bare.run(until="features") == 0, bare.log
    assert (
        bare.outputs() == {"key": key, "extracted": "0"}
        and "every byte is as written" in bare.summary()
    )
    archive = shutil.make_archive(str(tmp_path / "store"), "gztar", first.folder / "data" / "ci")
    fetched = Machine(
        tmp_path / "fetched",
        tmp_path / "empty",
        env={"FEATURE_KEY": key, "STORE_URL": f"file://{archive}"},
        size=None,
    )
    assert fetched.run(until="features") == 0, fetched.log
    for env in ({"FEATURE_KEY": key}, {"FEATURE_KEY": "0" * 64, "STORE_URL": f"file://{archive}"}):
        missed = Machine(tmp_path / f"missed{len(env)}", tmp_path / "nothing", env=env, size=None)
        assert missed.run(until="features") == 1
        assert missed.log[-1].startswith("mer: no features of key ") and not [
            line for line in missed.log if "Traceback" in line
        ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dataset", "words"),
    [("meld", "research only"), ("mine", "not a corpus that mer knows"), ("synthetic", None)],
)
def test_the_licence_is_said_before_features_are_published(tmp_path, dataset, words):
    make_store(tmp_path, n=6, dataset=dataset)
    done = script(tmp_path, "licence", STORE="feats.h5")
    assert done.returncode == 0, done.stderr
    assert (
        (done.stdout == "")
        if words is None
        else (done.stdout.startswith("::warning title=licence::") and words in done.stdout)
    )


def test_the_licence_comes_before_anything_is_saved():
    names = [step.get("run", step.get("uses", "")) for step in STEPS]
    licence = names.index(".ci/features.sh licence")
    published = [
        i for i, name in enumerate(names) if "cache/save" in name or "upload-artifact" in name
    ]
    assert len(published) == 2 and licence < min(published)


def test_gitlab_takes_the_same_steps():
    gitlab = yaml.safe_load((ROOT / "docs" / "gitlab-ci.yml").read_text())["features"]
    calls = [[line.split()[1] for line in lines if line.startswith(".ci/features.sh")]
             for lines in ([step.get("run", "") for step in STEPS], gitlab["script"])]  # fmt: skip
    assert calls[0] == calls[1] == ["key", "features", "licence", "train", "compare"]
    shared = {k: v for k, v in gitlab["variables"].items() if k in JOB["env"]}
    assert shared == {k: v for k, v in JOB["env"].items() if "${{" not in v}


def test_the_fingerprint_command_loads_no_torch(tmp_path):
    """The key is wanted before anything heavy is; loading torch alone takes longer than it may."""
    corpus.make(tmp_path, 4)
    code = (
        "import sys\nfrom mer import cli\n"
        f"cli.main(['fingerprint', '--manifest', {str(tmp_path / 'manifest.parquet')!r}, "
        "*sys.argv[1:]], standalone_mode=False)\n"
        "heavy = {'torch', 'torchaudio', 'transformers', 'dask', 'av'} & sys.modules.keys()\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)\n"
    )
    tiny = ["--audio-encoder", "builtin:tiny-wav2vec2", "--text-encoder", "builtin:tiny-roberta"]
    done = subprocess.run(
        [sys.executable, "-c", code, *tiny], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"[0-9a-f]{64}\n", done.stdout)
