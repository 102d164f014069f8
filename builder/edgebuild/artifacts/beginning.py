"""The beginning of a file that lies elsewhere, without the rest: for who wants its header alone.

A part is asked for (RFC 9110, 14.2, Range). A server that sends the whole file instead is listened to as long as
something is wanted, and then left.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import httpx2

from edgebuild.artifacts.download import Wanted, download_failure, refuse
from edgebuild.artifacts.files import size_so_far
from edgebuild.artifacts.tries import USUAL, GaveUpError, Patience, Tries, TryAgainError
from edgebuild.network import FURTHER_BYTES, Stop, make_client
from edgebuild.pieces import starts_at

_TOTAL = re.compile(r"bytes [0-9]+-[0-9]+/([0-9]+)")


def fetch_beginning(
    wanted: Wanted,
    into: Path,
    *,
    upto: int,
    environment: Mapping[str, str],
    patience: Patience = USUAL,
) -> int | None:
    """Append to a file what it lacks of another's beginning.

    Args:
        wanted: The file; its digest is of no use here, since nobody reads all of it.
        into: Holds as much of it as is there; need not exist.
        upto: Bytes that it shall hold, or the whole file where that is shorter.
        environment: For proxies and certificates.
        patience: How long it is tried.

    Returns:
        Size of the whole file in bytes; None where the server does not tell.

    Raises:
        ToolError: It cannot be had.
    """
    tries = Tries(patience, Stop())
    while True:
        before_bytes = size_so_far(into)
        try:
            with make_client(environment, idle_s=patience.idle_s) as client:
                return _fetch(client, wanted, into, upto=upto)
        except (httpx2.TooManyRedirects, httpx2.UnsupportedProtocol, httpx2.InvalidURL) as error:
            raise download_failure(wanted, str(error), hint=wanted.hints.refused) from error
        except (httpx2.TransportError, TryAgainError) as error:
            if size_so_far(into) >= before_bytes + FURTHER_BYTES:
                tries.progressed()
            try:
                tries.wait(error)
            except GaveUpError as end:
                raise download_failure(wanted, str(end), hint=wanted.hints.away) from error


def _fetch(client: httpx2.Client, wanted: Wanted, into: Path, *, upto: int) -> int | None:
    have = size_so_far(into)
    headers = {**wanted.headers, "Accept-Encoding": "identity", "Range": f"bytes={have}-{upto - 1}"}
    with client.stream("GET", wanted.url, headers=headers) as response, into.open("ab") as file:
        if response.status_code not in {200, 206}:
            refuse(wanted, response)
        if response.status_code == 206 and not starts_at(response, have):
            raise TryAgainError("another part of the file came than was asked for")
        total = _total(response) or wanted.size_bytes or None
        skip = have if response.status_code == 200 else 0
        for chunk in response.iter_raw():
            piece = chunk[skip:]
            skip = max(0, skip - len(chunk))
            file.write(piece[: upto - have])
            have += len(piece)
            if have >= upto:
                return total
    if total is not None and have < min(upto, total):
        raise TryAgainError(f"the connection ended after {have} of {min(upto, total)} bytes")
    return total if total is not None else have


def _total(response: httpx2.Response) -> int:
    if response.status_code == 206:
        found = _TOTAL.match(response.headers.get("content-range", ""))
        return int(found[1]) if found else 0
    text = response.headers.get("content-length", "")
    return int(text) if text.isdecimal() else 0
