"""A drawn face for the corpus made by code: mouth and brows carry an emotion.

Speakers differ in skin, head and place in the picture; heads sway, eyes blink, the mouth moves
while its owner speaks. Everything follows from the seed; the film is lossless, so that its pictures
do not depend on who encodes them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

VERSION = 1  # raise it when a pixel moves
SIZE = 96  # pixels, of each side
FPS = 8
LINE = 0.06  # half the thickness of brows and mouth; the picture is 2 wide and 2 high
SOFT = 0.03  # over which an edge goes from one colour to the other
BLINK_SECONDS, BLINK_EVERY_SECONDS = 0.15, 2.5


@dataclass(frozen=True)
class Look:
    """How an emotion looks; heights and widths in shares of a head's.

    `corners`: of the mouth, up (+) or down (−). `width`, `open`: of the mouth. `inner`, `outer`:
    height of the brows' ends against that of a calm face.
    """

    corners: float
    width: float
    open: float
    inner: float
    outer: float


LOOKS = {
    "neutral": Look(corners=0.0, width=0.36, open=0.02, inner=0.0, outer=0.0),
    "joy": Look(corners=0.24, width=0.48, open=0.10, inner=0.09, outer=0.09),
    "anger": Look(corners=-0.06, width=0.28, open=0.06, inner=-0.21, outer=0.12),
    "sadness": Look(corners=-0.21, width=0.34, open=0.01, inner=0.18, outer=-0.12),
}


@dataclass(frozen=True)
class Head:
    """What of a face is its owner's: colours (3,) 0 … 1, size, and where in the picture it is."""

    skin: np.ndarray
    ground: np.ndarray
    width: float
    height: float
    x: float
    y: float

    @classmethod
    def of(cls, rng: np.random.Generator) -> Head:
        """A head by chance; more alike than people's, so that an untrained encoder can tell what
        they show.
        """
        skin = np.array([0.95, 0.78, 0.65]) * rng.uniform(0.75, 1.0)
        ground = np.array([0.50, 0.55, 0.60]) + rng.uniform(-0.08, 0.08, 3)
        size = rng.uniform(0.62, 0.66), rng.uniform(0.78, 0.82)
        return cls(skin, ground, *size, *rng.uniform(-0.03, 0.03, 2))


def draw(emotion: str, head: Head, seconds: float, rng: np.random.Generator) -> np.ndarray:
    """Pictures (n, SIZE, SIZE, 3) uint8, `FPS` a second, of somebody who speaks so."""
    look, count = LOOKS[emotion], max(1, math.ceil(seconds * FPS))
    times = np.arange(count) / FPS
    phase, speed = rng.uniform(0, 2 * np.pi, 2), rng.uniform(0.2, 0.5, 2)
    sway = 0.02 * np.sin(2 * np.pi * times[:, None] * speed + phase)
    speaking = np.abs(rng.normal(0, 0.03, count))
    blink = (times + rng.uniform(0, BLINK_EVERY_SECONDS)) % BLINK_EVERY_SECONDS < BLINK_SECONDS
    lean = rng.normal(0, 0.02, 4)  # nobody shows an emotion exactly as another does
    pictures = [
        _picture(look, head, sway[n], speaking[n], closed=bool(blink[n]), lean=lean)
        for n in range(count)
    ]
    return np.stack(pictures)


def _picture(
    look: Look, head: Head, sway: np.ndarray, speaking: float, *, closed: bool, lean: np.ndarray
) -> np.ndarray:
    across, down = np.meshgrid(*[(np.arange(SIZE) + 0.5) * 2 / SIZE - 1] * 2)
    x, y = (across - head.x - sway[0]) / head.width, (down - head.y - sway[1]) / head.height
    picture = np.broadcast_to(head.ground, (SIZE, SIZE, 3)).copy()
    _paint(picture, 1 - np.hypot(x, y), head.skin)
    dark = np.array([0.12, 0.08, 0.07])
    for side in (-1, 1):
        flat = 0.02 if closed else 0.09
        eye = 1 - np.hypot((x - side * 0.36) / 0.13, (y + 0.18) / flat)
        _paint(picture, eye * flat, np.array([0.95, 0.95, 0.95]))
        if not closed:
            _paint(picture, 0.06 - np.hypot(x - side * 0.36, y + 0.18), dark)
        # from the inner to the outer end
        share = np.clip((side * x - 0.16) / 0.40, 0, 1)
        height = -0.42 - (look.inner + lean[0]) * (1 - share) - (look.outer + lean[1]) * share
        beyond = np.maximum(0, np.abs(side * x - 0.36) - 0.20)
        _paint(picture, LINE - np.hypot(y - height, beyond), dark)
    width = look.width + lean[2]
    bend = np.clip(x / width, -1, 1) ** 2
    middle = 0.48 + (look.corners + lean[3]) * (0.5 - bend)
    gap = (look.open + speaking) * (1 - bend)
    beyond = np.maximum(0, np.abs(x) - width)
    distance = np.hypot(np.maximum(0, np.abs(y - middle) - gap), beyond)
    _paint(picture, LINE - distance, np.array([0.55, 0.12, 0.14]))
    return np.round(255 * picture).astype(np.uint8)


def _paint(picture: np.ndarray, inside: np.ndarray, colour: np.ndarray) -> None:
    """Lay a colour over what is `inside` by more than 0, with a soft edge."""
    share = np.clip(inside / SOFT + 0.5, 0, 1)[:, :, None]
    picture += share * (colour - picture)


def write(path: Path, pictures: np.ndarray) -> None:
    """A lossless film without sound."""
    with av.open(str(path), "w", format="matroska", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("ffv1", rate=Fraction(FPS))
        stream.width, stream.height, stream.pix_fmt = SIZE, SIZE, "bgr0"
        stream.codec_context.thread_count = 1
        for picture in pictures:
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            container.mux(stream.encode(frame.reformat(format="bgr0")))
        container.mux(stream.encode(None))
