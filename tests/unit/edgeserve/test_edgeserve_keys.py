"""Keys, the file they come from, and who comes in."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgeserve.access.door import Door
from edgeserve.access.keys import KeyRing, load_keys, make_key
from edgeserve.access.opening import open_access
from edgeserve.access.watched import AccessError, Watched
from edgeserve.clients import ANONYMOUS
from edgeserve.errors import ApiError
from edgeserve.log import Log
from edgeserve.settings import AccessSettings

_HASH = "sha256:" + "0" * 64


def _file(folder: Path, *lines: str) -> Path:
    path = folder / "keys"
    path.write_text("\n".join(lines))
    return path


def _watched(path: Path, log: Log) -> Watched[KeyRing]:
    return Watched("keys", (str(path),), lambda: load_keys(str(path)), log=log)


def _lines(pipe: int) -> list[str]:
    return os.read(pipe, 1 << 16).decode().splitlines()


def test_a_key_is_found_by_its_hash(tmp_path: Path) -> None:
    keys = [make_key(name) for name in ("phone", "shelf-7", "ops@site.example")]
    ring = load_keys(str(_file(tmp_path, "# clients", "", *(line + "  # note" for _, line in keys))))
    assert len(ring) == 3
    assert [ring.find(key) for key, _ in keys] == ["phone", "shelf-7", "ops@site.example"]
    assert len({key for key, _ in keys}) == 3
    key, line = keys[0]
    assert line == f"phone sha256:{hashlib.sha256(key.encode()).hexdigest()}"
    assert key not in line
    assert ring.find(key[:-1]) is None
    assert ring.find(key + "\n") is None
    assert ring.find(make_key("phone")[0]) is None


def test_only_keys_that_were_made_are_keys(tmp_path: Path) -> None:
    """A word of one's own, hashed by hand, would be guessed."""
    weak = "edge_secret"
    line = f"me sha256:{hashlib.sha256(weak.encode()).hexdigest()}"
    assert load_keys(str(_file(tmp_path, line))).find(weak) is None


def test_an_id_may_change_over_from_key_to_key(tmp_path: Path) -> None:
    old, new = make_key("phone"), make_key("phone")
    ring = load_keys(str(_file(tmp_path, old[1], new[1])))
    assert ring.find(old[0]) == ring.find(new[0]) == "phone"


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("phone", "not `ID sha256:HEX`"),
        ("phone edge_" + "x" * 43, "not `ID sha256:HEX`"),
        (f"phone {_HASH} more", "not `ID sha256:HEX`"),
        (f"phone {_HASH.upper()}", "not `ID sha256:HEX`"),
        (f"-phone {_HASH}", "the id is not"),
        (f"{'p' * 65} {_HASH}", "the id is not"),
        (f"phöne {_HASH}", "the id is not"),
        (f"a {_HASH}\nb {_HASH}", "the same key as that of a"),
    ],
)
def test_a_wrong_line_is_named_and_not_shown(tmp_path: Path, line: str, problem: str) -> None:
    path = _file(tmp_path, "# first", line)
    with pytest.raises(AccessError) as caught:
        load_keys(str(path))
    message = str(caught.value)
    assert problem in message
    assert f"{path}:{2 + line.count(chr(10))}: " in message
    assert "edge_" not in message


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(AccessError, match="there is no such file"):
        load_keys(str(tmp_path / "keys"))
    with pytest.raises(AccessError, match="cannot be read: Is a directory"):
        load_keys(str(tmp_path))
    path = tmp_path / "binary"
    path.write_bytes(b"a \xff")
    with pytest.raises(AccessError, match="not UTF-8 at byte 2"):
        load_keys(str(path))
    path.write_bytes(b"#" * ((1 << 20) + 1))
    with pytest.raises(AccessError, match="longer than 1048576 bytes"):
        load_keys(str(path))
    path.write_text("\n".join(f"a sha256:{number:064x}" for number in range(1001)))
    with pytest.raises(AccessError, match="1001 keys, more than 1000"):
        load_keys(str(path))
    path.chmod(0)
    if os.geteuid() != 0:
        with pytest.raises(AccessError, match="not readable by user"):
            load_keys(str(path))


