"""The options of `mer extract` and `mer fingerprint`, and what becomes of them."""

from __future__ import annotations

import os
import re
from pathlib import Path

import click

from mer.commands.completion import complete_corpora
from mer.commands.output import note

# Options that go with an encoder, by the modality it is for.
OF_ENCODER = {
    "audio": (
        "audio_layer",
        "audio_window",
        "audio_track",
        "channel",
        "pool",
        "max_seconds",
        "budget_seconds",
    ),
    "text": ("text_layer", "text_windows", "budget_tokens"),
    "vision": (
        "vision_layer",
        "vision_fps",
        "vision_pool",
        "vision_crop",
        "vision_boxes",
        "vision_faces",
        "vision_no_face",
        "budget_pictures",
    ),
}


def setting(name: str, *, default: object, help: str = "", **given):
    """An option of ExtractOptions, which alone holds its default.

    What is not given is not passed on; `default` is what the help shows, and a test holds it to the
    dataclass.
    """
    return click.option(name, help=f"{help}  [default: {default}]".strip(), **given)


def extraction_options(command):
    """The options that decide features, shared by `extract` and `fingerprint`."""
    for option in reversed(
        [
            click.option(
                "--dataset",
                metavar="NAME",
                shell_complete=complete_corpora,
                help="A known corpus (`mer datasets`); prepared first if it has no manifest yet.",
            ),
            click.option(
                "--manifest",
                "manifest_file",
                type=click.Path(path_type=Path),
                help="A manifest made by `mer prepare`.",
            ),
            click.option(
                "--root",
                type=click.Path(path_type=Path),
                help="Where the media are. [default: $MER_DATA/NAME, else data/NAME]",
            ),
            click.option(
                "--labels", metavar="NAME", help="Label set of the corpus, e.g. sentiment."
            ),
            click.option(
                "--size",
                type=click.IntRange(min=1),
                metavar="N",
                help="synthetic: utterances.  [default: those of its manifest, else 600]",
            ),
            click.option(
                "--seed",
                type=click.IntRange(min=0),
                metavar="N",
                help="synthetic: random seed.  [default: that of its manifest, else 0]",
            ),
            click.option(
                "--audio-encoder",
                metavar="ID|DIR",
                help="Hub id[@revision], directory, builtin:tiny-wav2vec2, or none.",
            ),
            click.option(
                "--text-encoder",
                metavar="ID|DIR",
                help="Hub id[@revision], directory, builtin:tiny-roberta, or none.",
            ),
            click.option(
                "--audio-layer",
                metavar="last|N|mean:A-B|stack:A-B[:S]",
                help="Which hidden states are kept.  [default: the corpus's with the corpus's "
                "encoder, else last]",
            ),
            click.option(
                "--text-layer",
                metavar="last|N|mean:A-B|stack:A-B[:S]",
                help="Likewise, of the text encoder.",
            ),
            click.option(
                "--vision-encoder",
                metavar="ID|DIR",
                help="Hub id[@revision], directory, builtin:tiny-vit, or none, as it is unasked.",
            ),
            setting(
                "--vision-layer",
                default="last",
                metavar="last|N|mean:A-B|stack:A-B[:S]",
                help="Likewise, of the vision encoder.",
            ),
            setting(
                "--vision-fps",
                type=float,
                default=4.0,
                metavar="N",
                help="Pictures a second, at the middle of each interval.",
            ),
            setting(
                "--vision-pool",
                default="auto",
                type=click.Choice(["auto", "cls", "mean", "pooler"]),
                help="What becomes of a picture; auto: what its encoder was trained for.",
            ),
            setting(
                "--vision-crop",
                default="none",
                type=click.Choice(["none", "centre", "left", "right", "side", "faces"]),
                help="What is seen of a picture; side: the half that the row's tags name.",
            ),
            click.option(
                "--vision-boxes",
                metavar="FILE|DIR",
                help="Where the faces are: a table (id, time, x, y, w, h), or OpenFace's files.",
            ),
            click.option(
                "--vision-faces",
                metavar="FILE",
                help="Find faces with OpenCV's YuNet, whose .onnx file this is; needs mer[faces].",
            ),
            setting(
                "--vision-no-face",
                default="centre",
                type=click.Choice(["centre", "whole", "fail"]),
                help="What is seen of a picture without a face.",
            ),
            click.option(
                "--layer-means/--no-layer-means",
                default=None,
                help="Keep the mean of every layer over each utterance, too.  [default: keep them]",
            ),
            setting(
                "--pool",
                type=int,
                default=1,
                metavar="K",
                help="Keep means over K audio frames.",
            ),
            setting(
                "--channel",
                default="auto",
                metavar="auto|centre|mix|N",
                help="Channel of multi-channel audio.",
            ),
            setting(
                "--audio-track",
                default="auto",
                metavar="auto|N",
                help="Audio track; auto: the default one, else the first.",
            ),
            click.option(
                "--audio-window",
                metavar="full|clip",
                help="Whisper: compute the whole 30 s window, or the clip alone.  "
                "[default: the full window]",
            ),
            setting(
                "--max-seconds",
                type=float,
                default=60.0,
                metavar="S",
                help="Longer clips are cut; 0: never.",
            ),
            setting(
                "--text-windows",
                default="cut",
                type=click.Choice(["cut", "windows"]),
                help="Transcripts longer than the encoder takes: cut at their end, or encoded in "
                "overlapping windows.",
            ),
            setting(
                "--dtype",
                default="float16",
                type=click.Choice(["float16", "float32"]),
                help="As stored.",
            ),
            setting(
                "--precision",
                default="auto",
                type=click.Choice(["auto", "fp32", "bf16", "fp16"]),
                help="How they are computed; auto: fp32 on the CPU, fp16 on a GPU.",
            ),
            click.option("--offline", is_flag=True, help="Never touch a network."),
        ]
    ):
        command = option(command)
    return command


