"""What a Hugging Face hub is asked, through huggingface_hub: it knows the API, revisions and refusals."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx2
from huggingface_hub import HfApi, close_session, hf_hub_url, set_client_factory
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.hf_api import ModelInfo, RepoSibling

from edgebuild import __version__
from edgebuild.artifacts.download import Hints, Wanted
from edgebuild.artifacts.tries import RETRYABLE_STATUSES, USUAL, GaveUpError, Patience, Tries, TryAgainError
from edgebuild.errors import EdgebuildError, ModelError, ToolError
from edgebuild.model.reference import HubReference
from edgebuild.network import CONNECT_S, RoutingTransport, Stop, is_loopback_host, retry_after_s, tls_context
from edgebuild.oci.digest import Digest

_ENDPOINT = "https://huggingface.co"
_NO_LICENCE = frozenset({"", "unknown", "other"})


@dataclass(frozen=True, slots=True, kw_only=True)
class HubFile:
    """A file of a repository.

    Attributes:
        path: Inside the repository.
        size_bytes: Its length.
        sha256: Its hash, or "" of small files, which the hub keeps in git.
        blob_id: Git's name of such a file: sha1 of "blob SIZE", a zero byte and the content; "" when the hub does not tell.
    """

    path: str
    size_bytes: int
    sha256: str
    blob_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """A repository at one commit.

    Attributes:
        commit: 40 hexadecimal digits.
        licence: As its card states it, or "".
        files: All files.
    """

    commit: str
    licence: str
    files: tuple[HubFile, ...]


class Hub:
    """A hub, and with which right we ask it."""

    def __init__(self, environment: Mapping[str, str], *, patience: Patience = USUAL) -> None:
        """Read HF_ENDPOINT and the token.

        Args:
            environment: The host's.
            patience: How long the hub is asked.

        Raises:
            ToolError: The token would go over plain HTTP to another machine, or cannot be read.
        """
        self.endpoint = (environment.get("HF_ENDPOINT") or _ENDPOINT).rstrip("/")
        self._environment = environment
        self._patience = patience
        self._token = find_token(environment)
        url = httpx2.URL(self.endpoint)
        if self._token and url.scheme != "https" and not is_loopback_host(url.host):
            raise ToolError(
                f"the token would go to {url.scheme}://{url.host} for everybody to read",
                hint="give HF_ENDPOINT an https address, or unset HF_TOKEN",
            )

    @property
    def headers(self) -> dict[str, str]:
        """What our own requests carry."""
        return {"Authorization": f"Bearer {self._token}"} if self._token else {}

    def list_files(self, reference: HubReference) -> Listing:
        """Ask what a repository holds at a revision.

        Raises:
            ModelError: There is no such repository or revision.
            ToolError: The hub refuses, fails or does not answer.
        """
        api = HfApi(
            endpoint=self.endpoint,
            token=self._token or False,
            library_name="edgebuild",
            library_version=__version__,
        )

        def ask() -> ModelInfo:
            return api.model_info(
                reference.repository, revision=reference.revision or None, files_metadata=True,
                timeout=self._patience.idle_s,
            )  # fmt: skip

        # The library's one hook; nothing else of this process uses it.
        set_client_factory(self._make_client)
        try:
            return self._read(self._ask(ask, reference), reference)
        finally:
            close_session()

    def url(self, reference: HubReference, file: str, commit: str) -> str:
        """Give the address of a file at a commit."""
        return hf_hub_url(reference.repository, file, revision=commit, endpoint=self.endpoint)

    def wanted(self, pinned: HubReference, file: HubFile, *, name: str) -> Wanted:
        """Describe the download of a large file.

        Args:
            pinned: Repository and commit.
            file: The file; the hub tells its sha256.
            name: The name it gets in the store.
        """
        return Wanted(
            url=self.url(pinned, file.path, pinned.revision),
            file=name,
            digest=Digest(file.sha256),
            size_bytes=file.size_bytes,
            title=name,
            headers=self.headers,
            hints=self.hints(pinned),
        )

    def hints(self, reference: HubReference) -> Hints:
        """Say what to do when a file of a repository cannot be had."""
        page = f"{self.endpoint}/{reference.repository}"
        return Hints(
            away="check the network and proxies, or name a mirror in HF_ENDPOINT; what arrived is kept for the next try",
            gone=f"the hub no longer has this commit; see {page}",
            refused=f"ask for access at {page}, then give a token of that account in HF_TOKEN",
            other=f"the hub, a mirror or a proxy is damaged or hostile; compare with {page}",
        )

    def _make_client(self) -> httpx2.Client:
        # The library's own client has no time-outs, and its user agent lists what else is installed here.
        def name_ourselves(request: httpx2.Request) -> None:
            request.headers["User-Agent"] = f"edgebuild/{__version__}"

        return httpx2.Client(
            transport=RoutingTransport(self._environment, tls_context(self._environment)),
            trust_env=False,
            follow_redirects=True,
            timeout=httpx2.Timeout(self._patience.idle_s, connect=min(CONNECT_S, self._patience.idle_s)),
            event_hooks={"request": [name_ourselves]},
        )

    def _ask(self, ask: Callable[[], ModelInfo], reference: HubReference) -> ModelInfo:
        tries = Tries(self._patience, Stop())
        while True:
            fault: Exception
            try:
                return ask()
            except HfHubHTTPError as error:
                fault = self._fault(error, reference)
                if isinstance(fault, EdgebuildError):
                    raise fault from error
            except httpx2.HTTPError as error:
                fault = error
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise self._nonsense() from error
            try:
                tries.wait(fault)
            except GaveUpError as end:
                raise ToolError(
                    f"{reference}: the hub {self.endpoint} cannot be asked: {end}",
                    hint="check the network and proxies, or name a mirror in HF_ENDPOINT",
                ) from fault

    def _fault(self, error: HfHubHTTPError, reference: HubReference) -> EdgebuildError | TryAgainError:
        status, headers = error.response.status_code, error.response.headers
        if status in RETRYABLE_STATUSES:
            reason = f"{status} {error.response.reason_phrase}".strip()
            return TryAgainError(reason, retry_after_s=retry_after_s(headers) or 0.0)
        code = headers.get("X-Error-Code", "")
        if code == "RevisionNotFound" and status == 404:
            return ModelError(
                f"hf://{reference.repository} has no revision {reference.revision}",
                hint=f"see the branches, tags and commits at {self.endpoint}/{reference.repository}",
            )
        if code == "GatedRepo" or status == 403:
            return ToolError(
                f"hf://{reference.repository} is not open to this {'token' if self._token else 'request'}: {status}",
                hint=f"ask for access at {self.endpoint}/{reference.repository}, then give a token of that account in HF_TOKEN",
            )
        if status == 401 and self._token:
            return ToolError(
                f"hf://{reference.repository}: the hub refuses the token or hides the repository from it: 401",
                hint="check the repository's name, and that HF_TOKEN is valid and may read it",
            )
        if status in {401, 404}:
            return ModelError(
                f"hf://{reference.repository} is not there ({self.endpoint} says {status})",
                hint="check the name; a private repository needs a token: HF_TOKEN=hf_…",
            )
        return ToolError(
            f"hf://{reference.repository}: the hub answers {status}",
            hint=f"check {self.endpoint}/{reference.repository}",
        )

    def _read(self, info: ModelInfo, reference: HubReference) -> Listing:
        if not info.sha or not HubReference(repository="a/b", revision=info.sha).is_pinned:
            raise self._nonsense()
        if reference.is_pinned and info.sha != reference.revision:
            raise ToolError(
                f"{reference}: the hub answered with another commit: {info.sha}",
                hint="do not use it; the hub or mirror in HF_ENDPOINT is broken",
            )
        try:
            files = tuple(_read_file(sibling) for sibling in info.siblings or ())
        except ValueError as error:
            raise self._nonsense() from error
        return Listing(commit=info.sha, licence=_licence(info), files=files)

    def _nonsense(self) -> ToolError:
        return ToolError(
            f"{self.endpoint} does not answer as a hub does",
            hint="check HF_ENDPOINT: is it a hub or a mirror of one?",
        )


def find_token(environment: Mapping[str, str]) -> str:
    """Find the token: HF_TOKEN, else what `hf auth login` left; "" when there is none.

    Raises:
        ToolError: It cannot be read, or is no token.

    Source: huggingface_hub, "Environment variables" (HF_TOKEN, HF_TOKEN_PATH, HF_HOME, XDG_CACHE_HOME).
    """
    token = environment.get("HF_TOKEN") or environment.get("HUGGING_FACE_HUB_TOKEN") or ""
    if not token and (path := _token_path(environment)) is not None:
        try:
            token = path.read_text("utf-8")
        except (FileNotFoundError, NotADirectoryError):
            return ""
        except (OSError, ValueError) as error:
            raise ToolError(
                f"{path}: the token cannot be read", hint="mend the file, or set HF_TOKEN"
            ) from error
    token = token.strip()
    if not token.isascii() or not token.isprintable() or " " in token:
        # It is not repeated: it may be a secret with a slip of the keyboard.
        raise ToolError(
            "HF_TOKEN is no token", hint="copy it anew from the hub's settings; it begins with hf_"
        )
    return token


def _token_path(environment: Mapping[str, str]) -> Path | None:
    if named := environment.get("HF_TOKEN_PATH"):
        return Path(named)
    if home := environment.get("HF_HOME"):
        return Path(home) / "token"
    if cache := environment.get("XDG_CACHE_HOME"):
        return Path(cache) / "huggingface" / "token"
    home = environment.get("HOME")
    return Path(home) / ".cache" / "huggingface" / "token" if home else None


def _licence(info: ModelInfo) -> str:
    """Read the licence off the card: its name where the card gives one of its own, else the hub's short name."""
    card = info.card_data
    stated = (
        [str(card.get(key) or "") for key in ("license", "license_name")] if card is not None else ["", ""]
    )
    tags = [tag.removeprefix("license:") for tag in info.tags or () if tag.startswith("license:")]
    for licence in (*stated, *tags):
        if licence.lower() not in _NO_LICENCE:
            return licence
    return ""


def _read_file(sibling: RepoSibling) -> HubFile:
    """Read what the hub says of a file; the library passes on whatever was sent."""
    path: object = sibling.rfilename
    size_bytes: object = sibling.size or 0
    sha256: object = sibling.lfs.sha256 if sibling.lfs else ""
    blob_id: object = sibling.blob_id or ""
    if not isinstance(path, str) or not path.isprintable():
        raise ValueError("a file has no name")
    if not isinstance(size_bytes, int) or size_bytes < 0:
        raise ValueError(f"{path} has no size")
    if not isinstance(sha256, str) or not re.fullmatch(r"(?:[0-9a-f]{64})?", sha256):
        raise ValueError(f"{path} has no sha256")
    if not isinstance(blob_id, str) or not re.fullmatch(r"(?:[0-9a-f]{40})?", blob_id):
        raise ValueError(f"{path} has no blob")
    return HubFile(path=path, size_bytes=size_bytes, sha256=sha256, blob_id=blob_id)
