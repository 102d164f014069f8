"""The one tree of errors that edgebuild raises on purpose.

A message says what is wrong and where, on one line; the hint says what to do about it. The exit code of the
command line is the kind of the error. Anything else that escapes is a bug and shows its traceback.
"""

from typing import ClassVar


class EdgebuildError(Exception):
    """Root of all errors that a user can cause or mend.

    Attributes:
        message: What is wrong and where, on one line.
        hint: What to do about it, on one line; empty when the message says it all.
        exit_code: Exit code of the command line for this kind.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(EdgebuildError):
    """Options that make no sense, alone or together."""

    exit_code = 2


class ProfileError(EdgebuildError):
    """A profile, lock or project file that cannot be used.

    Attributes:
        faults: Every fault found, one line each, beginning with its place.
    """

    exit_code = 3

    def __init__(self, message: str, *, hint: str = "", faults: tuple[str, ...] = ()) -> None:
        super().__init__(message, hint=hint)
        self.faults = faults


class LockError(ProfileError):
    """A lock file that is missing, broken or does not match what was found."""


class PlanError(EdgebuildError):
    """A model and a device that do not go together."""

    exit_code = 4


class ModelError(PlanError):
    """A model that is missing, broken or of an unknown kind."""


class ToolError(EdgebuildError):
    """A program, download or local resource that failed while building."""

    exit_code = 5


class StoreError(ToolError):
    """The store cannot be read or written, or one of its entries is damaged."""


class ImageError(EdgebuildError):
    """An image or layout that breaks a rule, or does not run."""

    exit_code = 6


class RegistryError(EdgebuildError):
    """A registry that refused, failed or lied."""

    exit_code = 7


class SignatureError(EdgebuildError):
    """A key or signature that is missing, false or of the wrong kind."""

    exit_code = 8


class DeploymentError(EdgebuildError):
    """Deployment files that cannot be written for this target."""

    exit_code = 9
