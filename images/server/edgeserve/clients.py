"""Who asks: the identity that limits, metrics and the audit log go by."""

from __future__ import annotations

import ipaddress
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
        """What its requests are counted under: its name, or its network if it has no name of its own."""
        return f"{self.name} {network_of(self.address)}" if self.name == ANONYMOUS.name else self.name


ANONYMOUS: Final = Client(name="anonymous")


def network_of(address: str) -> str:
    """Return what strangers are counted by: an IPv4 address, or the /64 that one holder of IPv6 addresses has."""
    if not address:
        return ""
    number = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(number, ipaddress.IPv4Address):
        return str(number)
    if number.ipv4_mapped is not None:
        return str(number.ipv4_mapped)
    return str(ipaddress.ip_network((number, 64), strict=False).network_address) + "/64"
