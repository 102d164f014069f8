"""Files from the Python package index that pip and uv are configured with, found by hash.

Source: the simple repository API, https://packaging.python.org/en/latest/specifications/simple-repository-api/
(JSON of PEP 691 with sizes of PEP 700; HTML for indexes that have no JSON).
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from urllib.parse import urldefrag, urljoin

import httpx2
from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from uv import find_uv_bin

from edgebuild.artifacts.pip_settings import read_pip_settings
from edgebuild.artifacts.requirements import PinnedRequirement
from edgebuild.errors import ToolError
from edgebuild.host import Host
from edgebuild.process import run

_ACCEPT = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"
_PAGE_BYTES = 64 << 20
_PYTHON = (3, 13)
# Wheels that run on Debian trixie (glibc 2.41) and still on glibc 2.28, oldest manylinux tag last.
_GLIBC_MINORS = (28, 27, 26, 24, 17)
_INDEX_HINT = "check the network and the index that pip or uv are configured with (PIP_INDEX_URL)"


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexFile:
    """One file of a project.

    Attributes:
        url: Where it lies.
        file: Its name.
        sha256: Its hash, or "" when the index gives another kind.
        size_bytes: Its length, or 0 when the index does not tell.
    """

    url: str
    file: str
    sha256: str
    size_bytes: int


def find_index_urls(host: Host) -> tuple[str, ...]:
    """Find the indexes that this host's pip and uv use, the main one first.

    Order: PIP_INDEX_URL, pip's configuration files, then uv's answer, which covers its own variables, its
    configuration and the default index.

    Raises:
        ToolError: uv cannot be asked.
    """
    settings = read_pip_settings(host)
    main = settings.index_url or _uv_index(host)
    urls = dict.fromkeys(
        url.rstrip("/") + "/"
        for url in (main, *settings.extra_index_urls)
        if url.startswith(("http:", "https:"))
    )
    if not urls:
        raise ToolError(
            f"the package index {main!r} is not on the web", hint="set PIP_INDEX_URL to an https address"
        )
    return tuple(urls)


def list_files(project: str, *, urls: tuple[str, ...], client: httpx2.Client) -> tuple[IndexFile, ...]:
    """List a project's files, of the first index that has the project.

    Raises:
        ToolError: An index does not answer, or none has the project.
    """
    for url in urls:
        if files := _list_files(f"{url}{canonicalize_name(project)}/", client):
            return files
    raise ToolError(f"the package index has no project {project}", hint=_INDEX_HINT)


def find_file(
    project: str, *, file: str, sha256: str, urls: tuple[str, ...], client: httpx2.Client
) -> IndexFile:
    """Find a file by its hash, wherever a configured index has it.

    Raises:
        ToolError: No index has it, or one does not answer.
    """
    for url in urls:
        for found in _list_files(f"{url}{canonicalize_name(project)}/", client):
            if found.file == file and found.sha256 in {sha256, ""}:
                return found
    raise ToolError(
        f"no package index has {file} with sha256 {sha256[:12]}…",
        hint="it may have been withdrawn, or the mirror lags behind; try another index with PIP_INDEX_URL",
    )


def choose_wheel(files: tuple[IndexFile, ...], requirement: PinnedRequirement, *, machine: str) -> IndexFile:
    """Choose the wheel that fits the image's Python on a processor best, among those whose hash is allowed.

    Args:
        files: All files of the project.
        requirement: The pin.
        machine: "aarch64" or "x86_64".

    Raises:
        ToolError: There is none.
    """
    ranks = {tag: rank for rank, tag in enumerate(_supported_tags(machine))}
    best: tuple[int, IndexFile] | None = None
    for file in files:
        if file.sha256 not in requirement.hashes:
            continue
        rank = min((ranks[tag] for tag in _wheel_tags(file.file) if tag in ranks), default=None)
        if rank is not None and (best is None or (rank, file.file) < (best[0], best[1].file)):
            best = rank, file
    if best is None:
        raise ToolError(
            f"{requirement.project} {requirement.version} has no wheel for Python 3.13 on {machine} among its hashes",
            hint="source archives are never built; pin a version that has wheels",
        )
    return best[1]


def _supported_tags(machine: str) -> Iterator[Tag]:
    platforms = [f"manylinux_2_{minor}_{machine}" for minor in _GLIBC_MINORS]
    platforms.insert(platforms.index(f"manylinux_2_17_{machine}") + 1, f"manylinux2014_{machine}")
    yield from cpython_tags(_PYTHON, abis=["cp313"], platforms=platforms)
    yield from compatible_tags(_PYTHON, interpreter="cp313", platforms=platforms)


def _wheel_tags(file: str) -> frozenset[Tag]:
    try:
        return parse_wheel_filename(file)[3] if file.endswith(".whl") else frozenset()
    except InvalidWheelFilename:
        return frozenset()


def _list_files(url: str, client: httpx2.Client) -> tuple[IndexFile, ...]:
    """Read a project's page; an index without the project has no files."""
    try:
        response = client.get(url, headers={"Accept": _ACCEPT})
    except httpx2.TransportError as error:
        raise ToolError(
            f"the package index {_without_login(url)} does not answer: {error}", hint=_INDEX_HINT
        ) from error
    if response.status_code == 404:
        return ()
    if response.status_code != 200 or len(response.content) > _PAGE_BYTES:
        raise ToolError(
            f"the package index {_without_login(url)} answers {response.status_code} {response.reason_phrase}",
            hint=_INDEX_HINT,
        )
    base = str(response.url)
    try:
        if "json" in response.headers.get("content-type", ""):
            return tuple(_json_files(response.content, base))
        return tuple(_html_files(response.text, base))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ToolError(
            f"the package index {_without_login(url)} answers with a page that is not one", hint=_INDEX_HINT
        ) from error


def _json_files(raw: bytes, base: str) -> Iterator[IndexFile]:
    for entry in json.loads(raw)["files"]:
        yield IndexFile(
            url=urljoin(base, entry["url"]),
            file=entry["filename"],
            sha256=entry["hashes"].get("sha256", ""),
            size_bytes=int(entry.get("size") or 0),
        )


def _html_files(text: str, base: str) -> Iterator[IndexFile]:
    parser = _Links()
    parser.feed(text)
    for link in parser.links:
        url, fragment = urldefrag(urljoin(base, link))
        kind, _, value = fragment.partition("=")
        yield IndexFile(
            url=url,
            file=httpx2.URL(url).path.rpartition("/")[2],
            sha256=value if kind == "sha256" else "",
            size_bytes=0,
        )


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect the targets of links."""
        self.links += [value for name, value in attrs if tag == "a" and name == "href" and value]


def _without_login(url: str) -> str:
    parsed = httpx2.URL(url)
    return str(parsed.copy_with(username=None, password=None)) if parsed.userinfo else url


def _uv_index(host: Host) -> str:
    done = run(
        [find_uv_bin(), "pip", "compile", "-", "--emit-index-url", "--no-header", "--quiet"],
        environment=dict(host.environment),
        cwd=host.working_directory,
        hint="reinstall edgebuild: uv belongs to it",
    )
    match = re.search(r"^--index-url (\S+)", done.stdout, re.MULTILINE)
    if match is None:
        raise ToolError("uv does not tell its package index", hint="set PIP_INDEX_URL")
    return match[1]