@pytest.mark.parametrize("name", ["", "-x", "a b", "a\nb", "é", "x" * 65])
def test_an_id_that_is_none(name: str) -> None:
    with pytest.raises(AccessError, match="is no id"):
        make_key(name)


def test_a_changed_file_is_read_and_a_broken_one_is_not_taken(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    old, new = make_key("old"), make_key("new")
    path = _file(tmp_path, old[1])
    keys = _watched(path, Log(writer))
    keys.refresh()
    path.write_text("nonsense")
    keys.refresh()
    keys.refresh()
    assert keys.value.find(old[0]) == "old"
    replacement = tmp_path / "keys.new"
    replacement.write_text(new[1])
    replacement.rename(path)
    keys.refresh()
    assert (keys.value.find(old[0]), keys.value.find(new[0])) == (None, "new")
    path.unlink()
    keys.refresh()
    assert keys.value.find(new[0]) == "new"
    path.write_text(new[1])
    keys.refresh()
    keys.refresh(is_forced=True)
    events = [line.split()[1:3] for line in _lines(reader)]
    assert events == [
        ["error", "keys-not-reloaded"],
        ["info", "keys-reloaded"],
        ["error", "keys-not-reloaded"],
        ["info", "keys-reloaded"],
        ["info", "keys-reloaded"],
    ]


def test_the_door(tmp_path: Path) -> None:
    key, line = make_key("phone")
    keys = _watched(_file(tmp_path, line), Log())
    wrong = f"Bearer {make_key('phone')[0]}"
    right = f"bearer  {key} "

    def outcome(door: Door, certified: str | None, authorization: str) -> str:
        return door.admit(certified=certified, authorization=authorization or None, address="192.0.2.1").name

    def refusal(door: Door, certified: str | None, authorization: str | None) -> str:
        with pytest.raises(ApiError) as caught:
            door.admit(certified=certified, authorization=authorization, address="192.0.2.1")
        error = caught.value
        assert error.status == 401
        assert error.headers["www-authenticate"].startswith('Bearer realm="edgeserve"')
        assert ("invalid_token" in error.headers["www-authenticate"]) == (authorization is not None)
        assert key not in error.message
        return str(error.code)

    open_door = Door(None, requires_key=False)
    client = open_door.admit(certified=None, authorization=wrong, address="192.0.2.1")
    assert (client.name, client.account) == (ANONYMOUS.name, "anonymous 192.0.2.1")
    assert outcome(open_door, "robot", wrong) == "cert:robot"
    either = Door(keys, requires_key=False)
    assert outcome(either, None, right) == "key:phone"
    assert outcome(either, "robot", "") == "cert:robot"
    assert outcome(either, "robot", right) == "key:phone"
    assert refusal(either, "robot", wrong) == "invalid_api_key"
    assert refusal(either, None, None) == "missing_api_key"
    for bad in ("", "Bearer", f"Basic {key}", key, f"Bearer {key} {key}", "Bearer \xff" + key):
        assert refusal(either, None, bad) == "invalid_api_key"
    strict = Door(keys, requires_key=True)
    assert refusal(strict, "robot", None) == "missing_api_key"
    assert outcome(strict, "robot", right) == "key:phone"


def test_what_must_be_there(tmp_path: Path) -> None:
    missing = str(tmp_path / "keys")
    with pytest.raises(AccessError, match="there is no such file"):
        open_access(AccessSettings(keys_file=missing), Log())
    with pytest.raises(AccessError, match="require_key is on"):
        open_access(AccessSettings(keys_file="", require_key=True), Log())
    assert open_access(AccessSettings(keys_file=""), Log()).keys is None
    Path(missing).write_text("")
    access = open_access(AccessSettings(keys_file=missing, require_key=True), Log())
    assert access.keys is not None
    assert len(access.keys.value) == 0


def test_the_command_parts_key_and_line() -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-P", "-m", "edgeserve", "keys", *arguments],
            env={"PYTHONPATH": str(Path("images/server").resolve()), "PATH": os.environ["PATH"]},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    made = run("new", "--id", "phone")
    assert made.returncode == 0
    key = made.stderr.strip()
    assert made.stdout == f"phone sha256:{hashlib.sha256(key.encode()).hexdigest()}\n"
    refused = run("new", "--id", "a b")
    assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (2, "", 1)
    assert run("new").returncode == 2
    assert run().returncode == 2
