"""Who counts as one client."""

import pytest

from edgeserve.clients import ANONYMOUS, Client, network_of


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
    ],
)
def test_networks(address: str, network: str) -> None:
    assert network_of(address) == network


def test_a_name_counts_wherever_it_comes_from() -> None:
    assert Client(name="key:a", address="192.0.2.1").account == Client(name="key:a").account == "key:a"


def test_strangers_are_told_apart_by_where_they_come_from() -> None:
    one, other = (Client(name=ANONYMOUS.name, address=address) for address in ("192.0.2.1", "192.0.2.2"))
    assert one.account != other.account
    assert one.account == Client(name=ANONYMOUS.name, address="::ffff:192.0.2.1").account
