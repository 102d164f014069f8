"""The measuring command, against a real HTTP server."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.unit.demo_model.modules import load_module

evaluate = load_module("evaluate")


class Echo(BaseHTTPRequestHandler):
    """Answers a chat request with its own last message; keeps the requests; "break" gives 503."""

    requests: list[dict[str, Any]]

    def do_POST(self) -> None:
        document = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.requests.append({"path": self.path} | document)
        text = document["messages"][-1]["content"]
        body = json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode()
        self.send_response(503 if text == "break" else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Keep the test's output clean."""


@pytest.fixture
def server() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    requests: list[dict[str, Any]] = []
    handler = type("Handler", (Echo,), {"requests": requests})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}", requests
        running.shutdown()
        thread.join()


def lines_file(folder: Path, *pairs: tuple[str, str]) -> str:
    path = folder / "lines.jsonl"
    path.write_text("".join(json.dumps({"prompt": p, "expected": e}) + "\n" for p, e in pairs))
    return str(path)


def test_all_right(
    server: tuple[str, list[dict[str, Any]]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url, requests = server
    heldout = lines_file(tmp_path, ("a", "a"), ("b", "b"))
    assert evaluate.main(["--url", url, "--heldout", heldout]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["lines"], report["exact"], report["share"]) == (2, 2, 1.0)
    assert [request["path"] for request in requests] == ["/v1/chat/completions"] * 2
    assert [request["temperature"] for request in requests] == [0, 0]


def test_one_wrong_is_counted_shown_and_fails(
    server: tuple[str, list[dict[str, Any]]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    heldout = lines_file(tmp_path, ("a", "a"), ("b", "B"), ("c", "c"), ("d", "d"))
    assert evaluate.main(["--url", server[0], "--heldout", heldout, "--parallel", "3"]) == 1
    out, err = capsys.readouterr()
    assert json.loads(out)["share"] == 0.75
    assert "expected B\ngiven    b\n" in err
    assert evaluate.main(["--url", server[0], "--heldout", heldout, "--at-least", "0.75"]) == 0
    assert evaluate.main(["--url", server[0], "--heldout", heldout, "--limit", "1"]) == 0


def test_an_error_of_the_server_is_one_line(server: tuple[str, list[dict[str, Any]]], tmp_path: Path) -> None:
    heldout = lines_file(tmp_path, ("break", "break"))
    with pytest.raises(SystemExit, match="answered 503"):
        evaluate.main(["--url", server[0], "--heldout", heldout])


def test_no_server_is_one_line(tmp_path: Path) -> None:
    heldout = lines_file(tmp_path, ("a", "a"))
    with pytest.raises(SystemExit, match="URLError"):
        evaluate.main(["--url", "http://127.0.0.1:1", "--heldout", heldout])


def test_other_schemes_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        evaluate.main(["--url", "file:///etc/passwd"])
    assert "is no http:// or https:// URL" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "holds no lines"), ("{}", "cannot read .*KeyError"), ("no json", "cannot read .*JSONDecodeError")],
)
def test_broken_held_out_file_is_one_line(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text(content)
    with pytest.raises(SystemExit, match=message):
        evaluate.main(["--heldout", str(path)])
