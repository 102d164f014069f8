"""The files of the audit log: what is written can be continued after any end, stays within its bounds, and still verifies."""

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from edgeserve.audit.device_key import DeviceKeyError, load_key, make_key
from edgeserve.audit.errors import AuditError
from edgeserve.audit.files import lock_folder
from edgeverify.audit import Audit, verify_audit
from edgeverify.errors import VerificationError
from tests.support.small_disk import SmallDisk
from tests.unit.edgeserve.audit_logs import (
    device_key,
    log_files,
    open_log,
    public_key,
    request,
    rows,
    settings,
    write_log,
)

_SMALL = settings(file_bytes=1 << 16, total_bytes=1 << 18, checkpoint_lines=50)


def _verify(folder: Path) -> Audit:
    return verify_audit([folder / "audit"], public_key(folder))


def _kinds(folder: Path) -> list[str]:
    return [json.loads(row)["kind"] for path in log_files(folder) for row in rows(path)]


def test_a_log_goes_on_where_it_ended(tmp_path: Path) -> None:
    write_log(tmp_path, 3)
    write_log(tmp_path, 3)
    assert _verify(tmp_path).last_line == len(_kinds(tmp_path)) == 9
    assert _kinds(tmp_path) == ["file", *["request"] * 3, "checkpoint", *["request"] * 3, "checkpoint"]


def test_unsigned_lines_are_counted_over_a_restart(tmp_path: Path) -> None:
    for _ in range(4):
        with open_log(tmp_path) as files:
            files.append([request(1), request(2)])
    assert _kinds(tmp_path) == ["file", *["request"] * 5, "checkpoint", *["request"] * 3]


def test_any_torn_end_is_repaired(tmp_path: Path) -> None:
    """A power failure may leave any part of what no signature covered; here every one, byte by byte."""
    with open_log(tmp_path) as files:
        files.append([request(1), request(2)], checkpoint="time")
        files.append([request(3), request(4)])
    path = log_files(tmp_path)[0]
    whole = path.read_bytes()
    signed = len(b"".join(rows(path)[:4]))
    for length in range(signed, len(whole)):
        path.write_bytes(whole[:length])
        with open_log(tmp_path) as files:
            files.append([request(5)], checkpoint="stop")
        audit = _verify(tmp_path)
        is_clean = whole[:length].endswith(b"\n")
        assert (audit.notes == ()) == is_clean, length
        assert path.read_bytes().startswith(whole[: whole[:length].rfind(b"\n") + 1])


@pytest.mark.parametrize("rest", [bytes(1000), b"\n\n\n", b"{}\n", b'{"line":7}\n' * 3])
def test_what_never_arrived_is_cut_off(tmp_path: Path, rest: bytes) -> None:
    """Some file systems show a file at its new length before its data are on the disk."""
    path = write_log(tmp_path, 3)[0]
    with path.open("ab") as file:
        file.write(rest)
    write_log(tmp_path, 1)
    audit = _verify(tmp_path)
    assert audit.notes == (
        f"{path.name}:6: the end of a file was cut off after a power failure ({len(rest)} bytes)",
    )


@pytest.mark.parametrize("begun", [b"", b'{"line":6,"previous":"00'])
def test_a_file_that_was_only_begun_is_taken_back(tmp_path: Path, begun: bytes) -> None:
    write_log(tmp_path, 3)
    (tmp_path / "audit/audit-00000002.jsonl").write_bytes(begun)
    write_log(tmp_path, 1)
    assert len(log_files(tmp_path)) == 1
    assert "cut off after a power failure" in _verify(tmp_path).notes[0]


def test_a_first_file_that_was_only_begun_is_no_log(tmp_path: Path) -> None:
    (tmp_path / "audit").mkdir()
    (tmp_path / "audit/audit-00000001.jsonl").write_bytes(b'{"line":1,')
    write_log(tmp_path, 1)
    assert _verify(tmp_path).first_line == 1


def test_what_is_not_ours_is_not_continued(tmp_path: Path) -> None:
    path = write_log(tmp_path, 3)[0]
    content = path.read_bytes()
    for wrong in (
        b"hello\n",
        b"{}\n" + content,
        content.replace(b'"signature":"M', b'"signature":"N'),
        content.replace(b'"format":1', b'"format":2'),
    ):
        path.write_bytes(wrong)
        with pytest.raises(AuditError, match=r"audit-00000001\.jsonl"), open_log(tmp_path):
            pass
        assert path.read_bytes() == wrong


def test_files_are_full_and_few(tmp_path: Path) -> None:
    write_log(tmp_path, 1500, _SMALL)
    files = log_files(tmp_path)
    sizes = [path.stat().st_size for path in files]
    assert sum(sizes) <= _SMALL.total_bytes + 20_000
    assert all(_SMALL.file_bytes <= size < _SMALL.file_bytes + 20_000 for size in sizes[:-1])
    audit = _verify(tmp_path)
    assert audit.first_line > 1
    assert audit.notes[0] == f"lines 1 to {audit.first_line - 1} were dropped to keep to the size bound"
    assert all(json.loads(rows(path)[-1])["kind"] == "checkpoint" for path in files[:-1])


def test_no_more_may_go_than_a_line_says(tmp_path: Path) -> None:
    write_log(tmp_path, 1500, _SMALL)
    log_files(tmp_path)[0].unlink()
    with pytest.raises(VerificationError) as caught:
        _verify(tmp_path)
    assert "no signed line says that they were dropped" in caught.value.reasons[0]


