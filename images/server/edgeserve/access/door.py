"""The door: which requests come in, and as whose they count.

| Client certificates | Keys | A request needs |
| --- | --- | --- |
| no | no | nothing |
| no | yes | a key |
| yes | no | a certificate, in the handshake already |
| yes | yes | a key or a certificate |

`require_key` and `require_certificate` make that one necessary whatever else is shown. Of two identities the key's counts:
one certificate may stand for a whole device with several applications, each with a key of its own. A wrong key is
refused even beside a good certificate: nobody should find out late that a key does not work.
"""

from __future__ import annotations

from typing import Final

from edgeserve.access.keys import KeyRing
from edgeserve.access.watched import Watched
from edgeserve.clients import ANONYMOUS, Client
from edgeserve.errors import ApiError

_CHALLENGE: Final = 'Bearer realm="edgeserve"'


class Door:
    """Turns credentials into clients, for every interface."""

    def __init__(self, keys: Watched[KeyRing] | None, *, requires_key: bool) -> None:
        """Take the keys.

        Args:
            keys: The keys; None where none are used.
            requires_key: Whether a certificate alone is not enough.
        """
        self._keys = keys
        self.requires_key = requires_key

    def admit(self, *, certified: str | None, authorization: str | None, address: str) -> Client:
        """Say who asks.

        Args:
            certified: Name in the verified certificate of the connection, None without one.
            authorization: Value of the header (HTTP) or metadata (gRPC) of that name.
            address: Where the connection comes from, by which clients without credentials are told apart; without a port.

        Raises:
            ApiError: 401, nothing shown suffices.
        """
        if self._keys is not None and authorization is not None:
            return Client(name=f"key:{self._key_id(self._keys.value, authorization)}", address=address)
        if certified is not None and not self.requires_key:
            return Client(name=f"cert:{certified}", address=address)
        if self._keys is not None:
            raise _refusal("This server needs a key: `Authorization: Bearer KEY`.", "missing_api_key", "")
        return Client(name=ANONYMOUS.name, address=address)

    @staticmethod
    def _key_id(keys: KeyRing, authorization: str) -> str:
        scheme, _, key = authorization.strip().partition(" ")
        client_id = keys.find(key.strip()) if scheme.lower() == "bearer" else None
        if client_id is None:
            # RFC 6750, 3.1: the error attribute only where something was shown.
            raise _refusal("The key is not accepted.", "invalid_api_key", ', error="invalid_token"')
        return client_id


def _refusal(message: str, code: str, attribute: str) -> ApiError:
    return ApiError(401, message, code=code, headers={"www-authenticate": _CHALLENGE + attribute})
