"""The modality `vision`: pictures of media files at even intervals, counted one by one.

A decoding process tells how many there are, and later reads, crops and scales them. A clip with
more than `PIECE_PICTURES` is encoded in pieces, which do not overlap: each picture stands for
itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from mer.pipeline.encoders import tiny
from mer.pipeline.encoders.images import check_processor, scale_of
from mer.pipeline.encoders.layers import LayerChoice, parse_layers
from mer.pipeline.encoders.loading import Checkpoint
from mer.pipeline.encoders.modality import (
    Described,
    Encoder,
    Family,
    Item,
    Lengths,
    Modality,
    ReadItem,
    Rows,
    Streams,
    problem_of,
)
from mer.pipeline.encoders.towers import default_pool, is_hierarchy, layers_of
from mer.pipeline.errors import DataError, MissingError
from mer.pipeline.manifest import Utterance
from mer.pipeline.media.faces import Crop, boxes_digest, boxes_for, has_boxes, yunet
from mer.pipeline.media.pictures import Wanted
from mer.pipeline.media.stages import Flag, Problem, Stage
from mer.pipeline.media.workers import Decoders, Job
from mer.pipeline.runtime.files import near, sha256_file
from mer.pipeline.runtime.terminal import plural, shown

PIECE_PICTURES = 32  # of a clip, read and encoded at a time
PIECES_AHEAD = 8  # read before they are asked for: 150 MB at 224 x 224
# Of what makes a picture out of a file; raise it when pictures come out otherwise.
PICTURES = 1
SIDES = ("left", "right")  # tags of a row that say where in the picture its speaker is

# One line adds a family: its module has `load`, `takes` tells its checkpoints from others.
FAMILIES: list[Family] = [
    Family("image model", "mer.pipeline.encoders.vit"),
]


@dataclass(frozen=True)
class Vision(Modality):
    """`layer`, `layer_means`, `fps` (pictures a second), `pool_kind` (what becomes of a picture)
    and `crop` belong to the recipe; for faces `boxes` (a table or folder), `model` (a detector's
    file) and `no_face` (what is kept where there is none), too.
    """

    name: ClassVar[str] = "vision"
    unit: ClassVar[str] = "pictures"
    per_unit: ClassVar[int] = 1
    fixed_budget: ClassVar[Mapping[str, float]] = {"cpu": 16, "cuda": 256}
    candidate_budgets: ClassVar[Mapping[str, Sequence[float]]] = {
        "cpu": (8, 16, 32, 64),
        "cuda": (64, 128, 256, 512, 1024),
    }
    built_in: ClassVar[str] = tiny.NAMES["vision"]
    families: ClassVar[Sequence[Family]] = FAMILIES
    optional: ClassVar[bool] = True
    clip_option: ClassVar[str] = "--video FILE"
    cut: ClassVar[Flag] = Flag(0)  # pieces change nothing, so they are not told

    layer: str = "last"
    layer_means: bool = False
    fps: float = 4.0
    pool_kind: str = "auto"
    crop: str = "none"
    boxes: str = ""
    model: str = ""
    no_face: str = "centre"

    @classmethod
    def of(cls, options: Any) -> Vision:
        return cls(
            encoder=options.vision_encoder,
            budget=options.budget_pictures,
            part=options.part_pictures,
            layer=options.vision_layer,
            layer_means=options.layer_means,
            fps=options.vision_fps,
            pool_kind=options.vision_pool,
            crop=options.vision_crop,
            boxes=options.vision_boxes,
            model=options.vision_faces,
            no_face=options.vision_no_face,
        )

    # --- rows and recipe

    def has(self, u: Utterance) -> bool:
        return self.file(u) is not None

    def file(self, u: Utterance) -> str | None:
        return u.video or u.audio or None

    def found_in(self, u: Utterance, streams: Mapping[str, Streams]) -> bool:
        file = self.file(u)
        return file is not None and (file not in streams or streams[file][1])

    def content(self, u: Utterance, digest: str) -> tuple[str, ...]:
        if not digest:
            return ()
        parts = [self.name, digest, self.span(u)]
        if self.crop == "side":
            parts.append(self._side(u))
        if self.crop == "faces" and self.boxes:
            parts.append(boxes_digest(self.boxes, u.id, self.file(u) or ""))
        return tuple(parts)

    def resolve(
        self,
        encoder: str,
        *,
        offline: bool = False,
        sha256: Callable[[Path], str] = sha256_file,
    ) -> Checkpoint:
        checkpoint = super().resolve(encoder, offline=offline, sha256=sha256)
        layers_of(checkpoint)  # what is no image model is told before it is loaded
        return checkpoint

    def check(self, checkpoint: Checkpoint) -> None:
        self.choice(checkpoint)
        check_processor(checkpoint)
        if self.pool_of(checkpoint) == "pooler" and self.choice(checkpoint).kind != "last":
            raise DataError(
                f"--vision-layer {self.layer}: --vision-pool pooler goes with the last layer; use "
                "cls or mean"
            )
        if self.crop == "faces" and bool(self.boxes) == bool(self.model):
            raise DataError(
                "--vision-crop faces: say where the faces are with --vision-boxes (a table or "
                "OpenFace's folder), or name YuNet's model file with --vision-faces"
            )
        if self.crop != "faces" and (self.boxes or self.model):
            raise DataError(
                "--vision-boxes and --vision-faces go with --vision-crop faces, not with "
                f"{self.crop}"
            )
        if self.model:
            yunet(self.model)
        if self.boxes and not Path(self.boxes).exists():
            guess = near(self.boxes, "any")
            raise DataError(f"--vision-boxes {shown(self.boxes)}: no such file or folder{guess}")

    def choice(self, checkpoint: Checkpoint) -> LayerChoice:
        """The layers that are kept. Raises DataError and EncoderError."""
        return parse_layers(self.layer, layers_of(checkpoint), "--vision-layer")

    def pool_of(self, checkpoint: Checkpoint) -> str:
        """What becomes of a picture. Raises DataError and EncoderError."""
        if self.pool_kind != "auto":
            return self.pool_kind
        return default_pool(checkpoint, last=self.choice(checkpoint).kind == "last")

    def recipe(self, checkpoint: Checkpoint) -> dict[str, Any]:
        recipe: dict[str, Any] = {
            "encoder": checkpoint.hash,
            "layer": self.choice(checkpoint).text,
            "fps": float(self.fps),
            "pool": self.pool_of(checkpoint),
            "crop": self.crop,
            "pictures": PICTURES,
        }
        if self.layer_means and not is_hierarchy(checkpoint):
            recipe["layer_means"] = True
        if self.crop == "faces":
            recipe["no_face"] = self.no_face
            recipe["faces"] = sha256_file(Path(self.model)) if self.model else "boxes"
        return recipe

    @classmethod
    def options_of(cls, recipe: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "vision_layer": recipe["layer"],
            "vision_fps": recipe["fps"],
            "vision_pool": recipe["pool"],
            "vision_crop": recipe["crop"],
            "vision_no_face": recipe.get("no_face", "centre"),
            "layer_means": recipe.get("layer_means", False),
        }

    # --- lengths

    def _times(self, u: Utterance) -> tuple[float | None, float | None]:
        """The part of its file that an utterance is: that of its sound, unless the file is another
        and has a time line of its own.
        """
        if u.video and (u.video_start is not None or u.video_end is not None):
            return u.video_start, u.video_end
        return u.start, u.end

    def span(self, u: Utterance) -> str:
        start, end = ("" if time is None else repr(float(time)) for time in self._times(u))
        return f"pictures {self.fps!r} {start}:{end}"

    def _film(self, u: Utterance, rows: Rows) -> Path:
        """Where the film is of an utterance that has one."""
        file = self.file(u)
        assert file is not None
        return rows.root / file

    def _job(self, what: str, row: int, rows: Rows, wanted: Wanted) -> Job:
        u = rows.utterances[row]
        path = str(self._film(u, rows))
        start, end = self._times(u)
        seen = rows.seen.get(path)
        return Job(what, path, "auto", start, end, seen, pictures=wanted)

    def probe_job(self, row: int, rows: Rows) -> Job | None:
        return self._job("count", row, rows, Wanted(self.fps))

    def seconds(self, length: int) -> float | None:
        return length / self.fps

    def measure(self, rows: Rows, probed: Sequence[int], encoder: Encoder) -> Lengths:
        counted = tuple(probed)
        flags = []
        for u, pictures in zip(rows.utterances, counted, strict=True):
            blind = self.has(u) and not pictures
            flags.append(Flag.no_picture if blind else Flag(0))
        return Lengths(counted, counted, tuple(flags))

    def check_lengths(self, rows: Rows, lengths: Lengths, readable: Sequence[int]) -> None:
        asked = [row for row in readable if self.has(rows.utterances[row])]
        if asked and self.crop == "faces" and self.boxes:
            self._check_boxes([rows.utterances[row] for row in asked])
        if not asked or any(lengths.lengths[row] for row in asked):
            return
        first = shown(self._film(rows.utterances[asked[0]], rows), 120)
        named = any(rows.utterances[row].video for row in asked)
        raise MissingError(
            f"--vision-encoder: none of {plural(len(asked), 'clip')} has a picture (first: "
            f"{first})",
            "name its file in a `video` column, or use --vision-encoder none",
            clip=self.clip_option,
            prepared="" if named else self.name,
        )

    def _check_boxes(self, asked: Sequence[Utterance]) -> None:
        """Raise DataError where the boxes name none of these utterances: the file of boxes is then
        another corpus's.
        """
        if not any(has_boxes(self.boxes, u.id, self.file(u) or "") for u in asked):
            raise DataError(
                f"--vision-boxes {shown(self.boxes, 160)}: has none of the "
                f"{plural(len(asked), 'utterance')} (first: {shown(asked[0].id, 40)}); its ids "
                "must be the manifest's, or "
                "the names of the films without their endings"
            )

    # --- encoding

    def items(
        self, chosen: Sequence[int], rows: Rows, lengths: Lengths, checkpoint: Checkpoint
    ) -> list[Item]:
        """One item for every `PIECE_PICTURES` of a clip."""
        found = []
        for row in chosen:
            total = lengths.lengths[row]
            for piece, first in enumerate(range(0, total, PIECE_PICTURES)):
                end = min(total, first + PIECE_PICTURES)
                found.append(Item(row, end - first, piece, first, end, 0, end - first))
        return found

    def read(
        self,
        items: Iterable[Item],
        rows: Rows,
        lengths: Lengths,
        encoder: Encoder,
        decoders: Decoders,
    ) -> Iterator[ReadItem]:
        """Pixel values (n, channels, h, w), read ahead and scaled in the decoding processes."""
        items = list(items)
        jobs = (self._reading(item, rows, encoder.checkpoint) for item in items)
        for item, clip in zip(items, decoders.run(jobs, ahead=PIECES_AHEAD), strict=True):
            path = self._film(rows.utterances[item.row], rows)
            problem = problem_of(clip, lengths.lengths[item.row], path, "pictures")
            if problem is not None:
                yield ReadItem(problem=problem)
                continue
            pictures = clip.pictures
            assert pictures is not None
            if len(pictures) == item.length:
                yield ReadItem(pictures, Flag.of(clip.flags))
            else:
                reason = f"{path}: {len(pictures):,} of {plural(item.length, 'picture')}"
                yield ReadItem(problem=Problem(Stage.DECODE, reason))

    def _reading(self, item: Item, rows: Rows, checkpoint: Checkpoint) -> Job:
        u = rows.utterances[item.row]
        start, _ = self._times(u)
        begin = max(0.0, start or 0.0)
        crop = self._crop(u).between(begin + item.first / self.fps, begin + item.end / self.fps)
        with_sound = self.file(u) == u.audio
        finish = scale_of(checkpoint)
        wanted = Wanted(self.fps, item.first, item.length, crop, with_sound, finish)
        return self._job("pictures", item.row, rows, wanted)

    def _crop(self, u: Utterance) -> Crop:
        if self.crop == "side":
            return Crop(self._side(u) or "none")
        if self.crop != "faces":
            return Crop(self.crop)
        if self.model:
            return Crop("detector", fallback=self.no_face, model=self.model)
        return Crop("boxes", boxes_for(self.boxes, u.id, self.file(u) or ""), self.no_face)

    def _side(self, u: Utterance) -> str:
        """The half of the picture that the row's speaker is in, by its tags.

        Raises DataError where they do not tell.
        """
        found = [side for side in SIDES if side in u.tags]
        if len(found) != 1:
            raise DataError(
                f"--vision-crop side: {shown(u.id)} has neither the tag left nor right; use "
                "another crop, or say it in the manifest (mer prepare iemocap does)"
            )
        return found[0]

    def describe(self, checkpoint: Checkpoint) -> Described:
        extra = {"pool": self.pool_of(checkpoint), "crop": self.crop}
        choice = self.choice(checkpoint)
        return Described(self.fps, choice.text, extra, choice.stack)
