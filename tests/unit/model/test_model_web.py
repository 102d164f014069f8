"""Models from an address on the web."""

import pytest

from edgebuild.artifacts.store import Store
from edgebuild.errors import ModelError, ToolError, UsageError
from edgebuild.oci.digest import Digest
from tests.support.file_server import FileServer, Page
from tests.unit.model.conftest import Load


def test_file_is_fetched_once(server: FileServer, load: Load, models: dict[str, bytes]) -> None:
    server.pages["/a b-F16.gguf"] = server.pages["/a%20b-F16.gguf"] = Page(models["0"])
    digest = Digest.of(models["0"])
    found = load(f"{server.url}/a%20b-F16.gguf?X-Signature=secret#sha256={digest.hex}")
    assert found.path.read_bytes() == models["0"]
    assert found.spec.file_name == "a-b-F16.gguf"
    assert found.source.to_json() == {
        "kind": "web", "reference": f"{server.url}/a%20b-F16.gguf", "revision": None,
        "file": "a-b-F16.gguf", "digest": str(digest), "licence": None,
    }  # fmt: skip
    server.pages.clear()
    assert load(f"https://h.example/other.gguf#sha256={digest.hex}").path == found.path
    assert len(server.asked) == 1


@pytest.mark.parametrize("path", ["/..%2F..%2Fetc%2Fpasswd", "/.gguf", "/", "/%2E%2E"])
def test_names_stay_in_the_store(
    server: FileServer, load: Load, store: Store, models: dict[str, bytes], path: str
) -> None:
    server.pages[path] = Page(models["0"])
    server.elsewhere = lambda _: Page(models["0"])
    found = load(f"{server.url}{path}#sha256={Digest.of(models['0']).hex}")
    assert found.path.parent == store.find("download", Digest.of(models["0"]))
    assert found.spec.file_name.endswith(".gguf")


def test_cut_is_resumed(server: FileServer, load: Load, models: dict[str, bytes]) -> None:
    server.pages["/a.gguf"] = Page(models["0"], cuts=[700])
    load(f"{server.url}/a.gguf#sha256={Digest.of(models['0']).hex}")
    assert [asked for _, asked in server.asked] == ["", "bytes=700-"]


def test_another_file_is_refused(
    server: FileServer, load: Load, store: Store, models: dict[str, bytes]
) -> None:
    server.pages["/a.gguf"] = Page(models["1"])
    with pytest.raises(ToolError, match="has sha256") as caught:
        load(f"{server.url}/a.gguf#sha256={Digest.of(models['0']).hex}")
    assert "check the sha256" in caught.value.hint
    assert store.verify() == ()


@pytest.mark.parametrize("status", [401, 403, 404])
def test_refusal(server: FileServer, load: Load, status: int) -> None:
    server.pages["/a.gguf"] = Page(b"", refuse=status)
    with pytest.raises(ToolError, match=f"cannot be downloaded: {status}") as caught:
        load(f"{server.url}/a.gguf#sha256={'0' * 64}")
    assert "check the address" in caught.value.hint


def test_plain_http_to_another_machine_is_refused(load: Load) -> None:
    with pytest.raises(UsageError, match=r"http://h\.example/a\.gguf is not https"):
        load(f"http://h.example/a.gguf#sha256={'0' * 64}")


def test_one_file_of_several_is_refused_before_it_is_fetched(load: Load) -> None:
    with pytest.raises(ModelError, match="is one of several files of a model") as caught:
        load(f"https://h.example/a-00001-of-00003.gguf#sha256={'0' * 64}")
    assert "the first" in caught.value.hint


def test_file_of_another_kind(server: FileServer, load: Load) -> None:
    body = b"<html>" * 100
    server.pages["/a.gguf"] = Page(body)
    with pytest.raises(ModelError, match="not a GGUF file"):
        load(f"{server.url}/a.gguf#sha256={Digest.of(body).hex}")
