"""The command line: parse, call one function, print.

The commands are in commands/, a file for each group of them, and are loaded when they are asked
for. Heavy imports stay inside the commands, so that `mer --help` does not load torch.
"""

from __future__ import annotations

import io
import os
import signal
import sys

import click

from mer.commands.failures import fail_on, on_sigterm
from mer.commands.group import Group, OnDemand
from mer.commands.options import TYPED
from mer.pipeline.doctor import check_pair


class Mer(Group):
    """Turns every failure into one line and the right exit status (docs/cli.md)."""

    def make_context(self, info_name, args, parent=None, **extra):
        typed = [str(word) for word in args]  # click empties args as it reads them

        def made() -> click.Context:
            context = super(Mer, self).make_context(info_name, args, parent, **extra)
            context.meta[TYPED] = typed
            return context

        return fail_on(made)

    def invoke(self, ctx: click.Context):
        # click empties args before the group's callback
        ctx.obj = bool({"--help", "-h"} & set(ctx.args))
        for name in ("stdout", "stderr"):  # closed by whoever started us: `mer runs >&-`
            if getattr(sys, name) is None:
                setattr(sys, name, open(os.devnull, "w"))
        # a file name that the locale cannot express is no reason to end
        if isinstance(sys.stdout, io.TextIOWrapper):
            utf8 = sys.stdout.encoding.lower().replace("-", "") == "utf8"
            sys.stdout.reconfigure(errors="surrogateescape" if utf8 else "backslashreplace")
        before = signal.signal(signal.SIGTERM, on_sigterm)
        try:
            return fail_on(lambda: super(Mer, self).invoke(ctx))
        finally:
            # a caller in this process, and what it forks, keeps its own
            signal.signal(signal.SIGTERM, before)


@click.group(
    cls=Mer,
    commands=OnDemand(),
    context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "MER"},
)
@click.version_option(package_name="mer", prog_name="mer")
@click.pass_context
def main(ctx: click.Context):
    """Multimodal emotion recognition on cached features: extract once, train fusion models many
    times.
    """
    if ctx.invoked_subcommand not in ("doctor", "help", "version") and not ctx.obj:
        check_pair()


if __name__ == "__main__":
    main()
