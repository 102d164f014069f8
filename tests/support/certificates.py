"""Certificates for tests of TLS: an authority, and what it signs, good and bad."""

import datetime as dt
import ipaddress
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_SIGNING = x509.KeyUsage(
    key_cert_sign=True, crl_sign=True, digital_signature=False, content_commitment=False, key_encipherment=False,
    data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
)  # fmt: skip
_DAY = dt.timedelta(days=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """A certificate and its key, PEM."""

    certificate: bytes
    key: bytes

    def write(self, folder: Path, certificate: str = "tls.crt", key: str = "tls.key") -> None:
        """Write both files, each moved into place."""
        for name, data in ((key, self.key), (certificate, self.certificate)):
            new = folder / f".{name}.new"
            new.write_bytes(data)
            new.rename(folder / name)


class Authority:
    """Signs certificates."""

    def __init__(self, name: str = "Test CA") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        now = dt.datetime.now(dt.UTC)
        self._certificate = (
            x509.CertificateBuilder(
                self._name, self._name, self._key.public_key(), x509.random_serial_number()
            )
            .not_valid_before(now - _DAY)
            .not_valid_after(now + 30 * _DAY)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(_SIGNING, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )

    @property
    def certificate(self) -> bytes:
        """The authority's own certificate, PEM."""
        return self._certificate.public_bytes(serialization.Encoding.PEM)

    def issue(
        self,
        name: str | None,
        *,
        alternatives: Sequence[x509.GeneralName] = (),
        is_server: bool = False,
        is_expired: bool = False,
    ) -> Issued:
        """Sign a certificate for a new key.

        Args:
            name: Common name of the subject; None for a subject without names.
            alternatives: Subject alternative names; a server's are the loopback addresses besides.
            is_server: Whether it is for a server and not for a client.
            is_expired: Whether it was valid until yesterday.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([] if name is None else [x509.NameAttribute(NameOID.COMMON_NAME, name)])
        usage = ExtendedKeyUsageOID.SERVER_AUTH if is_server else ExtendedKeyUsageOID.CLIENT_AUTH
        names = list(alternatives)
        if is_server:
            names += [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        now = dt.datetime.now(dt.UTC)
        builder = (
            x509.CertificateBuilder(self._name, subject, key.public_key(), x509.random_serial_number())
            .not_valid_before(now - 10 * _DAY)
            .not_valid_after(now - _DAY if is_expired else now + 10 * _DAY)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False
            )
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return Issued(
            certificate=builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM),
            key=key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            ),
        )


def client_context(
    authority: Authority, folder: Path, shown: Issued | None = None, *, version: ssl.TLSVersion | None = None
) -> ssl.SSLContext:
    """Make what a client needs to trust a server of the authority.

    Args:
        authority: Who signed the server's certificate.
        folder: Where the files of `shown` may be written for a moment.
        shown: The client's own certificate.
        version: The only version to speak.
    """
    context = ssl.create_default_context(cadata=authority.certificate.decode())
    # As Python 3.13 does by itself.
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    if version is not None:
        context.minimum_version = context.maximum_version = version
    if shown is not None:
        shown.write(folder, "client.crt", "client.key")
        context.load_cert_chain(folder / "client.crt", folder / "client.key")
    return context
