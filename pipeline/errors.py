"""What the command line prints as one line: where, what, remedy.

Anything else that escapes is a bug of ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar, cast

T = TypeVar("T")


class MerError(Exception):
    """A failure the user can act on. `exit_code` is the process's exit status (docs/cli.md)."""

    exit_code = 1


class DataError(MerError):
    """Unusable input: a corpus, table, manifest, media file, option value or preset."""


class MissingError(DataError):
    """What was asked for is in no row.

    Attributes:
        found: That, as a phrase.
        clip: How a new clip is given it, e.g. "--video FILE".
        prepared: The option of `mer prepare` that some corpora have for it, e.g. "vision"; "": none
            would help.
    """

    def __init__(self, found: str, remedy: str, *, clip: str = "", prepared: str = ""):
        self.found, self.clip, self.prepared = found, clip, prepared
        super().__init__(f"{found}; {remedy}")


class UnreadableError(DataError):
    """No row can be read. `problems` has the (stage, reason) of each row, `stage` and `reason` are
    those of the first.
    """

    def __init__(self, message: str, problems: Sequence[tuple[str, str]]):
        self.problems = tuple(problems)
        self.stage, self.reason = self.problems[0]
        super().__init__(message)


class EncoderError(MerError):
    """An encoder that cannot be loaded or trusted: files or weights are missing, its self-test
    failed, or it would have to be downloaded with `--offline`.
    """


class DependencyError(MerError):
    """A package is missing or of a version that does not fit."""


class FailuresError(MerError):
    """The run finished, but more clips failed than `--max-failures` allows."""

    exit_code = 3


class KeyMismatchError(MerError):
    """The store at hand was made by another recipe; nothing was mixed or overwritten."""

    exit_code = 4


class StoreError(MerError):
    """A store or shard that is damaged, incomplete or not one of ours."""

    exit_code = 5


class StoreVersionError(StoreError):
    """A store of a format version this mer does not read."""

    exit_code = 1


class SeveralErrors(MerError):
    """Failures that have nothing to do with each other, told together, a line each."""

    def __init__(self, errors: list[Exception]):
        self.errors = errors
        self.exit_code = getattr(errors[0], "exit_code", 1)
        super().__init__("; ".join(map(str, errors)))


class Together:
    """Checks that do not need each other: all of them are made before the first failure is told.

    >>> together = Together()
    >>> together.of(lambda: 1)
    1
    >>> together.settle()
    """

    def __init__(self, *kinds: type[Exception]):
        self.kinds = kinds or (MerError,)
        self.errors: list[Exception] = []

    def of(self, call: Callable[[], T]) -> T:
        """What a check gives. Where it fails nothing does: then `settle` raises."""
        try:
            return call()
        except self.kinds as error:
            self.errors += error.errors if isinstance(error, SeveralErrors) else [error]
            return cast(T, None)

    def add(self, error: Exception) -> None:
        """A failure that was found without a call."""
        self.errors.append(error)

    def settle(self) -> None:
        """Raise what has failed, if anything: the failure itself, or SeveralErrors; what two checks
        say alike is said once.
        """
        errors = list({str(error): error for error in self.errors}.values())
        if len(errors) == 1:
            raise errors[0]
        if errors:
            raise SeveralErrors(errors)
