"""The one error that verification raises."""


class VerificationError(Exception):
    """Something does not verify.

    Attributes:
        message: What does not verify and why, on one line, safe to print on a terminal.
        reasons: Where several candidates were tried, what was wrong with each, one line each.
    """

    def __init__(self, message: str, *, reasons: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.reasons = reasons


def shown(value: object) -> str:
    """Show a value that a stranger wrote: short, quoted, no control characters and no half surrogate pairs."""
    text = ascii(value)
    return text if len(text) <= 120 else f"{text[:100]}… ({len(text)} characters)"
