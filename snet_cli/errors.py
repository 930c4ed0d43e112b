"""The tree of errors: what can go wrong, and the exit code that scripts rely on.

Every message says what, where and what was expected; the hint says what to do next.
Only `snet_cli.cli.main` catches these. Anything else that escapes is a bug (exit 1).
"""


class SnetError(Exception):
    """Base of every error that a user can cause or mend.

    Parameters
    ----------
    message : str
        What is wrong, where, and what was expected instead.
    hint : str
        What to do next; may be empty.
    """

    exit_code = 1
    code = "internal"

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


class UsageError(SnetError):
    """Wrong usage or configuration, a missing configuration file included."""

    exit_code = 2
    code = "usage"


class DataError(SnetError):
    """A data file that is missing, unreadable, damaged, hostile, foreign or senseless."""

    exit_code = 3
    code = "data"


class CheckpointError(SnetError):
    """A checkpoint that is missing, damaged, of a newer format, no checkpoint, or that does not fit the data."""

    exit_code = 4
    code = "checkpoint"


class OutputError(SnetError):
    """An output that cannot be written; what stood there before is intact."""

    exit_code = 5
    code = "output"


class NumericalError(SnetError):
    """Numbers that are not finite, or a forecast of which every trajectory diverged."""

    exit_code = 6
    code = "numerical"


class RequirementError(SnetError):
    """A `--require` bound that is not met."""

    exit_code = 7
    code = "requirement"


class ProcessLostError(SnetError):
    """Another process of the same task has ended or does not answer: this one was stopped by it, as by a SIGTERM."""

    exit_code = 143
    code = "process-lost"
