"""What the command line prints as one line: where, what, remedy.

Anything else that escapes is a bug of ours.
"""

from __future__ import annotations


class MerError(Exception):
    """A failure the user can act on. `exit_code` is the process's exit status (docs/cli.md)."""

    exit_code = 1


class DataError(MerError):
    """Unusable input: a corpus, table, manifest, media file, option value or preset."""


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
