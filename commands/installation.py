"""This installation: doctor, version, help."""

from __future__ import annotations

import sys
from importlib import metadata

import click

from mer.commands.group import command
from mer.commands.output import put, say, say_json

PACKAGES = ("torch", "torchaudio", "transformers", "numpy", "h5py", "pyarrow", "click")


@command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object per finding.")
def doctor(as_json: bool):
    """What works on this machine: versions, GPU, kernels, decoders, encoders found; and what to do
    about the rest.
    """
    from mer.pipeline.doctor import examine

    def kernels() -> str:
        from mer.fusion.ops.toolchain import launcher_obstacle  # imports torch, as its room does

        return launcher_obstacle()

    bad = False
    for finding in examine(kernels):
        bad |= finding.state == "bad"
        if as_json:
            say_json({"state": finding.state, "what": finding.what, "detail": finding.detail})
        else:
            say(f"{finding.state:5} {finding.what:12} {finding.detail}")
    sys.exit(1 if bad else 0)


@command("version")
def version_():
    """The version of mer, and of what it stands on."""
    for line in versions():
        say(line)


def versions() -> list[str]:
    """mer, Python and the packages that decide figures, a line each; nothing is imported."""
    import platform

    lines = [f"mer {metadata.version('mer')}", f"Python {platform.python_version()}"]
    for name in PACKAGES:
        try:
            lines.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            lines.append(f"{name} is not installed")
    return lines


@command("help")
@click.argument("name", metavar="[COMMAND]", required=False)
@click.pass_context
def help_(ctx: click.Context, name: str | None):
    """What mer does, or what one command does and takes."""
    top = ctx.find_root()
    main = top.command
    assert isinstance(main, click.Group)
    if name is None:
        put(main.get_help(top))
        return
    if name not in main.commands:
        raise click.exceptions.NoSuchCommand(name, possibilities=main.commands, ctx=top)
    found = main.commands[name]
    with click.Context(found, parent=top, info_name=name) as inner:
        put(found.get_help(inner))
