"""TLS and mutual TLS: one folder of files, read as a whole, for every interface.

    tls.crt   certificate of the server, then the intermediates, PEM
    tls.key   its private key, PEM, not encrypted
    ca.crt    optional: whose certificates clients must show, PEM; makes TLS mutual

The names are those of a Kubernetes secret of type kubernetes.io/tls and of cert-manager. The lowest version is TLS 1.2 unless
1.3 is asked for: industrial clients of years ago still have no other. In 1.2, only ECDHE with AES-GCM or ChaCha20.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Final

from edgeserve.access.watched import AccessError, read_file

CHAIN: Final = "tls.crt"
KEY: Final = "tls.key"
CLIENT_CA: Final = "ca.crt"
_LONGEST_BYTES: Final = 1 << 20
_CIPHERS_1_2: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"
_VERSIONS: Final = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
# OpenSSL keeps up to 20480 sessions of clients that speak 1.2 without tickets, 1 to 5 kB each, and Python cannot tell it not to.
_MOST_SESSIONS: Final = 256
_LONGEST_NAME: Final = 128


class Clients(Enum):
    """Whether clients show certificates in the handshake."""

    NONE = "off"
    OPTIONAL = "optional"
    REQUIRED = "required"


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificates:
    """One reading of the folder; `chain`, `key` and `client_ca` are its files' bytes, for libraries that take no context."""

    context: ssl.SSLContext
    chain: bytes
    key: bytes = field(repr=False)
    client_ca: bytes | None
    clients: Clients
    minimum: str

    @property
    def is_worn(self) -> bool:
        """Whether the context has gathered so many sessions that a new one should take its place."""
        return self.context.session_stats()["number"] > _MOST_SESSIONS


def tls_paths(folder: str) -> tuple[str, str, str]:
    """Return the paths of chain, key and client CA."""
    chain, key, client_ca = (str(Path(folder, name)) for name in (CHAIN, KEY, CLIENT_CA))
    return chain, key, client_ca


def load_certificates(folder: str, *, minimum: str, clients: Clients) -> Certificates:
    """Read the folder.

    Args:
        folder: Where the files are.
        minimum: Lowest version, "1.2" or "1.3".
        clients: What is asked of clients; with NONE, ca.crt is not read.

    Raises:
        AccessError: A file is missing or wrong, or certificate and key do not belong together.
    """
    chain, key, client_ca = tls_paths(folder)
    certificates = Certificates(
        context=ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER),
        chain=read_file(chain, longest_bytes=_LONGEST_BYTES),
        key=read_file(key, longest_bytes=_LONGEST_BYTES),
        client_ca=None if clients is Clients.NONE else read_file(client_ca, longest_bytes=_LONGEST_BYTES),
        clients=clients,
        minimum=minimum,
    )
    context = certificates.context
    context.minimum_version = _VERSIONS[minimum]
    context.set_ciphers(_CIPHERS_1_2)
    context.set_alpn_protocols(["http/1.1"])
    context.options |= ssl.OP_NO_RENEGOTIATION
    if b"ENCRYPTED" in certificates.key:
        raise AccessError(f"{key}: is encrypted, and nobody is there to type its password")
    try:
        context.load_cert_chain(chain, key)
    except (ssl.SSLError, OSError) as error:
        raise AccessError(_chain_problem(chain, key, error)) from error
    if clients is not Clients.NONE:
        _trust(context, client_ca, is_required=clients is Clients.REQUIRED)
    return certificates


def _chain_problem(chain: str, key: str, error: OSError) -> str:
    reason = getattr(error, "reason", None)
    if reason == "KEY_VALUES_MISMATCH":
        return f"{key}: is not the key of the certificate in {chain}"
    if reason in {"EE_KEY_TOO_SMALL", "CA_MD_TOO_WEAK", "CA_KEY_TOO_SMALL"}:
        return f"{chain}: too weak to be used: {reason}"
    return f"{chain}, {key}: not a certificate and its private key in PEM: {reason or 'nothing found'}"


def _trust(context: ssl.SSLContext, path: str, *, is_required: bool) -> None:
    try:
        context.load_verify_locations(path)
    except (ssl.SSLError, OSError) as error:
        problem = getattr(error, "reason", None) or "nothing found"
        raise AccessError(f"{path}: not certificates in PEM: {problem}") from error
    # What stands in ca.crt is trusted by itself, an intermediate or one client's own certificate too.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.verify_mode = ssl.CERT_REQUIRED if is_required else ssl.CERT_OPTIONAL
    # A resumed session would outlive the certificate that it was opened with.
    context.num_tickets = 0
    context.options |= ssl.OP_NO_TICKET


def certified_name(certificate: Mapping[str, Any] | None) -> str | None:
    """Name the holder of a verified certificate.

    Args:
        certificate: As `ssl.SSLSocket.getpeercert` gives it; None or empty without one.

    Returns:
        The common name of the subject, else the first URI, DNS name or mail address, else the serial number.
    """
    if not certificate:
        return None
    common = [
        value
        for part in certificate.get("subject", ())
        for kind, value in part
        if kind == "commonName" and value
    ]
    others = dict(reversed(certificate.get("subjectAltName", ())))
    names = [*common, *(others[kind] for kind in ("URI", "DNS", "email") if kind in others)]
    return _printable(names[0]) if names else f"serial {certificate.get('serialNumber', 'unknown')}"


def _printable(text: str) -> str:
    """Keep what a certificate says from breaking lines and labels."""
    return "".join(letter if letter.isprintable() else "?" for letter in text[:_LONGEST_NAME])
