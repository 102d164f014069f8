"""Who asks: the identity that limits, metrics and the audit log go by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """One client.

    Attributes:
        name: "key:ID", "cert:NAME" or "anonymous", so that no certificate can pass for a key.
        address: Where it connects from; empty where connections have no addresses.
    """

    name: str
    address: str = ""

    @property
    def account(self) -> str:
        """What its requests are counted under: its name, or its address if it has no name of its own."""
        return f"{self.name} {self.address}" if self.name == ANONYMOUS.name else self.name


ANONYMOUS: Final = Client(name="anonymous")
