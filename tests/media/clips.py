"""Small media files made on the spot."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np


def tone(n: int, *, hertz: float = 440.0, rate: int = 48_000, level: float = 0.5) -> np.ndarray:
    return (level * np.sin(2 * np.pi * hertz * np.arange(n) / rate)).astype(np.float32)


def write_aac(path: Path, planes: np.ndarray, *, rate: int = 48_000, layout: str = "5.1") -> Path:
    """`planes` (channels, n) as AAC in the container that the name asks for (mp4, mkv)."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=rate, layout=layout)
        stream.bit_rate = 64_000 * len(planes)
        for start in range(0, planes.shape[1], 1024):
            frame = av.AudioFrame.from_ndarray(
                np.ascontiguousarray(planes[:, start : start + 1024]), format="fltp", layout=layout
            )
            frame.sample_rate, frame.pts = rate, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def surround(n: int, channel: int = 2) -> np.ndarray:
    """Six planes (FL FR FC LFE BL BR) with a tone in one of them."""
    planes = np.zeros((6, n), dtype=np.float32)
    planes[channel] = tone(n)
    return planes
