"""Peers are fetched once, checked against their pins, and never half unpacked."""

import functools
import hashlib
import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.peers.errors import PeerUnavailableError
from tests.support.peers.fetch import peer_prefix
from tests.support.peers.mirror import archive_root
from tests.support.peers.pins import PINS_FILE, PeerPins, Pin, load_pins, render_pins

REPOSITORY = Path(__file__).resolve().parents[2]


class _Silent(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (the name of the base class)
        """Say nothing."""


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Serve a folder as the archive, with an empty cache beside it."""
    root = tmp_path / "mirror"
    (root / "pool").mkdir(parents=True)
    handler = functools.partial(_Silent, directory=os.fspath(root))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv("EDGEBUILD_TEST_MIRROR", f"http://127.0.0.1:{server.server_port}/")
        monkeypatch.setenv("EDGEBUILD_TEST_CACHE", os.fspath(tmp_path / "cache"))
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        yield root
        server.shutdown()
        thread.join()


def write_package(folder: Path, mirror: Path, **changes: object) -> Path:
    """Put a package on the mirror and write a pin file for it, with `changes` to the pin; return that file."""
    tree = folder / "tree"
    for path in ("usr/bin/hello", "usr/share/doc/hello"):
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_text(path, "utf-8")
    (tree / "DEBIAN").mkdir()
    control = (
        "Package: hello\nVersion: 1\nArchitecture: amd64\nMaintainer: Tests <t@localhost>\nDescription: x\n"
    )
    (tree / "DEBIAN/control").write_text(control, "utf-8")
    package = mirror / "pool/hello_1_amd64.deb"
    subprocess.run(
        ["dpkg-deb", "--build", "--root-owner-group", tree, package], check=True, capture_output=True
    )
    content = package.read_bytes()
    fields: dict[str, object] = {
        "suite": "stable", "package": "hello", "architecture": "amd64", "version": "1",
        "path": "pool/hello_1_amd64.deb", "sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content),
    }  # fmt: skip
    pin = Pin(**{**fields, **changes})  # type: ignore[arg-type]
    pins_file = folder / "peers.toml"
    pins_file.write_text(render_pins({"hello": PeerPins(name="hello", about="A test", pins=(pin,))}), "utf-8")
    return pins_file


def test_a_peer_is_unpacked_once_and_then_needs_no_mirror(mirror: Path, tmp_path: Path) -> None:
    pins_file = write_package(tmp_path, mirror)
    prefix = peer_prefix("hello", pins_file=pins_file)
    assert (prefix / "usr/bin/hello").read_text("utf-8") == "usr/bin/hello"
    assert [path.name for path in prefix.parent.iterdir()] == [prefix.name]
    (mirror / "pool/hello_1_amd64.deb").unlink()
    assert peer_prefix("hello", pins_file=pins_file) == prefix


def test_only_the_paths_wanted_are_unpacked(mirror: Path, tmp_path: Path) -> None:
    prefix = peer_prefix("hello", pins_file=write_package(tmp_path, mirror, only=("usr/bin/hello",)))
    assert [path for path in prefix.rglob("*") if path.is_file()] == [prefix / "usr/bin/hello"]


def test_a_path_that_the_package_lacks_is_refused(mirror: Path, tmp_path: Path) -> None:
    with pytest.raises(PeerUnavailableError, match=r"cannot unpack hello_amd64\.deb.*usr/bin/goodbye"):
        peer_prefix("hello", pins_file=write_package(tmp_path, mirror, only=("usr/bin/goodbye",)))


def test_a_package_that_vanished_names_the_line_to_change(mirror: Path, tmp_path: Path) -> None:
    pins_file = write_package(tmp_path, mirror, path="pool/hello_0_amd64.deb")
    with pytest.raises(
        PeerUnavailableError, match=r"no longer has hello 1 of stable: change peers\.toml line (\d+)"
    ) as error:
        peer_prefix("hello", pins_file=pins_file)
    line = int(str(error.value).partition("peers.toml line ")[2].partition(",")[0])
    assert pins_file.read_text("utf-8").splitlines()[line - 1].startswith("sha256 = ")


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"sha256": "0" * 64}, "pinned is 0000"),
        ({"size_bytes": 10}, "longer than the pinned 10 bytes"),
        ({"size_bytes": 1 << 20}, "of 1048576 bytes"),
    ],
)
def test_other_bytes_are_refused(
    mirror: Path, tmp_path: Path, changes: dict[str, object], complaint: str
) -> None:
    with pytest.raises(PeerUnavailableError, match=complaint):
        peer_prefix("hello", pins_file=write_package(tmp_path, mirror, **changes))
    assert list((tmp_path / "cache/peers").iterdir()) == []


def test_a_mirror_that_does_not_answer(mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pins_file = write_package(tmp_path, mirror)
    monkeypatch.setenv("EDGEBUILD_TEST_MIRROR", "http://127.0.0.1:1")
    with pytest.raises(PeerUnavailableError, match=r"cannot download .*Connection refused"):
        peer_prefix("hello", pins_file=pins_file)


def test_the_pin_file_is_as_its_writer_writes_it() -> None:
    pins = load_pins()
    assert render_pins(pins) == PINS_FILE.read_text("utf-8")
    for peer in pins.values():
        for pin in peer.pins:
            assert pin.path.startswith("pool/main/")
            assert len(pin.sha256) == 64
            assert pin.size_bytes > 0


def test_the_mirror_is_the_one_of_apt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGEBUILD_TEST_MIRROR", raising=False)
    configured = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI)"], check=True, capture_output=True, text=True
    ).stdout.split()
    assert f"{archive_root()}/" in {f"{uri.rstrip('/')}/" for uri in configured}


@pytest.mark.parametrize(("option", "outcome"), [((), "1 skipped"), (("--require-tools",), "1 error")])
def test_a_peer_that_cannot_be_had_skips_or_fails(
    tmp_path: Path, option: tuple[str, ...], outcome: str
) -> None:
    (tmp_path / "conftest.py").write_text('pytest_plugins = ("tests.support.fixtures",)\n', "utf-8")
    (tmp_path / "test_it.py").write_text("def test_it(crane): crane.run('version')\n", "utf-8")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([os.fspath(REPOSITORY), *sys.path]),
        "EDGEBUILD_TEST_CACHE": os.fspath(tmp_path / "cache"),
        "EDGEBUILD_TEST_MIRROR": "http://127.0.0.1:1",
    }
    argv = [
        sys.executable,
        "-m",
        "pytest",
        "-rsE",
        "-p",
        "no:cacheprovider",
        f"--rootdir={tmp_path}",
        *option,
        os.fspath(tmp_path),
    ]
    done = subprocess.run(argv, env=environment, cwd=tmp_path, check=False, capture_output=True, text=True)
    assert outcome in done.stdout, done.stdout + done.stderr
    assert "cannot download http://127.0.0.1:1/pool/main/" in done.stdout


@pytest.mark.peers
def test_qemu_runs_an_arm64_program_without_binfmt(qemu_arm64: Path, busybox_arm64: Path) -> None:
    for processor, accepted in (("cortex-a72", True), ("no-such-cpu", False)):
        done = subprocess.run(
            [qemu_arm64, busybox_arm64, "uname", "-m"],
            env={"QEMU_CPU": processor}, check=False, capture_output=True, text=True,
        )  # fmt: skip
        assert (done.returncode == 0) is accepted
        assert (done.stdout == "aarch64\n") is accepted
