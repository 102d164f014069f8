"""Finding wheels: index pages as JSON and HTML, configuration of pip and uv, tags."""

import json
from pathlib import Path

import httpx2
import pytest

from edgebuild.artifacts.pypi import (
    IndexFile,
    choose_wheel,
    find_file,
    find_index_urls,
    list_files,
)
from edgebuild.artifacts.requirements import PinnedRequirement, parse_requirements
from edgebuild.errors import ToolError
from tests.support.file_server import FileServer, Page
from tests.unit.artifacts.telling import host_at

A, B, C = "a" * 64, "b" * 64, "c" * 64
JSON_TYPE = "application/vnd.pypi.simple.v1+json"


def json_page(*files: tuple[str, str, str, int | None]) -> Page:
    listed = [
        {"filename": name, "url": url, "hashes": {"sha256": digest}} | ({"size": size} if size else {})
        for name, url, digest, size in files
    ]
    body = {"meta": {"api-version": "1.1"}, "name": "x", "files": listed}
    return Page(json.dumps(body).encode(), content_type=JSON_TYPE)


def test_json_page_with_relative_and_absolute_addresses(server: FileServer) -> None:
    server.pages["/simple/my-project/"] = json_page(
        ("a.whl", "../../files/a.whl", A, 5), ("b.whl", "https://elsewhere.test/b.whl", B, None)
    )
    with httpx2.Client() as client:
        files = list_files("My.Project", urls=(f"{server.url}/simple/",), client=client)
    assert files == (
        IndexFile(url=f"{server.url}/files/a.whl", file="a.whl", sha256=A, size_bytes=5),
        IndexFile(url="https://elsewhere.test/b.whl", file="b.whl", sha256=B, size_bytes=0),
    )


def test_html_page(server: FileServer) -> None:
    page = f'<html><body><a href="/files/a%2Blocal.whl#sha256={A}">x</a><a href="b.zip#md5=1">b</a></body></html>'
    server.pages["/simple/p/"] = Page(page.encode(), content_type="text/html; charset=utf-8")
    with httpx2.Client() as client:
        files = list_files("p", urls=(f"{server.url}/simple/",), client=client)
    assert files == (
        IndexFile(url=f"{server.url}/files/a%2Blocal.whl", file="a+local.whl", sha256=A, size_bytes=0),
        IndexFile(url=f"{server.url}/simple/p/b.zip", file="b.zip", sha256="", size_bytes=0),
    )


def test_file_is_found_in_whichever_index_has_it(server: FileServer) -> None:
    server.pages["/one/p/"] = json_page(("p-1.whl", "p-1.whl", B, 1))
    server.pages["/two/p/"] = json_page(("p-1.whl", "p-1.whl", A, 1))
    urls = (f"{server.url}/none/", f"{server.url}/one/", f"{server.url}/two/")
    with httpx2.Client() as client:
        found = find_file("p", file="p-1.whl", sha256=A, urls=urls, client=client)
        assert found.url == f"{server.url}/two/p/p-1.whl"
        with pytest.raises(ToolError, match=r"no package index has p-1\.whl") as caught:
            find_file("p", file="p-1.whl", sha256=C, urls=urls, client=client)
        assert "PIP_INDEX_URL" in caught.value.hint
        with pytest.raises(ToolError, match="no project q"):
            list_files("q", urls=urls, client=client)


@pytest.mark.parametrize(
    "page",
    [
        Page(b"{", content_type=JSON_TYPE),
        Page(b'{"files": [{}]}', content_type=JSON_TYPE),
        Page(b"", refuse=500),
        Page(b"", refuse=401),
    ],
)
def test_broken_index_is_one_clear_error(server: FileServer, page: Page) -> None:
    server.pages["/p/"] = page
    url = server.url.replace("http://", "http://user:secret@") + "/"
    with httpx2.Client() as client, pytest.raises(ToolError, match="the package index") as caught:
        list_files("p", urls=(url,), client=client)
    assert "secret" not in caught.value.message


def test_index_that_does_not_answer() -> None:
    with httpx2.Client() as client, pytest.raises(ToolError, match="does not answer"):
        list_files("p", urls=("http://127.0.0.1:9/",), client=client)


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_index_of_the_environment_comes_first(tmp_path: Path) -> None:
    write(tmp_path / ".config/pip/pip.conf", "[global]\nindex-url = https://user.test/simple\n")
    host = host_at(
        tmp_path, PIP_INDEX_URL="https://env.test/simple", PIP_EXTRA_INDEX_URL="https://extra.test/s"
    )
    assert find_index_urls(host) == ("https://env.test/simple/", "https://extra.test/s/")


