"""The Debian archive that this machine's apt is configured with: where it is, and how bytes come from it."""

import hashlib
import os
import ssl
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.client import HTTPResponse
from pathlib import Path

from tests.support.peers.errors import PeerUnavailableError

_CHUNK_BYTES = 1 << 20
_TIMEOUT_S = 60
_ATTEMPTS = 3
_SYSTEM_CA_FILE = Path("/etc/ssl/certs/ca-certificates.crt")
_NOT_MAIN = ("-security", "-updates", "-backports", "-proposed-updates")


def archive_root() -> str:
    """Find the root of the Debian main archive, without a trailing slash.

    `EDGEBUILD_TEST_MIRROR` wins; otherwise apt's own sources say it, by the first archive that is Debian's and not
    its security or updates part.

    Raises:
        PeerUnavailableError: There is no apt, or none of its sources is a Debian archive over HTTP.
    """
    given = os.environ.get("EDGEBUILD_TEST_MIRROR")
    if given:
        return given.rstrip("/")
    fields = "$(REPO_URI)\t$(RELEASE)\t$(ORIGIN)\t$(COMPONENT)"
    try:
        listing = subprocess.run(
            ["apt-get", "indextargets", "--format", fields, "Created-By: Packages"],
            check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip
    except (OSError, subprocess.CalledProcessError) as error:
        raise PeerUnavailableError(
            f"cannot read apt's sources ({error}); set EDGEBUILD_TEST_MIRROR"
        ) from error
    for line in listing.splitlines():
        uri, release, origin, component = line.split("\t")
        is_debian = origin == "Debian" or (not origin and uri.rstrip("/").endswith("/debian"))
        if is_debian and component == "main" and not release.endswith(_NOT_MAIN) and uri.startswith("http"):
            return uri.rstrip("/")
    raise PeerUnavailableError("apt has no Debian main archive over HTTP; set EDGEBUILD_TEST_MIRROR to one")


def download(url: str, target: Path, *, sha256: str, size_bytes: int) -> None:
    """Download one file, checking length and hash while it streams; an interrupted transfer is tried again.

    Raises:
        FileNotFoundError: The mirror does not have it (404 or 410).
        PeerUnavailableError: It cannot be had, or has another length or hash.
    """
    last: Exception | None = None
    for _ in range(_ATTEMPTS):
        try:
            _download_once(url, target, sha256=sha256, size_bytes=size_bytes)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code in {404, 410}:
                raise FileNotFoundError(url) from error
            last = error
        except (OSError, EOFError) as error:
            last = error
        else:
            return
    raise PeerUnavailableError(f"cannot download {url}: {last}") from last


def _download_once(url: str, target: Path, *, sha256: str, size_bytes: int) -> None:
    digest = hashlib.sha256()
    received = 0
    with _open(url) as response, target.open("wb") as file:
        while chunk := response.read(_CHUNK_BYTES):
            received += len(chunk)
            if received > size_bytes:
                raise PeerUnavailableError(f"{url} is longer than the pinned {size_bytes} bytes")
            digest.update(chunk)
            file.write(chunk)
    if received < size_bytes:
        raise EOFError(f"ended after {received} of {size_bytes} bytes")
    if digest.hexdigest() != sha256:
        raise PeerUnavailableError(f"{url} has sha256 {digest.hexdigest()}, pinned is {sha256}")


def _open(url: str) -> HTTPResponse:
    context = ssl.create_default_context()
    if _SYSTEM_CA_FILE.exists():
        context.load_verify_locations(_SYSTEM_CA_FILE)
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({**urllib.request.getproxies(), **dict(_apt_proxies())}),
        urllib.request.HTTPSHandler(context=context),
    )
    response: HTTPResponse = opener.open(url, timeout=_TIMEOUT_S)
    return response


def _apt_proxies() -> Iterator[tuple[str, str]]:
    """Yield the proxies of apt's configuration: a machine may reach its mirror through one that only apt knows."""
    asked = ("HTTP", "Acquire::http::Proxy", "HTTPS", "Acquire::https::Proxy")
    answer = subprocess.run(
        ["apt-config", "shell", *asked], check=False, capture_output=True, text=True
    ).stdout
    for line in answer.splitlines():
        name, _, value = line.partition("=")
        if (proxy := value.strip("'\"")) and proxy != "DIRECT":
            yield name.lower(), proxy
