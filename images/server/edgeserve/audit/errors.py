"""What can go wrong with the audit log."""


class AuditError(Exception):
    """The log cannot be written or continued; the message says why on one line."""