def test_index_of_pips_configuration(tmp_path: Path) -> None:
    write(
        tmp_path / ".config/pip/pip.conf",
        "[global]\nindex-url = https://user.test/simple/\nextra-index-url = file:///x https://more.test/simple\n",
    )
    assert find_index_urls(host_at(tmp_path)) == ("https://user.test/simple/", "https://more.test/simple/")
    named = write(tmp_path / "named.conf", "[install]\nindex-url = https://named.test/simple\n")
    assert find_index_urls(host_at(tmp_path, PIP_CONFIG_FILE=str(named)))[0] == "https://named.test/simple/"


def test_index_of_uv(tmp_path: Path) -> None:
    host = host_at(tmp_path, PIP_CONFIG_FILE="/dev/null", UV_DEFAULT_INDEX="https://uv.test/simple")
    assert find_index_urls(host) == ("https://uv.test/simple/",)
    default = find_index_urls(host_at(tmp_path, PIP_CONFIG_FILE="/dev/null"))
    assert len(default) == 1
    assert default[0].startswith("https://")


def test_index_that_is_not_on_the_web(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match="not on the web"):
        find_index_urls(host_at(tmp_path, PIP_CONFIG_FILE="/dev/null", PIP_INDEX_URL="file:///srv/simple"))


def files(*names: str) -> tuple[IndexFile, ...]:
    return tuple(IndexFile(url=name, file=name, sha256=A, size_bytes=1) for name in names)


REQUIREMENT = PinnedRequirement(project="p", version="1", hashes=frozenset({A}))


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (("p-1-py3-none-any.whl",), "p-1-py3-none-any.whl"),
        (
            ("p-1-py3-none-any.whl", "p-1-cp313-cp313-manylinux_2_28_aarch64.whl"),
            "p-1-cp313-cp313-manylinux_2_28_aarch64.whl",
        ),
        (
            ("p-1-cp312-cp312-manylinux_2_17_aarch64.whl", "p-1-cp39-abi3-manylinux_2_17_aarch64.whl"),
            "p-1-cp39-abi3-manylinux_2_17_aarch64.whl",
        ),
        (
            (
                "p-1-cp313-cp313-manylinux_2_17_x86_64.manylinux2014_x86_64.whl",
                "p-1-cp313-cp313-manylinux2014_aarch64.whl",
                "p-1-cp313-cp313-musllinux_1_2_aarch64.whl",
                "p-1-cp313-cp313t-manylinux2014_aarch64.whl",
                "p-1.tar.gz",
            ),
            "p-1-cp313-cp313-manylinux2014_aarch64.whl",
        ),
    ],
)
def test_best_wheel_for_the_target_is_chosen(names: tuple[str, ...], chosen: str) -> None:
    assert choose_wheel(files(*names), REQUIREMENT, machine="aarch64").file == chosen
    assert choose_wheel(files(*reversed(names)), REQUIREMENT, machine="aarch64").file == chosen


@pytest.mark.parametrize(
    "name",
    [
        "p-1.tar.gz",
        "p-1-cp313-cp313-manylinux_2_39_aarch64.whl",
        "p-1-cp314-cp314-manylinux_2_17_aarch64.whl",
        "p-1-cp313-cp313-macosx_11_0_arm64.whl",
        "broken.whl",
    ],
)
def test_nothing_that_would_not_run_is_chosen(name: str) -> None:
    with pytest.raises(ToolError, match=r"no wheel for Python 3\.13 on aarch64"):
        choose_wheel(files(name), REQUIREMENT, machine="aarch64")


def test_wheel_with_another_hash_is_not_chosen() -> None:
    other = (IndexFile(url="u", file="p-1-py3-none-any.whl", sha256=B, size_bytes=1),)
    with pytest.raises(ToolError):
        choose_wheel(other, REQUIREMENT, machine="x86_64")


def test_requirements_are_read(tmp_path: Path) -> None:
    path = write(
        tmp_path / "requirements.txt",
        f"# comment\nMy_Project[extra]==1.0 ; python_version > '3' \\\n    --hash=sha256:{A} \\\n    --hash=sha256:{B}\n"
        f"    # via\nother==2 --hash=sha256:{C}\n",
    )
    assert parse_requirements(path) == (
        PinnedRequirement(project="my-project", version="1.0", hashes=frozenset({A, B})),
        PinnedRequirement(project="other", version="2", hashes=frozenset({C})),
    )


@pytest.mark.parametrize("line", ["p>=1 --hash=sha256:" + A, "p==1", "p --hash=sha256:" + A, "-r other.txt"])
def test_requirement_that_pins_nothing_is_refused(tmp_path: Path, line: str) -> None:
    with pytest.raises(ToolError):
        parse_requirements(write(tmp_path / "requirements.txt", line + "\n"))
