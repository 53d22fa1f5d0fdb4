"""The sound files that are mutated: made once, the same every time."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile

from mer.pipeline.interchange.export import export

from tests.encoders import checkpoints
from tests.extract import corpus
from tests.fusion import stores
from tests.media.clips import tone
from tests.store.build import make_store

ROWS = 12  # of tables and stores
SECONDS = 0.3
QUICK = ("train.epochs=2", "train.batch_size=16", "model_args.hidden=8")

# name -> (extension, format, codec, rate): soundfile's names, or FFmpeg's where the format is lower
# case
SOUNDS = {
    "wav": ("wav", "WAV", "PCM_16", 8000), "wav24": ("wav", "WAV", "PCM_24", 22_050),
    "wavfloat": ("wav", "WAV", "FLOAT", 16_000), "wavulaw": ("wav", "WAV", "ULAW", 8000),
    "wavadpcm": ("wav", "WAV", "IMA_ADPCM", 22_050), "wavex": ("wav", "WAVEX", "PCM_16", 44_100),
    "rf64": ("wav", "RF64", "PCM_16", 16_000), "w64": ("w64", "W64", "PCM_16", 16_000),
    "flac": ("flac", "FLAC", "PCM_16", 22_050), "aiff": ("aiff", "AIFF", "PCM_16", 22_050),
    "au": ("au", "AU", "PCM_16", 16_000), "caf": ("caf", "CAF", "PCM_16", 44_100),
    "ogg": ("ogg", "OGG", "VORBIS", 22_050), "mp3": ("mp3", "MP3", "MPEG_LAYER_III", 22_050),
    "voc": ("voc", "VOC", "PCM_16", 16_000), "sph": ("sph", "NIST", "PCM_16", 16_000),
    "m4a": ("m4a", "mp4", "aac", 22_050), "mov": ("mov", "mov", "alac", 22_050),
    "mkv": ("mkv", "matroska", "aac", 22_050), "webm": ("webm", "webm", "libopus", 48_000),
    "opus": ("opus", "ogg", "libopus", 48_000), "avi": ("avi", "avi", "libmp3lame", 22_050),
    "aac": ("aac", "adts", "aac", 22_050), "wma": ("wma", "asf", "wmav2", 22_050),
    "flv": ("flv", "flv", "libmp3lame", 22_050), "ts": ("ts", "mpegts", "mp2", 22_050),
    "mpg": ("mpg", "mpeg", "mp2", 22_050), "amr": ("amr", "amr", "libopencore_amrnb", 8000),
    "3gp": ("3gp", "3gp", "aac", 22_050), "ac3": ("ac3", "ac3", "ac3", 48_000),
    "tta": ("tta", "tta", "tta", 22_050), "wv": ("wv", "wv", "wavpack", 22_050),
}  # fmt: skip
# formats whose every sample takes at least four bits
PCM = {"wav", "wav24", "wavfloat", "wavulaw", "wavadpcm", "wavex", "rf64", "w64", "aiff", "au"}
PCM |= {"caf", "voc", "sph"}


def once(make: Callable[..., Path]) -> Callable[..., Path]:
    """`make(self, folder, …)` in a folder of its own, by whichever process asks first."""

    @functools.wraps(make)
    def made(self, *given: str) -> Path:
        folder = self.folder / "-".join([make.__name__, *given]).replace(".", "")
        mark = folder / ".made"
        if not mark.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            mark.write_text(str(make(self, folder, *given)))
        return Path(mark.read_text())

    return made


class Stock:
    """Files under `folder`, each made when it is first asked for."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    @once
    def sound(self, folder: Path, name: str) -> Path:
        extension, form, codec, rate = SOUNDS[name]
        path = folder / f"{name}.{extension}"
        x = tone(round(SECONDS * rate), rate=rate)
        if form.islower():
            encode(path, form, codec, rate, x)
        else:
            soundfile.write(path, x, rate, format=form, subtype=codec)
        return path

    @once
    def store(self, folder: Path) -> Path:
        """A folder with feats.h5 and its three shards."""
        return make_store(folder / "store").path.parent

    @once
    def exported(self, folder: Path, form: str, name: str) -> Path:
        from mer.pipeline.store import FeatureStore

        path = folder / name
        export(FeatureStore(self.store() / "feats.h5"), form, path)
        return path

    @once
    def layered(self, folder: Path) -> Path:
        """A store that keeps layer means."""
        make_store(folder, layers=True)
        return folder

    @once
    def joined(self, folder: Path) -> Path:
        """What `layered` holds as a joined store, of text.h5 and audio.h5."""
        from mer.pipeline.interchange.joining import join

        paths = [make_store(folder, layers=True, name=name).path for name in ("audio", "text")]
        left_out = {"audio.h5:text": "", "text.h5:audio": ""}
        join(paths, folder / "feats.h5", renamed=left_out)
        return folder

    @once
    def npz(self, folder: Path) -> Path:
        rng = np.random.default_rng(1)
        path = folder / "f.npz"
        np.savez(
            path,
            id=np.array(["a", "b", "c"]),
            label=np.array(["x", "y", "x"]),
            split=np.array(["train", "dev", "test"]),
            audio=rng.normal(size=(3, 5, 4)).astype(np.float32),
            audio_lengths=np.array([5, 3, 1]),
            text=rng.normal(size=(6, 2)),
            text_offsets=np.array([0, 2, 2, 6]),
        )
        return path

    @once
    def table(self, folder: Path, suffix: str) -> Path:
        """A table of our own with quotes, another alphabet and spans."""
        columns = {
            "id": [f"u{i}" for i in range(ROWS)],
            "text": [f"说 {i} he said no" for i in range(ROWS)],
            "label": ["joy", "anger"] * (ROWS // 2),
            "split": ["train", "dev", "test"] * (ROWS // 3),
            "dialogue": [f"d{i // 2}" for i in range(ROWS)],
            "start": [0.5] * ROWS,
            "end": [1.5] * ROWS,
        }
        path = folder / f"table{suffix}"
        rows = list(zip(*columns.values(), strict=True))
        if suffix == ".parquet":
            pq.write_table(pa.table(columns), path)
        elif suffix == ".jsonl":
            lines = [json.dumps(dict(zip(columns, row, strict=True))) for row in rows]
            path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        else:
            lines = [",".join(map(str, row)) for row in [tuple(columns), *rows]]
            path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    @once
    def clips(self, folder: Path) -> Path:
        """A folder with manifest.parquet and six short clips."""
        return corpus.make(folder / "clips", 6)[1].parent

    @once
    def encoders(self, folder: Path) -> Path:
        """Small checkpoints, `audio`, `text` and the pickled `older`, as they are downloaded."""
        checkpoints.audio(folder / "audio")
        checkpoints.audio(folder / "older", pickled=True)
        checkpoints.text(folder / "text")
        return folder

    @once
    def unfinished(self, folder: Path) -> Path:
        """The clips, and an extraction of them that was stopped before its first shard."""
        from mer.pipeline.extraction import extract
        from mer.pipeline.extraction.runner import LocalRunner

        shutil.copytree(self.clips(), folder, dirs_exist_ok=True)
        manifest = corpus.Manifest.read(folder / "manifest.parquet")

        def stop(*_, **__):
            raise KeyboardInterrupt

        was, LocalRunner.assemble = LocalRunner.assemble, stop
        try:
            extract(manifest, folder / "feats.h5", corpus.options())
        except KeyboardInterrupt:
            pass
        finally:
            LocalRunner.assemble = was
        return folder

    @once
    def spoken(self, folder: Path) -> Path:
        """The clips, their store feats.h5, and `run`, trained on it."""
        from mer.fusion import config
        from mer.fusion.training import experiment
        from mer.pipeline.extraction import extract
        from mer.pipeline.store import FeatureStore

        manifest = corpus.make(folder, 24)[0]
        extract(manifest, folder / "feats.h5", corpus.options())
        settings = config.load(model="concat", preset=None, sets=QUICK)
        with FeatureStore(folder / "feats.h5") as store:
            experiment.train(store, settings, folder / "run", note=stores.quiet)
        return folder

    @once
    def run(self, folder: Path) -> Path:
        """A store, `run` (finished and evaluated) and `half` (stopped after an epoch)."""
        from mer.fusion import config
        from mer.fusion.evaluation import evaluate
        from mer.fusion.training import experiment

        store = stores.make_store(folder, n=40)
        settings = config.load(model="concat", preset=None, sets=QUICK)
        run = experiment.train(store, settings, folder / "run", note=stores.quiet)
        evaluate.evaluate(run, folder / "feats.h5", device="cpu")

        def stop(line: str) -> None:
            if line.startswith("epoch"):
                raise KeyboardInterrupt

        try:
            experiment.train(store, settings, folder / "half", note=stop)
        except KeyboardInterrupt:
            pass
        return folder


def encode(path: Path, form: str, codec: str, rate: int, x: np.ndarray) -> None:
    with av.open(str(path), "w", format=form) as container:
        stream = container.add_stream(codec, rate=rate, layout="mono")
        stream.bit_rate = 12_200 if rate == 8000 else 64_000
        samples = av.AudioFrame.from_ndarray(x[None], format="fltp", layout="mono")
        samples.sample_rate, samples.pts = rate, 0
        fit = av.AudioResampler(stream.format, "mono", rate, stream.frame_size or None)
        for frame in [*fit.resample(samples), *fit.resample(None)]:
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
