"""Who asks: the identity that limits, metrics and the audit log go by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """One client; `name` is the subject of its certificate or the id of its key, "anonymous" without either."""

    name: str


ANONYMOUS: Final = Client(name="anonymous")
