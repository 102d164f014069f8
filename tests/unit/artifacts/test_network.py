"""Proxies and certificates of the environment given, not of this process."""

import time
from contextlib import closing
from pathlib import Path

import httpx2
import pytest

from edgebuild.errors import ToolError
from edgebuild.network import Stop, make_client
from tests.support.file_server import FileServer, Page


def test_proxy_is_used_for_other_hosts(server: FileServer) -> None:
    server.pages["http://mirror.test/f"] = Page(b"through the proxy")
    with make_client({"http_proxy": server.url}) as client:
        assert client.get("http://mirror.test/f").text == "through the proxy"


@pytest.mark.parametrize("excluded", ["mirror.test", ".test", "*", "other, mirror.test"])
def test_no_proxy_is_heeded(server: FileServer, excluded: str) -> None:
    with (
        make_client({"HTTP_PROXY": server.url, "NO_PROXY": excluded}) as client,
        pytest.raises(httpx2.TransportError),
    ):
        client.get("http://mirror.test/f")
    assert server.asked == []


def test_loopback_needs_no_exception(server: FileServer) -> None:
    server.pages["/f"] = Page(b"direct")
    with make_client({"http_proxy": "http://127.0.0.1:9"}) as client:
        assert client.get(f"{server.url}/f").text == "direct"


def test_bad_certificate_file_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match=r"trusted certificates cannot be read from .*absent"):
        make_client({"SSL_CERT_FILE": str(tmp_path / "absent.pem")})


def test_bad_proxy_is_one_clear_error_without_its_password() -> None:
    with pytest.raises(ToolError) as caught:
        make_client({"https_proxy": "ftp://user:secret@host:99999/"})
    assert "secret" not in caught.value.message


def test_an_answer_that_is_left_ends_at_its_server_too(server: FileServer) -> None:
    """Though the stop stays open."""
    server.pages["/large"] = Page(bytes(64 << 20))
    with closing(Stop()) as stop, make_client({}, stop=stop) as client:
        with client.stream("GET", f"{server.url}/large") as response:
            stop.release(response)
        deadline = time.monotonic() + 20
        while server.under_way:
            assert time.monotonic() < deadline
            time.sleep(0.01)
