"""What is mutated, what reads it, and what must hold when it was read.

A kind makes one input in a folder from a generator of random numbers and says which commands of mer
read it. Where the right answer is known, `check` compares.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mer.fusion.runs import checkpoint
from mer.fusion.runtime import files
from mer.pipeline.errors import MerError
from mer.pipeline.media import audio
from mer.pipeline.store import FeatureStore

from tests.fuzz import stock
from tests.fuzz.mutate import blocks, hdf5, media, numpys, parquets, pickled, raw, tables, texts
from tests.fuzz.stock import Stock
from tests.store.build import assert_holds

TINY = ("--audio-encoder", "builtin:tiny-wav2vec2", "--text-encoder", "builtin:tiny-roberta")
REMEMBERED = (".mer-files.parquet",)  # hashes of the media, beside the manifest
BUDGETS = ("--budget-seconds", "4", "--budget-tokens", "64", "--device", "cpu")


@dataclass
class Case:
    """Commands of mer, or functions, in order; each is judged by itself.

    `writes` are names in the input's folder that the commands may change. `check` gets the exit
    codes and outputs; an AssertionError of it means a wrong answer.
    """

    commands: list[list[str] | Callable[[], object]]
    check: Callable[[list[tuple[int, str]]], None] | None = None
    writes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Kind:
    make: Callable[[Path, Stock, np.random.Generator], Case]
    weight: int = 1  # how often among the others


KINDS: dict[str, Kind] = {}


def kind(name: str, weight: int = 1):
    def register(make):
        KINDS[name] = Kind(make, weight)
        return make

    return register


def rarely(path: Path, rng: np.random.Generator, mutate: Callable) -> None:
    """`mutate`, but now and then something that is not the file at all."""
    if rng.integers(25):
        mutate(path, rng)
    else:
        raw.not_the_file(path, rng)


def copy(made: Path, folder: Path) -> None:
    shutil.copytree(made, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".made"))


# ---- Stores


def readers(folder: Path, rng: np.random.Generator) -> list[list[str]]:
    """`mer verify`, and one of the commands that read a store."""
    head = str(folder / "feats.h5")
    out = str(folder.parent / "out" / "x")
    forms = ["npy", "parquet", "mmsa", "kaldi", "single"]
    train = ["train", "--features", head, "--model", "concat", "--out", out, "--device", "cpu"]
    train += ["--set", "train.epochs=1", "--set", "model_args.hidden=8"]
    others = [["inspect", head], ["inspect", head, "--json"], train]
    others += [["export", head, out, "--to", form] for form in forms]
    return [["verify", head], raw.choice(rng, others)]


def holds(head: Path) -> Callable:
    """Whatever was done to the files of an unsealed store: if it verifies, it holds what was
    written.
    """

    def check(outcomes: list[tuple[int, str]]) -> None:
        if outcomes[0][0] == 0:
            with FeatureStore(head) as store:
                store.verify()
                assert_holds(store)

    return check


@kind("head", 3)
def head(folder: Path, stock: Stock, rng: np.random.Generator) -> Case:
    copy(stock.store(), folder)
    rarely(folder / "feats.h5", rng, raw.choice(rng, [hdf5.mutate, raw.bytes_of, blocks.mutate]))
    return Case(readers(folder, rng), holds(folder / "feats.h5"))


@kind("shard", 3)
def shard(folder: Path, stock: Stock, rng: np.random.Generator) -> Case:
    copy(stock.store(), folder)
    path = folder / "feats.shards" / "shard-00001.h5"
    rarely(path, rng, raw.choice(rng, [hdf5.mutate, raw.bytes_of, blocks.mutate]))
    return Case(readers(folder, rng), holds(folder / "feats.h5"))


@kind("sealed-head", 3)
def sealed_head(folder: Path, stock: Stock, rng: np.random.Generator) -> Case:
    """Wrong content under a right checksum, as a careless program would write it."""
    copy(stock.store(), folder)
    hdf5.mutate(folder / "feats.h5", rng)
    hdf5.reseal(folder / "feats.h5", [])
    return Case(readers(folder, rng))


@kind("sealed-shard", 3)
def sealed_shard(folder: Path, stock: Stock, rng: np.random.Generator) -> Case:
    copy(stock.store(), folder)
    shards = sorted((folder / "feats.shards").glob("*.h5"))
    hdf5.mutate(raw.choice(rng, shards), rng)
    hdf5.reseal(folder / "feats.h5", shards)
    return Case(readers(folder, rng))


@kind("layers", 3)
def layers(folder: Path, stock: Stock, rng: np.random.Generator) -> Case:
    """A shard that keeps layer means; sealed again or not."""
    copy(stock.layered(), folder)
    shards = sorted((folder / "feats.shards").glob("*.h5"))
    hdf5.mutate(raw.choice(rng, shards), rng)
    if rng.integers(2):
        hdf5.reseal(folder / "feats.h5", shards)
        return Case(readers(folder, rng))
    return Case(readers(folder, rng), holds(folder / "feats.h5"))


@kind("joined", 3)
def joined(folder: Path, stock: Stock, rng: np.random.Generator) -> Case:
    """A joined head, or the head or a shard of a member; sealed again or not."""
    copy(stock.joined(), folder)
    parts = [folder / "feats.h5"] * 4 + [folder / "text.h5"]
    parts += sorted((folder / "audio.shards").glob("*.h5"))
    rarely(raw.choice(rng, parts), rng, raw.choice(rng, [hdf5.mutate, hdf5.mutate, raw.bytes_of]))
    if rng.integers(2):
        hdf5.reseal(folder / "feats.h5", [])
        hdf5.reseal(folder / "text.h5", [])
        return Case(readers(folder, rng))
    return Case(readers(folder, rng), holds(folder / "feats.h5"))


@kind("single-file", 2)
def single_file(folder: Path, stock: Stock, rng: np.random.Generator) -> Case:
    shutil.copy(stock.exported("single", "single.h5"), folder / "feats.h5")
    hdf5.mutate(folder / "feats.h5", rng)
    if rng.integers(2):
        hdf5.reseal(folder / "feats.h5", [])
        return Case(readers(folder, rng))
    return Case(readers(folder, rng), holds(folder / "feats.h5"))


@kind("subset", 1)
def subset(folder: Path, stock: Stock, rng: np.random.Generator) -> Case:
    """A file with one id a line."""
    path = folder / "ids.txt"
    path.write_text("u1\nu3\nu7\n")
    rarely(path, rng, raw.choice(rng, [tables.csv_file, raw.bytes_of]))
    out = str(folder.parent / "out" / "x")
    head = str(stock.store() / "feats.h5")
    return Case([["export", head, out, "--to", "npy", "--subset", str(path)]])


# ---- Features made elsewhere


def imported(form: str, path: Path, rng: np.random.Generator, *more: str) -> list[str]:
    options = [
        [], ["--task", "regression"], ["--task", "multi"], ["--labels", "x,y"],
        ["--dtype", "float16"], ["--column", "label=split"], ["--feature", "audio=text"],
    ]  # fmt: skip
    chosen = [] if rng.integers(3) else raw.choice(rng, options)
    out = path.parent.parent / "out" / "feats.h5"
    return ["import", form, str(path), "--out", str(out), *more, *chosen]


def same_arrays(path: Path, was: Path, out: Path) -> Callable:
    """An npz that NumPy still reads as it was is imported as it was."""

    def read(file: Path) -> dict[str, np.ndarray]:
        with np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}

    def check(outcomes: list[tuple[int, str]]) -> None:
        if outcomes[0][0]:
            return
        store = FeatureStore(out)
        store.verify()
        try:
            now = read(path)
        except Exception:  # noqa: BLE001 - whatever NumPy says, it is not as it was
            return
        before = read(was)
        intact = all(np.array_equal(now.get(k), before[k]) for k in before)
        if intact and now.keys() == before.keys():
            starts = before["text_offsets"]
            for i, length in enumerate(before["audio_lengths"]):
                assert np.array_equal(store.features("audio", i), before["audio"][i, :length])
                text = before["text"][starts[i] : starts[i + 1]].astype(np.float32)
                assert np.array_equal(store.features("text", i), text)

    return check


@kind("npz", 3)
def npz(folder: Path, stock: Stock, rng: np.random.Generator) -> Case:
    path = Path(shutil.copy(stock.npz(), folder / "f.npz"))
    rarely(path, rng, numpys.npz_file)
    command = ["import", "npz", str(path), "--out", str(folder.parent / "out" / "feats.h5")]
    if rng.integers(2):
        return Case([imported("npz", path, rng)])
    check = same_arrays(path, stock.npz(), folder.parent / "out" / "feats.h5")
    return Case([command], check)


@kind("npy-dir", 3)
def npy_dir(folder: Path, stock: Stock, rng: np.random.Generator) -> Case:
    path = folder / "f"
    shutil.copytree(stock.exported("npy", "npy"), path)
    match rng.integers(4):
        case 0:
            rarely(path / "index.csv", rng, tables.csv_file)
        case 1:
            rarely(path / "header.json", rng, texts.json_file)
        case _:
            rarely(raw.choice(rng, sorted(path.rglob("*.npy"))), rng, numpys.npy_file)
    return Case([imported("npy-dir", path, rng)])


@kind("pickle", 4)
def pickle_(folder: Path, stock: Stock, rng: np.random.Generator) -> Case:
    path = Path(shutil.copy(stock.exported("mmsa", "f.pkl"), folder / "f.pkl"))
    rarely(path, rng, pickled.mutate)
    return Case([imported("mmsa", path, rng)])


@kind("parquet", 3)
def parquet(folder: Path, stock: Stock, rng: np.random.Generator) -> Case:
    path = Path(shutil.copy(stock.exported("parquet", "f.parquet"), folder / "f.parquet"))
    rarely(path, rng, parquets.mutate)
    return Case([imported("parquet", path, rng)])


# ---- Tables and manifests


def table_kind(suffix: str, mutate: Callable) -> Callable:
    def make(folder: Path, stock: Stock, rng: np.random.Generator) -> Case:
        path = Path(shutil.copy(stock.table(suffix), folder / f"table{suffix}"))
        rarely(path, rng, mutate)
        out = folder.parent / "out" / "manifest.parquet"
        more = raw.choice(rng, [[], [], ["--task", "multi"], ["--task", "regression"]])
        more += raw.choice(
            rng, [[], [], ["--json"], ["--split", "none"], ["--labels", "joy,anger"]]
        )
        given = ["prepare", "table", "--from", str(path), "--out", str(out), *more]
        return Case([given], manifest_reads(out))

    return make


def manifest_reads(out: Path) -> Callable:
    """A manifest that was written can be read."""

    def check(outcomes: list[tuple[int, str]]) -> None:
        from mer.pipeline.manifest import Manifest

        if outcomes[0][0] == 0:
            assert len(Manifest.read(out)) > 0

    return check


kind("csv", 3)(table_kind(".csv", tables.csv_file))
kind("jsonl", 3)(table_kind(".jsonl", tables.jsonl_file))
kind("table-parquet", 3)(table_kind(".parquet", parquets.mutate))


@kind("manifest", 3)
def manifest(folder: Path, stock: Stock, rng: np.random.Generator) -> Case:
    copy(stock.clips(), folder)
    path = folder / "manifest.parquet"
    rarely(path, rng, parquets.mutate)
    out = str(folder.parent / "out" / "feats.h5")
    given = ["--manifest", str(path), *TINY]
    read = ["extract", *given, "--out", out, *BUDGETS]
    dry = [*read, "--dry-run"]
    asked = raw.choice(rng, [dry, dry, dry, ["fingerprint", *given], read])
    return Case([asked], writes=REMEMBERED)


# ---- Sound


def loads(path: Path, name: str, first: bytes, rng: np.random.Generator) -> Callable[[], None]:
    """`load` and `probe` agree, and no more comes out than can be in the file."""
    spans = [{}, {}, {"start": 0.1}, {"end": 0.2}, {"start": 0.05, "end": 0.25}, {"start": 1e9}]
    span = raw.choice(rng, spans)

    def call() -> None:
        try:
            clip = audio.load(path, **span)
        except MerError as refused:
            try:  # what the header says may be more than can be read, but it, too, ends well
                audio.probe(path, **span)
            except MerError:
                pass
            raise refused from None
        info = audio.probe(path, **span)
        assert info.samples == len(clip.waveform), (
            f"probe says {info.samples} samples, load {len(clip.waveform)}"
        )
        assert clip.waveform.dtype == np.float32 and np.isfinite(clip.waveform).all(), "not finite"
        with path.open("rb") as file:
            same = file.read(len(first)) == first  # not another format under this name
        if name in stock.PCM and same:
            most = 2 * path.stat().st_size * audio.RATE / info.source_rate + 1
            assert info.samples <= most, (
                f"{info.samples} samples out of {path.stat().st_size} bytes"
            )

    return call


@kind("media", 12)
def sound(folder: Path, stock_: Stock, rng: np.random.Generator) -> Case:
    name = raw.choice(rng, sorted(stock.SOUNDS))
    base = stock_.sound(name)
    path = Path(shutil.copy(base, folder / base.name))
    other = stock_.sound(raw.choice(rng, sorted(stock.SOUNDS))).read_bytes()
    rate = stock.SOUNDS[name][3]
    rarely(path, rng, lambda file, random: media.mutate(file, random, rate, other))
    return Case([loads(path, name, base.read_bytes()[:4], rng)])


@kind("clip", 2)
def clip(folder: Path, stock_: Stock, rng: np.random.Generator) -> Case:
    """One clip of a corpus is mutated; the others must come through, and it must be named."""
    copy(stock_.clips(), folder)
    path = folder / "clip3.wav"
    other = stock_.sound("mp3").read_bytes()
    rarely(path, rng, lambda file, random: media.mutate(file, random, audio.RATE, other))
    given = ["--manifest", str(folder / "manifest.parquet"), *TINY]
    out = folder.parent / "out" / "feats.h5"
    asked = ["extract", *given, "--out", str(out), *BUDGETS, "--max-failures", "1"]
    asked += ["--dry-run"] if rng.integers(2) else []

    def check(outcomes: list[tuple[int, str]]) -> None:
        assert outcomes[0][0] == 0, "one bad clip stopped the corpus"
        if "--dry-run" not in asked:
            with FeatureStore(out) as store:
                store.verify()
                assert len(store) >= 5, f"{len(store)} of 6 utterances are in the store"

    return Case([asked], check, REMEMBERED)


@kind("plan", 1)
def plan(folder: Path, stock_: Stock, rng: np.random.Generator) -> Case:
    """What an extraction that was stopped left behind."""
    copy(stock_.unfinished(), folder)
    work = folder / "feats.shards" / ".work"
    left = raw.choice(rng, sorted(p for p in work.rglob("*") if p.is_file()))
    if not rng.integers(10):
        raw.not_the_file(left, rng)
    elif left.suffix == ".json" and left.stat().st_size and rng.integers(3):
        texts.json_file(left, rng)
    elif left.suffix == ".h5" and rng.integers(3):
        hdf5.mutate(left, rng)
    elif left.stat().st_size:
        raw.bytes_of(left, rng)
    given = ["--manifest", str(folder / "manifest.parquet"), *TINY, *BUDGETS]
    asked = ["extract", *given, "--out", str(folder / "feats.h5")]

    def check(outcomes: list[tuple[int, str]]) -> None:
        if outcomes[0][0] == 0:
            with FeatureStore(folder / "feats.h5") as store:
                store.verify()
                assert len(store) == 6

    return Case([asked], check, ("feats.h5", "feats.shards", *REMEMBERED))


@kind("encoder", 2)
def encoder(folder: Path, stock_: Stock, rng: np.random.Generator) -> Case:
    """A checkpoint in a folder, of which one file was changed."""
    copy(stock_.encoders(), folder)
    name = raw.choice(rng, ["audio", "text", "older"])
    path = raw.choice(rng, sorted(p for p in (folder / name).iterdir() if p.is_file()))
    formats = {".safetensors": texts.safetensors_file, ".bin": numpys.zip_file}
    rarely(path, rng, formats.get(path.suffix, texts.json_file))
    modality = "text" if name == "text" else "audio"
    names = {"audio": "none", "text": "none", modality: str(folder / name)}
    chosen = [word for m, where in names.items() for word in (f"--{m}-encoder", where)]
    manifest_ = shutil.copytree(stock_.clips(), folder.parent / "out" / "clips")
    given = ["--manifest", str(manifest_ / "manifest.parquet"), *chosen, "--offline"]
    out = str(folder.parent / "out" / "feats.h5")
    return Case([["extract", *given, "--out", out, *BUDGETS]])


# ---- Run folders

RUN_FILES = {
    "run.json": texts.json_file,
    "split.json": texts.json_file,
    "metrics.json": texts.json_file,
    "log.jsonl": texts.jsonl_file,
    "test_log.jsonl": texts.jsonl_file,
    "config.toml": texts.toml_file,
    "model.safetensors": texts.safetensors_file,
    "last.safetensors": texts.safetensors_file,
    "predictions.parquet": parquets.mutate,
}
SEALED = ("config.toml", "model.safetensors")  # run.json has their sha256


def spoil(folder: Path, rng: np.random.Generator) -> tuple[str, bool]:
    """(name of the file of a run that was changed, whether its checksums were made right again)."""
    name = raw.choice(rng, [n for n in sorted(RUN_FILES) if (folder / n).exists()])
    rarely(folder / name, rng, RUN_FILES[name])
    sealed = bool(rng.integers(2))
    if sealed:
        reseal(folder, name)
    return name, sealed


def reseal(folder: Path, name: str) -> None:
    """The checksums of a file of a run, and of its run.json, as they must be now."""
    path, info = folder / name, folder / checkpoint.INFO
    try:
        if name.endswith(".json"):
            value = json.loads(path.read_text())
            value.pop(files.SEAL, None)
            path.write_text(json.dumps({**value, files.SEAL: files.seal(value)}))
        elif name in checkpoint.DIGESTS and path.is_file():
            value = json.loads(info.read_text()) | {checkpoint.DIGESTS[name]: files.digest(path)}
            value.pop(files.SEAL, None)
            info.write_text(json.dumps({**value, files.SEAL: files.seal(value)}))
    except (ValueError, TypeError, AttributeError, RecursionError, OSError, MerError):
        pass  # not JSON any more


@kind("run", 4)
def run(folder: Path, stock_: Stock, rng: np.random.Generator) -> Case:
    copy(stock_.run(), folder)
    features = str(folder / "feats.h5")
    run = folder / "run"
    known = json.loads((run / "metrics.json").read_text())["metrics"]
    name, sealed = spoil(run, rng)
    evaluate = ["evaluate", str(run), "--features", features, "--device", "cpu", "--json"]
    out = str(folder.parent / "out" / "r.html")
    train = ["train", "--features", features, "--model", "concat", "--out", str(run)]
    train += [word for each in stock.QUICK for word in ("--set", each)] + ["--device", "cpu"]
    others = [
        evaluate, evaluate, ["report", str(run), "--out", out], train,
        ["compare", str(run), str(run), "--json"], ["predict", str(run), "--text", "hello"],
        [*evaluate, "--split", "dev"], [*evaluate, "--figures", str(folder.parent / "out" / "p")],
    ]  # fmt: skip
    asked = raw.choice(rng, others)

    def check(outcomes: list[tuple[int, str]]) -> None:
        if asked is evaluate and name in SEALED and not sealed and outcomes[0][0] == 0:
            found = json.loads(outcomes[0][1])["metrics"]
            assert found == known, "other figures from a sealed run"

    return Case([asked], check, ("run",))


@kind("predict", 2)
def predict(folder: Path, stock_: Stock, rng: np.random.Generator) -> Case:
    """A new clip, or one with a run that somebody changed."""
    copy(stock_.spoken(), folder)
    path, other = folder / "clip3.wav", stock_.sound("mp3").read_bytes()
    if rng.integers(2):
        spoil(folder / "run", rng)
    else:
        rarely(path, rng, lambda file, random: media.mutate(file, random, audio.RATE, other))
    said = raw.choice(rng, ["I am so happy", "", "\ud83d", "x" * 5000, "\0", "日本語"])
    asked = ["predict", str(folder / "run"), "--audio", str(path), "--text", said]
    return Case([[*asked, "--json", "--device", "cpu", "--offline"]])


@kind("resume", 2)
def resume(folder: Path, stock_: Stock, rng: np.random.Generator) -> Case:
    """A training that was stopped goes on from files that somebody changed."""
    copy(stock_.run(), folder)
    half = folder / "half"
    spoil(half, rng)
    train = ["train", "--features", str(folder / "feats.h5"), "--model", "concat"]
    train += ["--out", str(half), "--device", "cpu"]
    train += [word for each in stock.QUICK for word in ("--set", each)]
    return Case([train], None, ("half",))


@kind("preset", 1)
def preset(folder: Path, stock_: Stock, rng: np.random.Generator) -> Case:
    from mer.fusion import config

    source = Path(config.__file__).parent / "presets"
    path = folder / "mine.toml"
    shutil.copy(source / "concat.toml", path)
    rarely(path, rng, texts.toml_file)
    out = str(folder.parent / "out" / "run")
    given = ["train", "--features", str(stock_.run() / "feats.h5"), "--preset", str(path)]
    return Case([[*given, "--out", out, "--device", "cpu", "--set", "train.epochs=1"]])
