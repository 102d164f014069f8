"""Digests: the identity of bytes."""

import hashlib
import re
from dataclasses import dataclass
from typing import Self

_HEX = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, order=True)
class Digest:
    """A sha256 digest. The only algorithm edgebuild writes or trusts.

    Attributes:
        hex: 64 lower-case hexadecimal digits.

    Source: image-spec v1.1 descriptor.md, "Digests".
    """

    hex: str

    def __post_init__(self) -> None:
        if not _HEX.fullmatch(self.hex):
            raise ValueError(f"{self.hex!r} is not a sha256 digest of 64 lower-case hexadecimal digits")

    def __str__(self) -> str:
        return f"sha256:{self.hex}"

    @property
    def short(self) -> str:
        """Twelve digits, enough for a person to tell two apart."""
        return self.hex[:12]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read "sha256:<hex>".

        Raises:
            ValueError: Another algorithm or form.
        """
        algorithm, separator, digits = text.partition(":")
        if algorithm != "sha256" or not separator:
            raise ValueError(f"{text!r} is not a sha256 digest")
        return cls(digits)

    @classmethod
    def of(cls, data: bytes | memoryview) -> Self:
        """Hash `data`."""
        return cls(hashlib.sha256(data).hexdigest())
