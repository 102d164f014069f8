"""Whatever is done to an audit log shows, with its place; what the server itself does never looks like that."""

import base64
import hashlib
import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from edgeserve.audit.lines import ORIGIN, encode_line
from edgeverify.audit import Audit, Mark, parse_mark, verify_audit
from edgeverify.audit.__main__ import main
from edgeverify.errors import VerificationError
from tests.unit.edgeserve.audit_logs import (
    device_key,
    log_files,
    open_log,
    public_key,
    request,
    rows,
    settings,
    write_log,
    write_rows,
)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a key and a log of 23 lines in one file, signed to the end; leave it as it is."""
    folder = tmp_path_factory.mktemp("log")
    write_log(folder, 18)
    return folder


def _verify(folder: Path, *marks: Mark) -> Audit:
    return verify_audit([folder / "audit"], public_key(folder), marks=marks)


def _faults(folder: Path, *marks: Mark) -> str:
    with pytest.raises(VerificationError) as caught:
        _verify(folder, *marks)
    return "\n".join(caught.value.reasons)


def _copy(log: Path, folder: Path, change: Callable[[list[bytes]], object] = lambda _: None) -> Path:
    """Copy key and log, with the rows changed."""
    (folder / "audit").mkdir()
    (folder / "device.key").write_bytes((log / "device.key").read_bytes())
    (folder / "device.key").chmod(0o600)
    content = rows(log_files(log)[0])
    change(content)
    write_rows(folder / "audit" / log_files(log)[0].name, content)
    return folder


def test_a_log_verifies(log: Path) -> None:
    audit = _verify(log)
    assert (audit.first_line, audit.last_line, audit.unsigned_lines, audit.notes) == (1, 23, 0, ())
    assert audit.head.line == 23


def test_lines_are_ascii_without_spaces_and_begin_alike(log: Path) -> None:
    for number, row in enumerate(rows(log_files(log)[0]), start=1):
        assert re.match(
            rb'\{"line":%d,"previous":"[0-9a-f]{64}","time":"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z","kind":"[a-z]+"' % number, row
        )  # fmt: skip
        assert b" " not in row


def test_a_changed_line_is_named(log: Path, tmp_path: Path) -> None:
    def change(content: list[bytes]) -> None:
        content[8] = content[8].replace(b'"key:6"', b'"key:7"')

    assert _faults(_copy(log, tmp_path, change)) == (
        "audit-00000001.jsonl:9: line 9 was changed: line 10 carries another hash of it"
    )


def test_a_removed_line_is_named(log: Path, tmp_path: Path) -> None:
    faults = _faults(_copy(log, tmp_path, lambda content: content.pop(8)))
    assert faults == "audit-00000001.jsonl:9: line 9 is missing before line 10"


def test_removed_lines_are_named(log: Path, tmp_path: Path) -> None:
    def change(content: list[bytes]) -> None:
        del content[8:11]

    assert "audit-00000001.jsonl:9: lines 9 to 11 are missing before line 12" in _faults(
        _copy(log, tmp_path, change)
    )


def test_lines_in_another_order_are_named(log: Path, tmp_path: Path) -> None:
    def change(content: list[bytes]) -> None:
        content[8], content[9] = content[9], content[8]

    faults = _faults(_copy(log, tmp_path, change))
    assert "audit-00000001.jsonl:9: line 9 is missing before line 10" in faults
    assert "audit-00000001.jsonl:10: line 9 stands where line 11 belongs" in faults


def test_a_chain_made_anew_lacks_the_signature(log: Path, tmp_path: Path) -> None:
    def change(content: list[bytes]) -> None:
        head, made = ORIGIN, []
        for number, row in enumerate(content):
            fields = json.loads(row)
            body = {
                name: value
                for name, value in fields.items()
                if name not in {"line", "previous", "time", "signature"}
            }
            if number == 8:
                body["client"] = "key:nobody"
            signature = row.partition(b',"signature"')
            line, head = encode_line(head, body, time=fields["time"], sign=None)
            if signature[1]:
                line = line[:-2] + signature[1] + signature[2]
                head = type(head)(line=head.line, digest=hashlib.sha256(line[:-1]).hexdigest())
            made.append(line)
        content[:] = made

    faults = _faults(_copy(log, tmp_path, change))
    assert "is not as it was signed: the signature is not by this key over these bytes" in faults
    assert "changed" not in faults


def test_a_log_without_checkpoints_is_no_log(log: Path, tmp_path: Path) -> None:
    def change(content: list[bytes]) -> None:
        """Drop every checkpoint and chain the rest anew: all hashes are right."""
        head, made = ORIGIN, [content[0]]
        head = type(head)(line=1, digest=hashlib.sha256(content[0][:-1]).hexdigest())
        for row in content[1:]:
            fields = json.loads(row)
            if fields["kind"] != "checkpoint":
                body = {k: v for k, v in fields.items() if k not in {"line", "previous", "time"}}
                line, head = encode_line(head, body, time=fields["time"], sign=None)
                made.append(line)
        content[:] = made

    assert _faults(_copy(log, tmp_path, change)) == (
        "audit-00000001.jsonl:7: more than 5 lines without a signature; checkpoints were removed"
    )


def test_a_cut_end_shows_by_a_mark(log: Path, tmp_path: Path) -> None:
    known = _verify(log).head

    def change(content: list[bytes]) -> None:
        del content[19:]

    cut = _copy(log, tmp_path, change)
    assert _verify(cut).last_line == 19
    assert _faults(cut, known) == (
        "audit-00000001.jsonl:19: the log ends with line 19, and line 23 is known elsewhere: its end was cut off"
    )
    assert _verify(log, known, Mark(line=known.line, digest=known.digest[:13])).last_line == 23
    wrong = Mark(line=known.line, digest="0" * 13)
    assert _faults(log, wrong) == "audit-00000001.jsonl:23: line 23 is not the one that is known elsewhere"


def test_another_key_is_named(log: Path, tmp_path: Path) -> None:
    device_key(tmp_path)
    with pytest.raises(VerificationError) as caught:
        verify_audit([log / "audit"], public_key(tmp_path))
    assert "signed by key" in caught.value.reasons[0]
    assert any("is not as it was signed" in reason for reason in caught.value.reasons)


def test_unsigned_lines_are_told(tmp_path: Path) -> None:
    with open_log(tmp_path) as files:
        files.append([request(1), request(2)])
    audit = _verify(tmp_path)
    assert (audit.last_line, audit.head.line, audit.unsigned_lines) == (3, 1, 2)


def test_a_torn_end_is_a_note_and_only_at_the_end(tmp_path: Path) -> None:
    write_log(tmp_path, 300, settings(file_bytes=1 << 16, total_bytes=1 << 30))
    write_log(tmp_path, 300, settings(file_bytes=1 << 16, total_bytes=1 << 30))
    first, *_, last = log_files(tmp_path)
    assert first != last
    with last.open("ab") as file:
        file.write(b'{"line":')
    assert "torn" in _verify(tmp_path).notes[-1]
    with first.open("ab") as file:
        file.write(b'{"line":')
    assert f"{first.name}:" in _faults(tmp_path)


def test_a_file_in_the_middle_is_missed(tmp_path: Path) -> None:
    write_log(tmp_path, 1200, settings(file_bytes=1 << 16, total_bytes=1 << 30))
    files = log_files(tmp_path)
    assert len(files) >= 3
    assert _verify(tmp_path).files == tuple(files)
    first = json.loads(rows(files[1])[0])["line"]
    after = json.loads(rows(files[2])[0])["line"]
    files[1].unlink()
    assert (
        _faults(tmp_path)
        == f"{files[2].name}:1: lines {first} to {after - 1} are missing before line {after}"
    )


def test_a_beginning_that_nobody_dropped_is_missed(tmp_path: Path) -> None:
    write_log(tmp_path, 1200, settings(file_bytes=1 << 16, total_bytes=1 << 30))
    log_files(tmp_path)[0].unlink()
    assert re.fullmatch(
        r"lines 1 to \d+ are missing, and no signed line says that they were dropped", _faults(tmp_path)
    )


def test_files_may_be_given_in_any_order(tmp_path: Path) -> None:
    write_log(tmp_path, 1200, settings(file_bytes=1 << 16, total_bytes=1 << 30))
    audit = verify_audit(reversed(log_files(tmp_path)), public_key(tmp_path))
    assert audit.files == tuple(log_files(tmp_path))


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"{}\n", b"[1]\n", b"\xff\xfe\n", b'{"line":1,"line":2}\n', b"x" * 1000, b"[" * 100_000 + b"\n",
                b'{"line":1,"previous":"' + b"0" * 64 + b'","kind":"file","format":1,"checkpoint_lines":5}\n'],
)  # fmt: skip
def test_what_is_no_log_is_refused(log: Path, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "audit-1.jsonl").write_bytes(content)
    with pytest.raises(VerificationError):
        verify_audit([tmp_path / "audit-1.jsonl"], public_key(log))


@given(data=st.data())
@hypothesis_settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_no_byte_can_be_changed(
    log: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = log_files(log)[0]
    content = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] = data.draw(st.integers(0, 255).filter(lambda value: value != content[at]))
    changed = tmp_path_factory.mktemp("changed") / path.name
    changed.write_bytes(content)
    if at == len(content) - 1:
        return  # without its newline the last line is torn, which any power failure does too
    with pytest.raises(VerificationError) as caught:
        verify_audit([changed], public_key(log))
    assert all(
        re.match(r"audit-00000001\.jsonl:\d+|no line is signed", reason) for reason in caught.value.reasons
    ), caught.value.reasons


@given(data=st.data())
@hypothesis_settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_no_line_can_be_moved_doubled_or_removed(
    log: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = log_files(log)[0]
    content = rows(path)
    at = data.draw(st.integers(0, len(content) - 2))
    to = data.draw(st.integers(0, len(content)))
    row = content[at]
    match data.draw(st.sampled_from(("move", "double", "remove"))):
        case "move":
            content.insert(to if to <= at else to - 1, content.pop(at))
        case "double":
            content.insert(to, row)
        case _:
            content.pop(at)
    if content == rows(path):
        return
    changed = tmp_path_factory.mktemp("moved") / path.name
    write_rows(changed, content)
    with pytest.raises(VerificationError):
        verify_audit([changed], public_key(log))


def test_marks_as_people_write_them() -> None:
    assert parse_mark("17:0123456789abc") == Mark(line=17, digest="0123456789abc")
    for text in (
        "17",
        "0:0123456789abc",
        "17:0123456789ab",
        "17:0123456789ABC",
        "x:0123456789abc",
        "1:" + "0" * 65,
    ):
        with pytest.raises(VerificationError):
            parse_mark(text)


def test_the_command(log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    public = tmp_path / "device.pub"
    public.write_text(device_key(log).public_pem)
    head = _verify(log).head
    arguments = [str(log / "audit"), "--key", str(public)]
    assert main([*arguments, "--head", f"{head.line}:{head.digest}"]) == 0
    assert capsys.readouterr().out == f"verified lines 1 to 23 in 1 files\nsigned up to 23:{head.digest}\n"
    assert main([*arguments, "--head", "24:0123456789abc"]) == 8
    assert "its end was cut off" in capsys.readouterr().err
    assert main([*arguments, "--head", "nonsense"]) == 8
    assert main([str(log / "audit"), "--key", str(tmp_path / "none")]) == 8
    assert main([str(tmp_path), "--key", str(public)]) == 8


def test_a_private_key_is_refused_as_the_public_one(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(log / "audit"), "--key", str(log / "device.key")]) == 8
    assert "private key" in capsys.readouterr().err


def test_the_form_is_the_documented_one(log: Path) -> None:
    """By the words of docs/audit.md, without any code of ours."""
    key: ec.EllipticCurvePublicKey = public_key(log)
    signed = [row for row in rows(log_files(log)[0]) if b'"signature":"' in row]
    assert len(signed) >= 4
    for row in signed:
        body, _, rest = row.rstrip(b"\n").rpartition(b',"signature":"')
        key.verify(base64.b64decode(rest[:-2]), b"edgeserve audit 1\n" + body, ec.ECDSA(hashes.SHA256()))
    content = [row.rstrip(b"\n") for row in rows(log_files(log)[0])]
    for before, after in itertools.pairwise(content):
        assert json.loads(after)["previous"] == hashlib.sha256(before).hexdigest()
