"""What all commands share: working order, groups and examples in the help, completion of names,
hints for what is mistyped, and all problems of a command line at once.

cli.py holds the commands themselves.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import click
from click.shell_completion import CompletionItem

from mer.pipeline.runtime.terminal import did_you_mean, initials

# title -> commands in the order in which they are used. A command that is in none is listed last.
GROUPS = {
    "Corpora": ("datasets", "prepare"),
    "Features": ("extract", "fingerprint", "join"),
    "Stores": ("inspect", "verify", "export", "import"),
    "Training": ("train", "tune", "evaluate", "compare", "layers", "report"),
    "Runs": ("runs", "prune"),
    "New clips": ("predict",),
    "This installation": ("doctor", "version", "help"),
}
OTHERS = "Others"
EXAMPLES = {
    "datasets": "mer datasets meld",
    "prepare": "mer prepare meld --root /data/MELD.Raw",
    "extract": "mer extract --dataset synthetic --out feats.h5",
    "fingerprint": "mer fingerprint --dataset synthetic --out feats.h5",
    "join": "mer join speech.h5 faces.h5 --out both.h5",
    "inspect": "mer inspect feats.h5",
    "verify": "mer verify feats.h5 --repair",
    "export": "mer export feats.h5 feats.parquet --to parquet",
    "import": "mer import npz features.npz --out feats.h5",
    "train": "mer train feats.h5 --model concat --seeds 5",
    "tune": "mer tune feats.h5 --model concat --model drkf --trials 20",
    "evaluate": "mer evaluate runs/meld-drkf-1 --split dev",
    "compare": "mer compare runs/meld-concat-1 runs/meld-drkf-1",
    "layers": "mer layers feats.h5",
    "report": "mer report runs/* --out report.html",
    "runs": "mer runs --sort dev --limit 5",
    "prune": "mer prune runs/* --dry-run",
    "predict": 'mer predict runs/meld-drkf-1 --audio clip.wav --text "Hi."',
    "doctor": "mer doctor",
    "version": "mer version",
    "help": "mer help train",
}
PACKAGES = ("torch", "torchaudio", "transformers", "numpy", "h5py", "pyarrow", "click")
UNKNOWN_OPTIONS = 20  # of one command line that are told at once
SHORT_HELP = 300  # characters of a command's first sentence, which no sentence of ours reaches
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


class SeveralUsageErrors(click.UsageError):
    """Several mistakes in one command line, each with a message of its own."""

    def __init__(self, errors: list[click.UsageError], ctx: click.Context):
        self.errors = errors
        super().__init__("; ".join(error.format_message() for error in errors), ctx)


class Command(click.Command):
    """A command whose help ends with an example, and whose mistakes are told all at once."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_epilog(ctx, formatter)
        if self.name in EXAMPLES:
            with formatter.section("Example"):
                formatter.write_text(EXAMPLES[self.name])

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        given = list(args)
        try:
            return super().parse_args(ctx, args)
        except click.exceptions.NoArgsIsHelpError:
            raise
        except click.UsageError as first:
            errors = self._mistakes(ctx, given)
            if len(errors) < 2:
                raise first
            raise SeveralUsageErrors(errors, ctx) from None

    def _mistakes(self, ctx: click.Context, args: list[str]) -> list[click.UsageError]:
        """Everything that is wrong with a command line: unknown options, then every parameter, then
        words that are too many (behind an unknown option they are perhaps its value).
        """
        errors: list[click.UsageError] = []
        while True:
            try:
                values, rest, _ = self.make_parser(ctx).parse_args(args=list(args))
                break
            except click.NoSuchOption as error:
                errors.append(error)
                known = error.option_name
                args = [word for word in args if word.partition("=")[0] != known]
                if len(errors) > UNKNOWN_OPTIONS:
                    return errors
            except click.UsageError as error:
                return [*errors, error]
        unknown = len(errors)
        for param in self.get_params(ctx):
            try:
                if not param.is_eager:
                    param.handle_parse_result(ctx, values, [])
            except click.UsageError as error:
                errors.append(error)
        if rest and not unknown:
            words = " ".join(rest)
            errors.append(click.UsageError(f"Got unexpected extra arguments ({words})", ctx))
        return errors


