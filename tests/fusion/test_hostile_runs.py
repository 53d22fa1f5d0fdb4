"""Run folders by other hands: pipes, links and folders in place of files, files that are far too
large, nested or numbered, foreign progress. One line each, nothing outside the folder is touched.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import struct
import tracemalloc
from pathlib import Path

import pytest
import torch

from mer.fusion import config, report
from mer.fusion.evaluation import evaluate
from mer.fusion.report import pictures
from mer.fusion.runs import checkpoint, result_files
from mer.fusion.runs.checkpoint import Run
from mer.fusion.runtime import files
from mer.fusion.training import experiment, resume
from mer.pipeline.errors import DataError, MerError
from mer.pipeline.runtime import limits

from tests.fusion.stores import make_store, quiet
from tests.fusion.test_train import settings

ROOT = Path(__file__).parents[2]
READ = (
    "run.json",
    "config.toml",
    "split.json",
    "log.jsonl",
    "metrics.json",
    "predictions.parquet",
    "model.safetensors",
)
PLACES = (*READ, "last.safetensors", "test_log.jsonl", ".hold")


@pytest.fixture(scope="module")
def made(tmp_path_factory, few_resamples):
    """(store, finished run, interrupted run)"""
    folder = tmp_path_factory.mktemp("hostile")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resume, "SAVE_SECONDS", 0)
        store = make_store(folder, n=60)
        done = train(store, folder / "done")
        evaluate.evaluate(done, note=quiet)

        def stop(line: str) -> None:
            if line.startswith("epoch   2"):
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            train(store, folder / "cut", note=stop)
        yield store, done.path, folder / "cut"


def train(store, folder, note=quiet) -> Run:
    return experiment.train(store, settings("train.epochs=3"), folder, note=note)


def commands(store, folder: Path, done: Path) -> list:
    return [
        lambda: report.page([Run.open(folder)]),
        lambda: report.compare(Run.open(folder), Run.open(done)),
        lambda: Run.open(folder).trained().model(),
        lambda: pictures.read_log(Run.open(folder)),
        lambda: evaluate.evaluate(folder, store.path, note=quiet),
        lambda: train(store, folder),
    ]


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize(
    "what",
    ["pipe", "folder", "link to a file", "link to a folder", "link to nothing", "other name"],
)
@pytest.mark.parametrize("name", PLACES)
def test_something_else_in_place_of_a_file(made, tmp_path, name, what):
    store, done, cut = made
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "thesis.tex").write_text("mine")
    for number, source in enumerate((done, cut)):
        folder = shutil.copytree(source, tmp_path / f"run{number}")
        place, refused = folder / name, 0
        place.unlink(missing_ok=True)
        match what:
            case "pipe":
                os.mkfifo(place)
            case "folder":
                place.mkdir()
            case "other name":
                os.link(outside / "thesis.tex", place)
            case _:
                place.symlink_to(
                    {"link to a file": outside / "thesis.tex", "link to a folder": outside}.get(
                        what, "nowhere"
                    )
                )
        for call in commands(store, folder, done):
            try:
                call()
            except (MerError, OSError) as error:
                assert len(str(error).replace(str(tmp_path), "")) <= 300 and "\n" not in str(error)
                refused += 1
        assert content(outside) == {"thesis.tex": b"mine"}
        if name in ("run.json", "config.toml"):
            assert refused


def test_a_linked_child_of_a_group_is_not_trained_into(tmp_path):
    store = make_store(tmp_path, n=60)
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "run").mkdir()

    def stop(line: str) -> None:
        if line.endswith("seed-0"):
            (tmp_path / "run" / "seed-1").symlink_to(outside)

    with pytest.raises(DataError, match="seed-1: a link where a run folder should be"):
        experiment.train(store, settings("train.epochs=1"), tmp_path / "run", seeds=2, note=stop)
    assert not list(outside.iterdir())


def test_files_are_as_the_umask_says_and_what_a_kill_left_goes(tmp_path):
    store = make_store(tmp_path, n=60)
    (tmp_path / "run").mkdir()
    dead = 2**22 + 1  # above the highest number of a process
    for left in (".tmpAbC123", f".last.safetensors.tmp-{dead}", f".run.json.tmp-{dead}"):
        (tmp_path / "run" / left).touch()
    before = os.umask(0o027)
    try:
        run = train(store, tmp_path / "run")
        evaluate.evaluate(run, note=quiet)
    finally:
        os.umask(before)
    modes = {
        p.name: oct(stat.S_IMODE(p.stat().st_mode))
        for p in run.path.iterdir()
        if p.name != checkpoint.HOLD
    }
    assert set(modes) == set(PLACES) - {checkpoint.HOLD} and set(modes.values()) == {"0o640"}


def test_a_temporary_that_is_a_link_is_not_written_through(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    (tmp_path / f".x.json.tmp-{os.getpid()}").symlink_to(tmp_path / "thesis.tex")
    files.write_json(tmp_path / "x.json", {"a": 1})
    assert (tmp_path / "thesis.tex").read_text() == "mine" and not (
        tmp_path / "x.json"
    ).is_symlink()


# ---- JSON

JSON = {
    "deep": "[" * 100_000,
    "deep objects": '{"a":' * 100_000,
    "deep within bounds of the parser": '{"store": ' + "[" * 500 + "]" * 500 + "}",
    "digits": '{"version": ' + "9" * 1_000_000 + "}",
    "beyond 64 bits": '{"version": 99999999999999999999}',
    "NaN": '{"version": NaN}',
    "infinite": '{"version": 1e999}',
    "surrogate": '{"format": "\\ud800"}',
    "list": "[1]",
    "not UTF-8": b"\xff{}",
    "empty": "",
}


@pytest.mark.parametrize("case", JSON)
def test_json_that_nobody_wrote(made, tmp_path, case):
    _, done, _ = made
    raw = JSON[case] if isinstance(JSON[case], bytes) else JSON[case].encode()
    for name, read in (
        ("run.json", lambda: Run.open(tmp_path / "run")),
        ("metrics.json", lambda: result_files.stored_metrics(Run.open(tmp_path / "run"))),
    ):
        shutil.copytree(done, tmp_path / "run")
        (tmp_path / "run" / name).write_bytes(raw)
        with pytest.raises(DataError, match=f"{name}: damaged") as raised:
            read()
        assert len(str(raised.value)) <= 300
        shutil.rmtree(tmp_path / "run")


def test_a_file_without_end_is_not_read_to_it(made, tmp_path):
    _, done, _ = made
    shutil.copytree(done, tmp_path / "run")
    os.truncate(tmp_path / "run" / "run.json", 1 << 40)  # a hole of a terabyte
    with pytest.raises(DataError, match="run.json: more than 67,108,864 bytes"):
        Run.open(tmp_path / "run")


def test_a_small_file_takes_little_memory(tmp_path):
    """Python sets aside what it is asked to read: a gigabyte for the bound of split.json."""
    (tmp_path / "split.json").write_text("{}")
    tracemalloc.start()
    files.read_text(tmp_path / "split.json", "", most=limits.SPLIT_JSON_BYTES)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


# ---- TOML and --set

TOML = {
    "dotted": ".".join("a" * 50_000) + " = 1",
    "dotted table": "[" + ".".join("a" * 25_000) + "]",
    "dotted within": "x = {" + ".".join("a" * 25_000) + " = 1}",
    "many keys": "\n".join(f"a.b{i} = 1" for i in range(50_000)),
    "deep within bounds of the parser": '{"store": ' + "[" * 500 + "]" * 500 + "}",
    "digits": "[train]\nepochs = " + "9" * 6000,
    "hexadecimal": "[train]\nepochs = 0x" + "f" * 20_000,
    "beyond 64 bits": "[train]\nepochs = 99999999999999999999",
    "arrays": "x = " + "[" * 20_000 + "]" * 20_000,
    "long key": "[train]\n" + "e" * 20_000 + " = 1",
    "long value": '[train]\nprecision = "' + "f" * 20_000 + '"',
    "nan": "[optim]\nlr = nan",
    "date": "[optim]\nlr = 1979-05-27",
    "control": '[data]\nmodalities = "\\u001b[2J"',
    "control key": '"\\u001b[2J" = 1',
    "list": "[data]\nmodalities = [1, 2]",
    "large": "# " + "x" * 100_000,
}


@pytest.mark.parametrize("case", TOML)
def test_toml_that_nobody_wrote(tmp_path, case):
    path = tmp_path / "p.toml"
    path.write_text(TOML[case])
    with pytest.raises(DataError) as raised:
        config.load(model="concat", preset=str(path))
    assert (
        len(str(raised.value)) <= 300 + 2 * len(str(tmp_path)) and str(raised.value).isprintable()
    )


@pytest.mark.parametrize(
    "text",
    [
        "model_args." + ".".join("a" * 5000) + "=1",
        "model_args.hidden=" + "9" * 6000,
        "optim.lr=nan",
        "optim.lr=1e999",
        "optim.betas=nan,nan",
        "train.epochs=1e400",
        "train.batch_size=4611686018427387904",
        "q" * 5000,
        "q" * 5000 + ".x=1",
        "train." + "q" * 5000 + "=1",
        "data.modalities=a\nb",
        "data.pool_hz=nan",
        "train.seed=-1",
        "optim.clip=nan",
        "model_args.dropout=nan",
        "data.dev_share=nan",
    ],
)
def test_settings_that_nobody_means(text):
    with pytest.raises(DataError) as raised:
        config.load(model="concat", sets=[text])
    assert len(str(raised.value)) <= 300 and str(raised.value).isprintable()


# ---- safetensors


def header(text: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(text) if length is None else length) + text + bytes(64)


TENSOR = (
    b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},'
    b'"b":{"dtype":"F32","shape":[2],"data_offsets":%s}}'
)
HEADERS = {
    "huge": header(b"{}", 1 << 62),
    "longer than the file": header(b"{}", 1000),
    "nested": header(b"[" * 100_000),
    "overlapping": header(TENSOR % b"[4,12]"),
    "backwards": header(TENSOR % b"[16,8]"),
    "beyond the end": header(TENSOR % b"[8,1099511627776]"),
    "shape": header(TENSOR.replace(b"[2]", b"[4611686018427387904,4]") % b"[8,16]"),
    "dtype": header(TENSOR.replace(b"F32", b"Q7") % b"[8,16]"),
    "metadata": header(b'{"__metadata__":{"mer":"' + b"[" * 50_000 + b'"}}'),
    "metadata list": header(b'{"__metadata__":{"mer":"[]"}}'),
    "empty": b"",
}


@pytest.mark.parametrize("case", HEADERS)
@pytest.mark.parametrize("name", [checkpoint.MODEL, checkpoint.LAST])
def test_safetensors_that_nobody_wrote(made, tmp_path, case, name):
    store, done, cut = made
    folder = shutil.copytree(done if name == checkpoint.MODEL else cut, tmp_path / "run")
    (folder / name).write_bytes(HEADERS[case])
    with pytest.raises(DataError, match=f"{name}: damaged checkpoint") as raised:
        Run.open(folder).model() if name == checkpoint.MODEL else train(store, folder)
    assert len(str(raised.value)) <= 300 + len(str(tmp_path))


@pytest.mark.parametrize(
    "odd", ["dtype", "shape", "nan", "moment", "lone moment", "identity", "epoch", "log"]
)
def test_progress_that_does_not_belong_here(made, tmp_path, odd):
    """Sealed as it should be, and still not of this run."""
    store, _, cut = made
    folder = shutil.copytree(cut, tmp_path / "run")
    path = folder / checkpoint.LAST
    tensors, state = checkpoint.load_tensors(path)
    name = next(k for k in tensors if k.startswith("model.") and tensors[k].ndim == 2)
    moment = name.replace("model.", "optim.exp_avg.", 1)
    match odd:
        case "dtype":
            tensors[name] = tensors[name].double()
        case "shape":
            tensors[name] = tensors[name][:1].clone()
        case "nan":
            tensors[name] = torch.full_like(tensors[name], float("nan"))
        case "moment":
            tensors[moment] = tensors[moment][:1].clone()
        case "lone moment":
            del tensors[moment]
        case "identity":
            state["identity"] = "another"
        case "epoch":
            state["epoch"] = 10**6
        case "log":
            state["log"] = []
    checkpoint.save_tensors(path, tensors, state)
    with pytest.raises(DataError, match="last.safetensors: ") as raised:
        train(store, folder)
    assert len(str(raised.value)) <= 300 + len(str(tmp_path))


def test_an_interrupted_run_of_an_earlier_mer_starts_again(made, tmp_path):
    """Its progress has no checksums. What it comes to is the same."""
    store, done, cut = made
    folder, said = shutil.copytree(cut, tmp_path / "run"), []
    tensors, state = checkpoint.load_tensors(folder / checkpoint.LAST)
    del state["model_sha256"], state["identity"]
    from safetensors.torch import save_file

    save_file(tensors, folder / checkpoint.LAST, metadata={"mer": json.dumps(state)})
    info = json.loads((folder / checkpoint.INFO).read_text())
    del info["sha256"], info["split_sha256"]
    (folder / checkpoint.INFO).write_text(json.dumps(info))
    run = train(store, folder, note=said.append)
    assert [
        line
        for line in said
        if "an earlier mer wrote it without checksums; the training starts again" in line
    ]
    assert (folder / checkpoint.MODEL).read_bytes() == (
        done / checkpoint.MODEL
    ).read_bytes() and run.sound()


def test_a_finished_run_of_an_earlier_mer_is_read(made, tmp_path):
    store, done, _ = made
    folder = shutil.copytree(done, tmp_path / "run")
    for name, gone in (
        ("run.json", ("sha256", "split_sha256", "log_sha256", "measures", "label_counts")),
        ("metrics.json", ("sha256", "predictions_sha256", "unseen")),
    ):
        value = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({k: v for k, v in value.items() if k not in gone}))
    for call in commands(store, folder, done):
        assert call() is not None
    assert (
        result_files.stored_metrics(Run.open(folder)).metrics
        == result_files.stored_metrics(Run.open(done)).metrics
    )


def test_killed_between_progress_and_weights_the_weights_are_written_again(
    made, tmp_path, monkeypatch
):
    store, done, _ = made
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        write = files.write_bytes

        def cut(path, raw):
            if path.name == checkpoint.MODEL:
                raise KeyboardInterrupt
            write(path, raw)

        patch.setattr(files, "write_bytes", cut)
        train(store, tmp_path / "run")
    assert (tmp_path / "run" / checkpoint.LAST).exists() and not (
        tmp_path / "run" / checkpoint.MODEL
    ).exists()
    train(store, tmp_path / "run")
    assert (tmp_path / "run" / checkpoint.MODEL).read_bytes() == (
        done / checkpoint.MODEL
    ).read_bytes()
