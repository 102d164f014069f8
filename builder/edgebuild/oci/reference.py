"""References: HOST/REPO:TAG and HOST/REPO@DIGEST, as registries spell them."""

import re
from dataclasses import dataclass, replace
from typing import Self

from edgebuild.errors import UsageError
from edgebuild.oci.digest import Digest

# distribution-spec v1.1, "Pulling manifests": <name> and <reference> as a tag.
_REPOSITORY = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*")
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}")
_HOST = re.compile(r"(?:[a-zA-Z0-9](?:[a-zA-Z0-9.-]*[a-zA-Z0-9])?|\[[0-9a-fA-F:]+\])(?::[0-9]{1,5})?")
_HINT = "write it as HOST[:PORT]/REPOSITORY[:TAG][@sha256:…], in lower case, e.g. registry.example.com/acme/llm:1.4"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """The name of an image in a registry.

    Attributes:
        registry: Host, with its port when given.
        repository: Path inside the registry.
        tag: Tag, or "".
        digest: Digest, or None. When both are there the digest decides.
    """

    registry: str
    repository: str
    tag: str = ""
    digest: Digest | None = None

    def __str__(self) -> str:
        return (
            self.name
            + (f":{self.tag}" if self.tag else "")
            + (f"@{self.digest}" if self.digest is not None else "")
        )

    @property
    def name(self) -> str:
        """Registry and repository, without tag and digest."""
        return f"{self.registry}/{self.repository}"

    @property
    def is_loopback(self) -> bool:
        """Whether the registry is on this machine, so that plain HTTP reaches nobody else."""
        host = self.registry.rsplit(":", 1)[0] if not self.registry.endswith("]") else self.registry
        return host in {"localhost", "[::1]"} or bool(re.fullmatch(r"127(\.[0-9]{1,3}){3}", host))

    def with_tag(self, tag: str) -> "Reference":
        """Name another tag of the same repository.

        Raises:
            UsageError: The tag is not one.
        """
        if not _TAG.fullmatch(tag):
            raise UsageError(
                f"{tag!r} is not a tag",
                hint="a tag has up to 128 letters, digits, '.', '_' and '-', and does not begin with '.' or '-'",
            )
        return replace(self, tag=tag, digest=None)

    def with_digest(self, digest: Digest) -> "Reference":
        """Name a manifest of the same repository by its digest alone."""
        return replace(self, tag="", digest=digest)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a reference; the registry must be named, no default hub is assumed.

        Raises:
            UsageError: It is not one; the message says which part.
        """
        rest, at, digest_text = text.partition("@")
        registry, slash, path = rest.partition("/")
        if not slash or not _is_host(registry):
            raise UsageError(f"{text!r} names no registry", hint=_HINT)
        repository, colon, tag = path.partition(":")
        if not _REPOSITORY.fullmatch(repository) or len(repository) > 255:
            raise UsageError(f"{repository!r} in {text!r} is not a repository", hint=_HINT)
        if colon and not _TAG.fullmatch(tag):
            raise UsageError(f"{tag!r} in {text!r} is not a tag", hint=_HINT)
        try:
            digest = Digest.parse(digest_text) if at else None
        except ValueError as error:
            raise UsageError(f"{text!r}: {error}", hint=_HINT) from error
        return cls(registry=registry, repository=repository, tag=tag, digest=digest)


def _is_host(text: str) -> bool:
    """Tell a host from the first part of a path, as Docker does: it has a dot, a colon or is "localhost"."""
    return bool(_HOST.fullmatch(text)) and ("." in text or ":" in text or text == "localhost")