def find_manifest(
    dataset: str | None,
    manifest_file: Path | None,
    root: Path | None,
    labels: str | None,
    **generated: int | None,
):
    """(manifest, its file): the named file, or the corpus's own, which is prepared when it is not
    there yet, or is of another size or seed than the generated corpus that is asked for.
    """
    from mer.pipeline.datasets import OWN
    from mer.pipeline.datasets.prepared import own_manifest
    from mer.pipeline.manifest import Manifest

    asked: dict[str, int] = {name: n for name, n in generated.items() if n is not None}
    given = "give either --dataset NAME or --manifest FILE"
    if manifest_file is not None:
        if dataset is not None:
            raise click.UsageError(given)
        if labels is not None:
            raise click.UsageError(
                "--labels goes with --dataset; a manifest has its labels already"
            )
        if asked:
            raise click.UsageError("--size and --seed go with --dataset synthetic")
        manifest = Manifest.read(manifest_file)
        return (manifest.with_root(root) if root is not None else manifest), manifest_file
    if dataset is None:
        raise click.UsageError(given)
    if asked and dataset != "synthetic":
        raise click.UsageError("--size and --seed go with --dataset synthetic")
    if dataset in OWN:
        raise click.UsageError(
            f"--dataset {dataset} is no corpus, but for what is yours: `mer prepare {dataset}` "
            "makes a manifest of it, then give --manifest FILE"
        )
    return own_manifest(dataset, root, labels, tuple(generated), asked, note)


def budgets(
    seconds: str | None, tokens: str | None, pictures: str | None
) -> dict[str, float | str | None]:
    """--budget-seconds, --budget-tokens and --budget-pictures as numbers, or `auto`."""
    found: dict[str, float | str | None] = {}
    for name, value, kind in (
        ("seconds", seconds, float),
        ("tokens", tokens, int),
        ("pictures", pictures, int),
    ):
        try:
            found[f"budget_{name}"] = value if value in (None, "auto") else kind(value)
        except ValueError:
            raise click.UsageError(
                f"--budget-{name} '{value}' is neither auto nor a number"
            ) from None
    return found


def where_to_run(workers: int | None, scheduler: str | None, shard: str | None, *, lock: bool):
    """--workers, --scheduler or --shard as one value."""
    from mer.pipeline.extraction import Here, Scheduler, Share, Workers

    if sum(way is not None for way in (workers, scheduler, shard)) > 1:
        raise click.UsageError(
            "--workers, --scheduler and --shard are three ways to do the same; give one of them"
        )
    if workers is not None:
        return Workers(workers, lock)
    if scheduler is not None:
        return Scheduler(scheduler, lock)
    if shard is None:
        return Here(lock)
    if not re.fullmatch(r"[1-9]\d{0,5}/[1-9]\d{0,5}", shard):
        raise click.UsageError(f"--shard '{shard}' is not i/n, e.g. 3/8")
    index, count = (int(number) for number in shard.split("/"))
    return Share(index, count, lock)


def extract_options(manifest, offline: bool, **given):
    """ExtractOptions from the command line, with the corpus's encoders where none were named, and
    their layers; parts of the corpus that lack what they ask for are told.
    """
    from mer.pipeline.encoders import MODALITIES
    from mer.pipeline.extraction.coverage import gaps
    from mer.pipeline.extraction.options import ExtractOptions, with_defaults

    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
    asked = {name: value for name, value in given.items() if value is not None}
    options = ExtractOptions(offline=offline, **with_defaults(manifest, asked))
    check_needed(options)
    for line in gaps(manifest, options, [m for m in MODALITIES if f"{m}_encoder" in asked]):
        note(line)
    return options


def check_needed(options) -> None:
    """Raise a UsageError for options of this command line that would change nothing, because there
    is no encoder that they speak of.
    """
    from mer.pipeline.encoders import configured

    context = click.get_current_context()
    errors = []
    for modality in configured(options):
        if modality.wanted:
            continue
        found = []
        for param in context.command.params:
            if param.name in OF_ENCODER[modality.name]:
                if (
                    context.get_parameter_source(param.name)
                    is click.core.ParameterSource.COMMANDLINE
                ):
                    found.append(param.opts[0])
        if found:
            needs = "needs" if len(found) == 1 else "need"
            errors.append(
                f"{' and '.join(found)} {needs} --{modality.name}-encoder, and there is none"
            )
    if errors:
        raise click.UsageError("; ".join(errors))