class Group(click.Group):
    """Commands in working order, in groups with an example each."""

    command_class = Command

    def list_commands(self, ctx: click.Context) -> list[str]:
        there = [name for names in GROUPS.values() for name in names if name in self.commands]
        return there + sorted(set(self.commands) - set(there))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        names = self.list_commands(ctx)
        grouped = {name for group in GROUPS.values() for name in group}
        others = tuple(name for name in names if name not in grouped)
        width = max(map(len, names))
        for title, group in {**GROUPS, OTHERS: others}.items():
            there = [name for name in group if name in self.commands]
            rows = []
            for name in there:
                short = self.commands[name].get_short_help_str(SHORT_HELP)
                rows.append((name.ljust(width), short))
            examples = [EXAMPLES[name] for name in there if name in EXAMPLES]
            if rows:
                rows += [("".ljust(width), f"$ {example}") for example in examples[:1]]
                with formatter.section(title):
                    formatter.write_dl(rows)


# ---- Hints


def messages(error: click.ClickException) -> list[str]:
    """What is wrong, a message for each mistake, with a guess at what was meant."""
    errors = error.errors if isinstance(error, SeveralUsageErrors) else [error]
    return [_message(one) for one in errors]


def _message(error: click.ClickException) -> str:
    """The message of one mistake. Where click has no guess, or a worse one, there is ours."""
    if isinstance(error, click.NoSuchOption) and error.ctx is not None:
        guess = _as_setting(error) or ("" if error.possibilities else _as_option(error))
        return f"{error.message} {guess}" if guess else error.format_message()
    if isinstance(error, click.BadParameter) and error.param is not None:
        found = NOT_ONE_OF.match(error.message)
        if isinstance(error.param.type, click.Choice) and found:
            guess = _sentence(did_you_mean(found[1], error.param.type.choices))
            return f"{error.format_message()} {guess}".rstrip()
    if isinstance(error, click.exceptions.NoSuchCommand):
        begin = [name for name in error.possibilities or () if name.startswith(error.command_name)]
        if len(begin) == 1:
            return f"{error.message} Did you mean '{begin[0]}'?"
    if isinstance(error, click.exceptions.NoSuchCommand) and not error.possibilities:
        known = getattr(error.ctx and error.ctx.command, "commands", {})
        return f"{error.message} {_sentence(did_you_mean(error.command_name, known))}".rstrip()
    if isinstance(error, click.UsageError) and error.message.startswith(TOO_MANY) and error.ctx:
        instead = IN_PLACE.get(error.ctx.command.name or "")
        return f"{error.format_message().rstrip('.')}; {instead}" if instead else error.message
    return error.format_message()


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


# ---- Completion


def _begin(names: Iterable[str], incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(name) for name in sorted(names) if name.startswith(incomplete)]


def complete_corpora(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Names of corpora; of `mer prepare` also what is for one's own files. Reads no more than the
    names of files.
    """
    from mer import manifests

    folder = Path(manifests.__file__).parent
    names = {path.stem for path in folder.glob("*.toml")}
    return _begin(
        names | ({"table", "folder", "emobox"} if ctx.command.name == "prepare" else set()),
        incomplete,
    )


def complete_models(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Names of models."""
    from mer.fusion.models import REGISTRY

    return _begin(REGISTRY, incomplete)


def complete_presets(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Names of presets, and files where none begins like that."""
    from mer.fusion.config import presets

    return _begin(presets(), incomplete) or [CompletionItem(incomplete, type="file")]


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


def beside_valence(valence: Path | None, others: object) -> None:
    """Refuse `mer evaluate --valence` beside options of other rows than the test part's."""
    if valence is not None and others:
        raise click.UsageError(
            "--valence is of the test parts that both runs were trained beside; leave out "
            "--ensemble, --robustness, --features, --map and --split"
        )
