"""What was meant by what is mistyped: commands, options, settings, choices."""

from __future__ import annotations

import difflib
import re

import click

from mer.commands.group import SeveralUsageErrors
from mer.pipeline.runtime.terminal import did_you_mean, initials

ALIKE = 0.8  # of difflib: beyond that an option and a setting are taken for the same word
TOO_MANY = "Got unexpected extra argument"  # as click begins it
# What a command takes in place of words that it does not.
IN_PLACE = {
    "prepare": "one corpus is prepared at a time; your own files: `mer prepare table --from FILE` "
    "or `mer prepare folder --root DIR --pattern …`",
    "extract": "name the clips with --dataset NAME or --manifest FILE; `mer prepare` makes one of "
    "your own files",
}
IN_PLACE["fingerprint"] = IN_PLACE["extract"]
NOT_ONE_OF = re.compile(r"'(.*)' is not one of", re.DOTALL)


def messages(error: click.ClickException) -> list[str]:
    """What is wrong, a message for each mistake, with a guess at what was meant."""
    errors = error.errors if isinstance(error, SeveralUsageErrors) else [error]
    return [_message(one) for one in errors]


def _message(error: click.ClickException) -> str:
    """The message of one mistake. Where click has no guess, or a worse one, there is ours."""
    ours = ""
    if isinstance(error, click.NoSuchOption):
        ours = _of_an_option(error)
    elif isinstance(error, click.exceptions.NoSuchCommand):
        ours = _of_a_command(error)
    elif isinstance(error, click.BadParameter):
        ours = _of_a_choice(error)
    elif isinstance(error, click.UsageError) and error.message.startswith(TOO_MANY):
        ours = _of_too_many(error)
    return ours or error.format_message()


def _of_an_option(error: click.NoSuchOption) -> str:
    if error.ctx is None:
        return ""
    guess = _as_setting(error) or ("" if error.possibilities else _as_option(error))
    return f"{error.message} {guess}" if guess else ""


def _of_a_command(error: click.exceptions.NoSuchCommand) -> str:
    if error.possibilities:
        begin = [name for name in error.possibilities if name.startswith(error.command_name)]
        return f"{error.message} Did you mean '{begin[0]}'?" if len(begin) == 1 else ""
    known = getattr(error.ctx and error.ctx.command, "commands", {})
    return f"{error.message} {_sentence(did_you_mean(error.command_name, known))}".rstrip()


def _of_a_choice(error: click.BadParameter) -> str:
    found = NOT_ONE_OF.match(error.message)
    if error.param is None or not isinstance(error.param.type, click.Choice) or not found:
        return ""
    guess = _sentence(did_you_mean(found[1], error.param.type.choices))
    return f"{error.format_message()} {guess}".rstrip()


def _of_too_many(error: click.UsageError) -> str:
    """The same, with what takes the place of an argument too many."""
    if error.ctx is None:
        return ""
    instead = IN_PLACE.get(error.ctx.command.name or "")
    return f"{error.format_message().rstrip('.')}; {instead}" if instead else error.message


def _as_setting(error: click.NoSuchOption) -> str:
    """For an option of `mer train` that is a setting: how it is given; else empty."""
    assert error.ctx is not None
    if error.ctx.command.name != "train":
        return ""
    from mer.fusion.config import keys

    word = error.option_name.lstrip("-").replace("-", "_")
    ends = {key.rpartition(".")[2]: key for key in keys()}
    close = difflib.get_close_matches(word, list(ends), n=1, cutoff=ALIKE)
    close += [initials(word)] if initials(word) in ends else []
    return f"It is a setting: --set {ends[close[0]]}=VALUE" if close else ""


def _as_option(error: click.NoSuchOption) -> str:
    """A guess at the option that was meant."""
    assert error.ctx is not None
    known = {name.lstrip("-"): name for p in error.ctx.command.params for name in p.opts}
    found = _quoted(did_you_mean(error.option_name.lstrip("-"), known))
    return f"Did you mean '{known[found]}'?" if found in known else ""


def _quoted(text: str) -> str:
    """What stands between single quotes; empty where nothing does."""
    return text.split("'")[1] if "'" in text else ""


def _sentence(text: str) -> str:
    """` (did you mean 'dev'?)` as a sentence of its own."""
    return f"Did you mean '{_quoted(text)}'?" if text else ""
