"""Every failure as one line with the right exit status (docs/cli.md)."""

from __future__ import annotations

import errno
import os
import re
import sys
from contextlib import suppress

import click

from mer.commands.hints import messages
from mer.commands.output import note, say
from mer.pipeline.errors import MerError, SeveralErrors
from mer.pipeline.runtime.signals import Terminated
from mer.pipeline.runtime.terminal import one_line, shown


def on_sigterm(signum, frame):
    """End as an interruption does: what is held is let go."""
    raise Terminated


def fail_on(call):
    """Run `call`; a MerError, an interruption or a full disk ends the process with one line and its
    status.
    """
    try:
        return call()
    except SeveralErrors as error:
        for one in error.errors[:-1]:
            note("mer: " + one_line(said_by(one)))
        stop(said_by(error.errors[-1]), error.exit_code)
    except MerError as error:
        stop(str(error), error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        stop("interrupted; the same command goes on from here", 130)
    except Terminated:
        stop("terminated; the same command goes on from here", 143)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        where = f"{shown(error.filename, 255)}: " if error.filename else ""
        remedy = {
            errno.ENOSPC: "; free some space and run the same command again",
            errno.EDQUOT: "; free some space of yours and run the same command again",
            errno.EACCES: "; check its permissions",
            errno.EROFS: "; name a place that can be written with --out, or work on a copy",
            errno.EISDIR: "; name a file",
            **dict.fromkeys(
                (errno.EEXIST, errno.ENOTDIR),
                "; a file is where a folder is needed: name another place",
            ),
            errno.ENAMETOOLONG: "; choose a shorter name",
            errno.EFBIG: "; raise the limit on the size of files (ulimit -f), or write elsewhere",
        }
        stop(
            f"{where}{unbroken(str(error.strerror or error))}{remedy.get(error.errno or 0, '')}", 1
        )
    except click.exceptions.NoArgsIsHelpError:
        raise
    except click.ClickException as error:
        asked = getattr(error, "ctx", None)
        *others, last = map(unbroken, messages(error))
        for message in others:
            note("mer: " + one_line(message))
        stop(last + (f" (see `{asked.command_path} --help`)" if asked else ""), error.exit_code)
    except (click.exceptions.Exit, SystemExit):
        raise
    # the last net: a traceback is a bug of ours, and the user still gets one line
    except Exception as error:
        if os.environ.get("MER_DEBUG"):
            raise
        stop(
            f"internal error: {type(error).__name__}: {unbroken(str(error))}; set MER_DEBUG=1 for "
            "the traceback, and please report it",
            1,
        )


def said_by(error: Exception) -> str:
    """The line of a failure."""
    if isinstance(error, click.ClickException):
        return unbroken(" ".join(messages(error)))
    return str(error)


def stop(message: str, code: int):
    with suppress(OSError):  # standard error may lead to a file on a full disk
        say("mer: " + one_line(message), err=True)
    sys.exit(code)


def unbroken(message: str) -> str:
    """A library's message without its line breaks."""
    return re.sub(r"\s*[\r\n]\s*", " ", message.strip())
