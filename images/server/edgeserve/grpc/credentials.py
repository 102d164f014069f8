"""TLS and mutual TLS for gRPC, with the certificates that HTTP has; and what a call shows of who makes it.

grpcio asks clients for certificates always or never. Where HTTP takes a certificate or a key, gRPC takes keys only.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterable, Mapping
from typing import Final

import grpc

from edgeserve.access.tls import Certificates, Clients, certified_name
from edgeserve.access.watched import Watched

# gRPC's names of what `ssl` calls so.
_ALTERNATIVES: Final = {"URI": "peer_uri", "DNS": "peer_dns", "email": "peer_email"}


def make_credentials(tls: Watched[Certificates]) -> grpc.ServerCredentials:
    """Make the credentials of a server; each handshake takes the certificates of its moment."""
    given = tls.value

    def changed() -> grpc.ServerCertificateConfiguration | None:
        # Called in gRPC's own threads; two at once would at worst make the same configuration twice.
        nonlocal given
        if tls.value is given:
            return None
        given = tls.value
        return _configuration(given)

    is_mutual = given.clients is Clients.REQUIRED
    return grpc.dynamic_ssl_server_credentials(_configuration(given), changed, is_mutual)  # type: ignore[arg-type]


def _configuration(certificates: Certificates) -> grpc.ServerCertificateConfiguration:
    is_mutual = certificates.clients is Clients.REQUIRED
    return grpc.ssl_server_certificate_configuration(
        [(certificates.key, certificates.chain)], certificates.client_ca if is_mutual else None
    )


def certified_by(properties: Mapping[str, Iterable[bytes]]) -> str | None:
    """Name the holder of the certificate of a connection, as HTTP does.

    Args:
        properties: `auth_context` of a call on it.

    Returns:
        See `certified_name`.
    """
    pem = next(iter(properties.get("x509_pem_cert", ())), b"")
    if not pem:
        return None
    names = [name.decode("utf-8", "replace") for name in properties.get("x509_common_name", ())]
    alternatives = [
        (kind, name.decode("utf-8", "replace"))
        for kind, key in _ALTERNATIVES.items()
        for name in properties.get(key, ())
    ]
    certificate = {
        "subject": tuple((("commonName", name),) for name in names),
        "subjectAltName": tuple(alternatives),
        "serialNumber": _serial_number(ssl.PEM_cert_to_DER_cert(pem.decode("ascii"))),
    }
    return certified_name(certificate)


def _serial_number(der: bytes) -> str:
    """Read the serial number of a certificate, in OpenSSL's spelling (RFC 5280, 4.1: the first integer of the inner sequence)."""
    content, _ = _enter(der, _enter(der, 0)[0])
    if der[content] == 0xA0:  # the version, where it is not 1
        content = _enter(der, content)[1]
    begin, end = _enter(der, content)
    return (der[begin:end].lstrip(b"\0") or b"\0").hex().upper()


def _enter(der: bytes, offset: int) -> tuple[int, int]:
    """Return where the content of the value at an offset begins and ends (X.690, 8.1)."""
    length, begin = der[offset + 1], offset + 2
    if length >= 0x80:
        size = length & 0x7F
        length, begin = int.from_bytes(der[begin : begin + size], "big"), begin + size
    return begin, begin + length
