"""What `--model` may say, read into values. Pure: nothing is looked at, neither disk nor network."""

import re
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from edgebuild.errors import UsageError
from edgebuild.oci.digest import Digest
from edgebuild.oci.reference import Reference

DEMO_MODEL = "demo"
_COMMIT = re.compile(r"[0-9a-f]{40}")
# Names of the hub: letters, digits, '-', '_' and '.'; revisions with a slash are those of pull requests and conversions.
_HUB = re.compile(
    r"(?P<repository>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)"
    r"(?:@(?P<revision>refs/(?:pr|convert)/[\w.-]+|[^/@]+))?"
    r"(?:/(?P<file>[^/].*))?",
    re.ASCII,
)
_HUB_HINT = "write it as hf://ORG/REPO[@REVISION][/FILE.gguf], e.g. hf://bartowski/SmolLM2-135M-Instruct-GGUF"
_WEB_HINT = "write it as https://HOST/FILE.gguf#sha256=<64 hexadecimal digits>; who publishes the file publishes its sha256 too"


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalReference:
    """A path on this machine, or the model that ships with edgebuild.

    Attributes:
        path: As the user wrote it; "" for the demo model.
    """

    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HubReference:
    """A model on a Hugging Face hub.

    Attributes:
        repository: "ORG/REPO".
        revision: Commit, branch or tag; "" for the main branch.
        file: Path of a file inside the repository; "" to choose one.
    """

    repository: str
    revision: str = ""
    file: str = ""

    def __str__(self) -> str:
        at = f"@{self.revision}" if self.revision else ""
        return f"hf://{self.repository}{at}" + (f"/{self.file}" if self.file else "")

    @property
    def is_pinned(self) -> bool:
        """Whether the revision is a commit, whose content never changes."""
        return bool(_COMMIT.fullmatch(self.revision))


@dataclass(frozen=True, slots=True, kw_only=True)
class WebReference:
    """A file somewhere on the web, known by its hash.

    Attributes:
        url: Where it lies, without the fragment; may hold a login or a signature.
        digest: Its sha256.
    """

    url: str
    digest: Digest

    @property
    def shown(self) -> str:
        """The address without what may be secret: login and query."""
        parts = urlsplit(self.url)
        host = parts.netloc.rpartition("@")[2]
        return f"{parts.scheme}://{host}{parts.path}"

    @property
    def file(self) -> str:
        """Name of the file, as far as the address tells; whatever its path holds."""
        return unquote(urlsplit(self.url).path.rpartition("/")[2])


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryReference:
    """A model that lies as an artifact in a container registry.

    Attributes:
        reference: With a tag or digest.
    """

    reference: Reference


ModelReference = LocalReference | HubReference | WebReference | RegistryReference


def parse_model_reference(text: str) -> ModelReference:
    """Read what `--model` says.

    Raises:
        UsageError: The scheme is unknown, or what follows it is not of its form.
    """
    scheme, separator, rest = text.partition("://")
    if not separator:
        return LocalReference(path="" if text == DEMO_MODEL else text)
    match scheme.lower():
        case "hf":
            return _parse_hub(text, rest)
        case "http" | "https":
            return _parse_web(text)
        case "oci":
            parsed = Reference.parse(rest)
            is_named = parsed.tag or parsed.digest is not None
            return RegistryReference(reference=parsed if is_named else parsed.with_tag("latest"))
        case _:
            raise UsageError(
                f"{scheme}:// is no source of models",
                hint="give a path, hf://ORG/REPO, https://…#sha256=…, or oci://REGISTRY/REPO",
            )


def _parse_hub(text: str, rest: str) -> HubReference:
    match = _HUB.fullmatch(rest.rstrip("/"))
    if match is None or ".." in (match["file"] or "").split("/"):
        raise UsageError(f"{text} names no repository of a hub", hint=_HUB_HINT)
    return HubReference(
        repository=match["repository"],
        revision=unquote(match["revision"] or ""),
        file=match["file"] or "",
    )


def _parse_web(text: str) -> WebReference:
    url, _, fragment = text.partition("#")
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        _ = parts.port
    except ValueError as error:
        raise UsageError("--model is not a web address", hint=_WEB_HINT) from error
    shown = f"{parts.scheme}://{host}{parts.path}"
    if not host:
        raise UsageError(f"{shown} names no host", hint=_WEB_HINT)
    if not fragment:
        raise UsageError(
            f"{shown} comes without its sha256, so nobody could tell what arrives", hint=_WEB_HINT
        )
    kind, _, value = fragment.partition("=")
    if kind != "sha256" or not re.fullmatch(r"[0-9a-fA-F]{64}", value):
        raise UsageError(f"#{fragment} of {shown} is not a sha256", hint=_WEB_HINT)
    return WebReference(url=url, digest=Digest(value.lower()))
