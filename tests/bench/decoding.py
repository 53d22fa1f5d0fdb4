"""Clips a core decodes in a second, by container: whether encoders ever wait for decoders.

A clip is decoded twice in an extraction, once to count its samples and once to encode it; both are
timed here, in processor seconds of one process. Lengths are spread over MELD's quantiles. The films
are what MELD's are: H.264 pictures, and six channels of AAC at 48 kHz, of which the centre is kept.
`python -m tests.bench extract` has these rows, too.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
import time
from pathlib import Path

from mer.pipeline.media.workers import Job, decode
from mer.pipeline.runtime.machine import one_thread

# ffmpeg's arguments behind the clip, by the ending of what it makes
FORMS = {
    "wav": [],
    "flac": [],
    "mp4": [
        *("-f", "lavfi", "-i", "testsrc=size=320x180:rate=24", "-shortest"),
        *("-af", "pan=5.1|FL=0.2*c0|FR=0.2*c0|FC=c0|BL=0.1*c0|BR=0.1*c0|LFE=0.1*c0"),
        *("-ar", "48000", "-c:a", "aac", "-c:v", "libx264", "-preset", "ultrafast"),
    ],
}
TITLES = {"wav": "wav, 16 kHz", "flac": "flac, 16 kHz", "mp4": "mp4 with 5.1 AAC, 48 kHz"}


def rows(folder: Path, clips: list[Path], rounds: int) -> list[dict]:
    """A row for each container, made from wav files; the best of the rounds counts."""
    found = []
    for ending, arguments in FORMS.items():
        paths = []
        for clip in clips:
            path = folder / f"as-{ending}-{clip.stem}.{ending}"
            command = ["ffmpeg", "-v", "error", "-y", "-i", str(clip), *arguments, str(path)]
            subprocess.run(command, check=True)
            paths.append(path)
        least = {}
        for what in ("probe", "load"):
            took = [timed(what, paths) for _ in range(rounds)]
            least[what] = min(took)
        total = sum(least.values())
        row = {"encoder": "none", "modality": "audio", "side": f"decoding {TITLES[ending]}"}
        row |= {"items": len(paths), "clips_per_core_s": round(len(paths) / total, 1)}
        row |= {f"{what}_ms": round(s / len(paths) * 1e3, 2) for what, s in least.items()}
        found.append(row)
    return found


def timed(what: str, paths: list[Path]) -> float:
    """Processor seconds of one job for each file. Raises RuntimeError where one fails."""
    with one_thread():  # as in a decoding process
        begun = time.process_time()
        for path in paths:
            answer = decode(Job(what, str(path), "auto", None, None))
            if answer.stage is not None:
                raise RuntimeError(answer.reason)
        return time.process_time() - begun


def main(argv: list[str]) -> None:
    from tests.bench.extract import clips

    parser = argparse.ArgumentParser(prog="python -m tests.bench decoding", description=__doc__)
    parser.add_argument("--clips", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for row in rows(folder, clips(folder, args.clips), args.rounds):
            print(row, flush=True)
