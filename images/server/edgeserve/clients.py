"""Who asks: the identity that limits, metrics and the audit log go by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """One client; `name` is "key:ID", "cert:NAME" or "anonymous", so that no certificate can pass for a key."""

    name: str


ANONYMOUS: Final = Client(name="anonymous")
