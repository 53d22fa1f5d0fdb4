"""Odd films made by ffmpeg, and what ffmpeg itself makes of them: its frames with their times."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

X264 = ["-c:v", "libx264", "-preset", "ultrafast", "-crf", "12", "-g", "24"]
AAC = ["-c:a", "aac", "-b:a", "64k"]


def ffmpeg(*arguments: str | Path) -> bytes:
    """What ffmpeg writes to its standard output."""
    command = ["ffmpeg", "-nostdin", "-v", "error", "-y", *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True).stdout


def scene(seconds: float = 2.0, size: str = "160x120", rate: str = "25") -> list[str]:
    """ffmpeg's own moving test picture: every frame differs from the one before. Its edges are as
    soft as a camera's: on drawn ones two versions of ffmpeg differ by more than 2 of 255.
    """
    drawn = f"testsrc2=size={size}:rate={rate}:duration={seconds},gblur=sigma=3"
    return ["-f", "lavfi", "-i", drawn]


def sound(seconds: float = 2.0) -> list[str]:
    return ["-f", "lavfi", "-i", f"sine=frequency=440:sample_rate=16000:duration={seconds}"]


def plain(path: Path, *, seconds: float = 2.0, size: str = "160x120", rate: str = "25") -> Path:
    """An ordinary film with sound."""
    ffmpeg(*scene(seconds, size, rate), *sound(seconds), *X264, "-pix_fmt", "yuv420p", *AAC, path)
    return path


def variable(path: Path) -> Path:
    """Frames of unequal length."""
    chosen = "select='not(mod(n,7))+lt(mod(n,11),3)',setpts=PTS"
    ffmpeg(*scene(), "-vf", chosen, "-vsync", "vfr", *X264, "-pix_fmt", "yuv420p", path)
    return path


def rotated(path: Path, degrees: int = 90) -> Path:
    """Its display matrix says that it is to be turned."""
    straight = plain(path.with_name("straight.mp4"))
    ffmpeg("-i", straight, "-c", "copy", "-metadata:s:v:0", f"rotate={degrees}", path)
    return path


def interlaced(path: Path) -> Path:
    wanted = ["-vf", "tinterlace=interleave_top", "-flags", "+ilme+ildct"]
    ffmpeg(*scene(rate="50"), *wanted, "-c:v", "mpeg2video", "-q:v", "2", path)
    return path


def edited(path: Path) -> Path:
    """Cut without decoding: an edit list leaves out what lies before the first frame shown."""
    whole = plain(path.with_name("whole.mp4"), seconds=4)
    ffmpeg("-ss", "1.48", "-i", whole, "-c", "copy", path)
    return path


def ten_bits(path: Path) -> Path:
    ffmpeg(*scene(), *X264, "-pix_fmt", "yuv420p10le", path)
    return path


def prores(path: Path) -> Path:
    colours = ["-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709"]
    matrix = "scale=out_color_matrix=bt709,format=yuv422p10le"
    ffmpeg(*scene(), "-vf", matrix, "-c:v", "prores_ks", *colours, path)
    return path


def mute(path: Path) -> Path:
    ffmpeg(*scene(), *X264, "-pix_fmt", "yuv420p", path)
    return path


def late(path: Path) -> Path:
    """Its picture begins 0.6 s after its sound."""
    delayed = ["-itsoffset", "0.6", *scene(1.4), *sound(2)]
    ffmpeg(*delayed, *X264, "-pix_fmt", "yuv420p", *AAC, path)
    return path


def single(path: Path) -> Path:
    ffmpeg(*scene(), *X264, "-pix_fmt", "yuv420p", "-frames:v", "1", path)
    return path


def broadcast(path: Path) -> Path:
    """29.97 frames a second in a transport stream, whose clock does not begin at 0."""
    return plain(path, rate="30000/1001")


def odd(path: Path) -> Path:
    """A size that no macro block fits, nor half of it a whole number."""
    vp9 = ["-c:v", "libvpx-vp9", "-cpu-used", "8", "-deadline", "realtime", "-crf", "10"]
    ffmpeg(*scene(size="157x113"), *vp9, "-b:v", "0", "-pix_fmt", "yuv420p", path)
    return path


def wide(path: Path) -> Path:
    """Pixels that are not square, in the colours of high definition."""
    colours = ["-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709"]
    matrix = "scale=out_color_matrix=bt709,setsar=16/11"
    ffmpeg(*scene(), "-vf", matrix, *X264, "-pix_fmt", "yuv420p", *colours, path)
    return path


def full_range(path: Path) -> Path:
    matrix = "scale=out_range=pc"
    ffmpeg(*scene(), "-vf", matrix, *X264, "-pix_fmt", "yuvj420p", "-color_range", "pc", path)
    return path


def avi(path: Path) -> Path:
    """B frames in a container without times of presentation."""
    coded = ["-c:v", "mpeg4", "-bf", "2", "-q:v", "2", "-g", "12"]
    ffmpeg(*scene(), *sound(), *coded, "-c:a", "mp3", path)
    return path


# name → (suffix, how it is made)
ODD: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "variable rate": ("mkv", variable),
    "rotated by 90": ("mp4", rotated),
    "interlaced": ("mpg", interlaced),
    "edit list": ("mp4", edited),
    "10 bits": ("mkv", ten_bits),
    "no sound": ("mp4", mute),
    "late picture": ("mkv", late),
    "one frame": ("mp4", single),
    "29.97 in a transport stream": ("ts", broadcast),
    "odd size": ("webm", odd),
    "non-square pixels, BT.709": ("mp4", wide),
    "10 bits, 4:2:2, BT.709": ("mov", prores),
    "full range": ("mp4", full_range),
    "AVI with B frames": ("avi", avi),
}


@dataclass(frozen=True)
class Shown:
    """ffmpeg's frames: (n, height, width, 3), when each is shown, and when the last one ends."""

    frames: np.ndarray
    times: list[float]
    end: float


def by_ffmpeg(path: Path) -> Shown:
    """Every frame as ffmpeg decodes it, with square pixels; times from the container's start."""
    asked = ["-v", "error", "-print_format", "json", "-show_format", "-show_frames"]
    command = ["ffprobe", *asked, "-select_streams", "v:0", str(path)]
    told = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    origin = float(told["format"].get("start_time", 0))
    times, end = [], 0.0
    for frame in told["frames"]:
        # the last of an AVI have none
        time = float(frame.get("best_effort_timestamp_time", end + origin)) - origin
        times.append(time)
        end = time + float(frame.get("pkt_duration_time", frame.get("duration_time", 0)))
    square = "scale=interl=-1,format=rgb24,scale='round(iw*sar)':ih,setsar=1"
    raw = ["-vf", square, "-vsync", "passthrough", "-pix_fmt", "rgb24", "-f", "image2pipe"]
    pictures = ffmpeg("-i", path, "-map", "0:v:0", *raw, "-c:v", "ppm", "-")
    return Shown(_pnm(pictures), times, end)


def _pnm(raw: bytes) -> np.ndarray:
    """Binary PPM pictures, one behind the other."""
    found, at = [], 0
    while at < len(raw):
        fields = raw[at : at + 40].split(b"\n", 3)
        width, height = map(int, fields[1].split())
        at += sum(len(field) + 1 for field in fields[:3])
        pixels = np.frombuffer(raw, np.uint8, width * height * 3, at)
        found.append(pixels.reshape(height, width, 3))
        at += len(pixels)
    return np.stack(found)
