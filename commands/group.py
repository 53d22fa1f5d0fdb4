"""The commands of `mer` in working order and in groups, each loaded when it is asked for; examples
in their help; all mistakes of a command line at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping
from importlib import import_module

import click

# title -> module of mer.commands -> its commands, in the order in which they are used. A command
# that is in none is listed last.
GROUPS: dict[str, dict[str, tuple[str, ...]]] = {
    "Corpora": {"corpora": ("datasets", "prepare")},
    "Features": {"features": ("extract", "fingerprint", "join")},
    "Stores": {"stores": ("inspect", "verify", "export", "import")},
    "Training": {
        "training": ("train", "tune"),
        "evaluating": ("evaluate", "compare", "layers", "report"),
    },
    "Runs": {"runs": ("runs", "prune")},
    "New clips": {"newclips": ("predict",)},
    "This installation": {"installation": ("doctor", "version", "help")},
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
UNKNOWN_OPTIONS = 20  # of one command line that are told at once
SHORT_HELP = 300  # characters of a command's first sentence, which no sentence of ours reaches


def commands_of(title: str) -> list[str]:
    """The commands under a title of the help, in the order in which they are used."""
    return [name for names in GROUPS[title].values() for name in names]


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


def command(name: str | None = None) -> Callable[[Callable], Command]:
    """Make a function a command, of its own name or another."""
    return click.command(name, cls=Command)


class OnDemand(MutableMapping[str, click.Command]):
    """The commands of GROUPS by name. The module of a command is imported when the command is first
    asked for, so that `mer runs` does not wait for the options of all the others.
    """

    def __init__(self) -> None:
        self._module: dict[str, str] = {}
        for modules in GROUPS.values():
            for module, names in modules.items():
                self._module |= dict.fromkeys(names, module)
        self._loaded: dict[str, click.Command] = {}

    def __getitem__(self, name: str) -> click.Command:
        if name not in self._loaded:
            module = import_module(f"mer.commands.{self._module[name]}")
            there = [one for one in vars(module).values() if isinstance(one, click.Command)]
            self._loaded |= {one.name: one for one in there if one.name is not None}
        return self._loaded[name]

    def __setitem__(self, name: str, made: click.Command) -> None:
        self._module.setdefault(name, "")
        self._loaded[name] = made

    def __delitem__(self, name: str) -> None:
        del self._module[name]
        self._loaded.pop(name, None)

    def __contains__(self, name: object) -> bool:
        return name in self._module

    def __iter__(self) -> Iterator[str]:
        return iter(self._module)

    def __len__(self) -> int:
        return len(self._module)


class Group(click.Group):
    """Commands in working order, in groups with an example each."""

    command_class = Command

    def list_commands(self, ctx: click.Context) -> list[str]:
        listed = [name for title in GROUPS for name in commands_of(title)]
        there = [name for name in listed if name in self.commands]
        return there + sorted(set(self.commands) - set(there))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        names = self.list_commands(ctx)
        groups = {title: commands_of(title) for title in GROUPS}
        listed = {name for group in groups.values() for name in group}
        groups[OTHERS] = [name for name in names if name not in listed]
        width = max(map(len, names))
        for title, group in groups.items():
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