def test_killed_between_saying_and_removing(tmp_path: Path) -> None:
    first = write_log(tmp_path, 300, _SMALL)[0]
    os.link(first, tmp_path / "kept")
    with open_log(tmp_path, _SMALL) as files:
        while first.exists():
            files.append([request(number) for number in range(10)])
    os.link(tmp_path / "kept", first)
    assert _verify(tmp_path).first_line == 1
    # The next time that a file goes, it goes with it.
    with open_log(tmp_path, _SMALL) as files:
        while first.exists():
            files.append([request(number) for number in range(10)])
    assert "were dropped" in _verify(tmp_path).notes[0]


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda path: path.unlink(), "was removed"),
        (lambda path: (path.rename(path.with_suffix(".old")), path.write_bytes(b"")), "was replaced"),
        (lambda path: os.truncate(path, 100), "has 100 bytes"),
        (lambda path: path.write_bytes(path.read_bytes() + b"more\n"), "bytes, "),
    ],
)  # fmt: skip
def test_damage_is_found_and_the_chain_goes_on_elsewhere(
    tmp_path: Path, harm: Callable[[Path], object], said: str
) -> None:
    with open_log(tmp_path) as files:
        files.append([request(1)], checkpoint="time")
        assert files.find_damage() == ""
        path = files.path
        harm(path)
        assert said in files.find_damage()
        files.move_on()
        assert files.find_damage() == ""
        assert files.path.name == "audit-00000002.jsonl"
        files.append([request(2)], checkpoint="stop")
        head = files.standing.head
    assert json.loads(rows(log_files(tmp_path)[-1])[0])["line"] == 4
    with pytest.raises(VerificationError, match="fault"):
        _verify(tmp_path)
    # Restarted, it goes on from there.
    with open_log(tmp_path) as files:
        assert files.standing.head == head


def test_a_full_disk_takes_nothing_back_that_was_written(make_disk: Callable[[int], SmallDisk]) -> None:
    disk = make_disk(1 << 20)
    with open_log(disk.path) as files:
        files.append([request(number) for number in range(20)], checkpoint="time")
        before, head = files.path.read_bytes(), files.standing.head
        disk.fill(leave_bytes=0)
        for _ in range(3):
            with pytest.raises(AuditError, match="No space left on device"):
                files.append([request(number, prompt="x" * 2000) for number in range(20)])
            assert files.path.read_bytes() == before
            assert files.standing.head == head
            assert files.find_damage() == ""
        disk.make_room()
        files.append([request(21)], checkpoint="stop")
    assert _verify(disk.path).last_line == head.line + 2


def test_a_full_disk_at_the_start_of_a_file(make_disk: Callable[[int], SmallDisk]) -> None:
    disk = make_disk(1 << 20)
    with open_log(disk.path, _SMALL) as files:
        while files.standing.size_bytes < _SMALL.file_bytes:
            files.append([request(1)])
        disk.fill(leave_bytes=0)
        failed = 0
        for _ in range(3):
            try:
                files.append([request(2)])
            except AuditError:
                failed += 1
        assert failed >= 2  # the page that the last file has begun may take a line or two
        disk.make_room()
        files.append([request(3)], checkpoint="stop")
        assert files.path.name == "audit-00000002.jsonl"
    assert _verify(disk.path).notes == ()


def test_one_server_to_a_folder(tmp_path: Path) -> None:
    descriptor = lock_folder(tmp_path / "audit")
    with pytest.raises(AuditError, match="in use by another server"):
        lock_folder(tmp_path / "audit")
    os.close(descriptor)
    os.close(lock_folder(tmp_path / "audit"))
    with pytest.raises(AuditError, match="No such file"):
        lock_folder(tmp_path / "none/audit")


def test_the_key_is_made_once_and_private(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_key(tmp_path)
    made = make_key(tmp_path)
    path = tmp_path / "device.key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load_key(tmp_path).public_pem == made.public_pem
    assert [entry.name for entry in tmp_path.iterdir()] == ["device.key"]
    path.chmod(0o604)
    with pytest.raises(DeviceKeyError, match="0600"):
        load_key(tmp_path)
    path.chmod(0o660)  # Kubernetes' fsGroup
    load_key(tmp_path)


@pytest.mark.parametrize(
    "key", [ec.generate_private_key(ec.SECP384R1()), ed25519.Ed25519PrivateKey.generate(), None]
)
def test_other_keys_are_refused(
    tmp_path: Path, key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | None
) -> None:
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()) if key else b"nonsense"
    (tmp_path / "device.key").write_bytes(pem)
    (tmp_path / "device.key").chmod(0o600)
    with pytest.raises(DeviceKeyError, match=r"device\.key"):
        load_key(tmp_path)


def test_prompts_are_hashed_by_a_secret_of_the_device(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    mine, other = device_key(tmp_path), device_key(tmp_path / "other")
    assert mine.hash_prompt((1, 2, 3)) == load_key(tmp_path).hash_prompt((1, 2, 3))
    assert (
        len(
            {
                mine.hash_prompt((1, 2, 3)),
                mine.hash_prompt((1, 2, 4)),
                other.hash_prompt((1, 2, 3)),
                mine.hash_prompt(()),
            }
        )
        == 4
    )
