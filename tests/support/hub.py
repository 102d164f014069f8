"""A Hugging Face hub on loopback: its API and its files, over the file server that cuts, stalls and refuses.

    with running_hub() as hub:
        commit = hub.add("acme/tiny", {"tiny-Q4_K_M.gguf": data}, licence="apache-2.0")
        run(env={"HF_ENDPOINT": hub.url})
        hub.storage(data).cuts = [1000]

Large files live at another address than the hub, which redirects there, as the real one does.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from tests.support.file_server import FileServer, Page, file_server

TOKEN = "hf_loopback"


class LoopbackHub:
    """A hub and its storage.

    Attributes:
        server: The hub: /api/models/… and /ORG/REPO/resolve/….
        store: The storage that it redirects to: /<sha256>.
    """

    def __init__(self, server: FileServer, store: FileServer) -> None:
        self.server = server
        self.store = store
        self._repositories: set[str] = set()
        server.elsewhere = self._absent

    @property
    def url(self) -> str:
        """For HF_ENDPOINT."""
        return self.server.url

    @property
    def api_calls(self) -> list[str]:
        """What the API was asked."""
        return [path for path, _ in self.server.asked if path.startswith("/api/")]

    def add(
        self,
        repository: str,
        files: Mapping[str, bytes],
        *,
        branch: str = "main",
        licence: str = "",
        token: str = "",
        in_git: tuple[str, ...] = (),
    ) -> str:
        """Commit files to a branch and return the commit; those of earlier commits stay where they are."""
        self._repositories.add(repository)
        digests = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
        commit = hashlib.sha1(repr(sorted(digests.items())).encode() + branch.encode()).hexdigest()
        listing = json.dumps(self._listing(repository, commit, files, digests, licence, in_git)).encode()
        for revision in ("", f"/revision/{branch.replace('/', '%2F')}", f"/revision/{commit}"):
            if revision or branch == "main":
                self.server.pages[f"/api/models/{repository}{revision}"] = Page(
                    listing, content_type="application/json", token=token
                )
        for name, data in files.items():
            if name in in_git:
                self.server.pages[f"/{repository}/resolve/{commit}/{name}"] = Page(data, token=token)
                continue
            place = f"/{digests[name]}"
            self.store.pages.setdefault(place, Page(data))
            self.server.pages[f"/{repository}/resolve/{commit}/{name}"] = Page(
                b"", redirect=f"{self.store.url}{place}?signature=secret", token=token
            )
        return commit

    def api(self, repository: str, revision: str = "") -> Page:
        """The page that lists a repository, to spoil it."""
        return self.server.pages[f"/api/models/{repository}" + (f"/revision/{revision}" if revision else "")]

    def storage(self, data: bytes) -> Page:
        """The page of a file's bytes, to spoil it."""
        return self.store.pages[f"/{hashlib.sha256(data).hexdigest()}"]

    def _listing(
        self,
        repository: str,
        commit: str,
        files: Mapping[str, bytes],
        digests: Mapping[str, str],
        licence: str,
        in_git: tuple[str, ...],
    ) -> dict[str, Any]:
        siblings = []
        for name, data in files.items():
            # Of what git does not hold it holds a pointer.
            held = data if name in in_git else f"{digests[name]} {len(data)}".encode()
            blob_id = hashlib.sha1(b"blob %d\0" % len(held) + held).hexdigest()
            sibling: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": blob_id}
            if name not in in_git:
                sibling["lfs"] = {
                    "sha256": digests[name],
                    "size": len(data),
                    "pointerSize": 130,
                }
            siblings.append(sibling)
        document: dict[str, Any] = {
            "id": repository, "modelId": repository, "sha": commit, "private": False, "gated": False,
            "tags": ["gguf"], "siblings": siblings,
        }  # fmt: skip
        if licence:
            document["cardData"] = {"license": licence}
            document["tags"].append(f"license:{licence}")
        return document

    def _absent(self, path: str) -> Page | None:
        """Answer for what is not there as the hub does: 404 for a revision, 401 for a repository (it may be private)."""
        repository = "/".join(path.removeprefix("/api/models/").split("/")[:2])
        if not path.startswith("/api/models/"):
            return None
        if repository in self._repositories:
            return Page(b"", refuse=404, headers={"X-Error-Code": "RevisionNotFound"})
        return Page(b"", refuse=401, headers={"X-Error-Code": "RepoNotFound"})


@contextmanager
def running_hub() -> Iterator[LoopbackHub]:
    """Start a hub and its storage, and stop them at the end."""
    with file_server() as server, file_server() as store:
        yield LoopbackHub(server, store)
