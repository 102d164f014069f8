"""Audit logs for tests, written by the server's own code."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from edgeserve.audit.device_key import DeviceKey, load_key, make_key
from edgeserve.audit.files import AuditFiles, Fields
from edgeserve.settings import AuditSettings


def settings(**changes: object) -> AuditSettings:
    """Settings for small logs."""
    return AuditSettings(**({"enabled": True, "checkpoint_lines": 5} | changes))  # type: ignore[arg-type]


def device_key(folder: Path) -> DeviceKey:
    """The key in the folder, made if need be."""
    try:
        return load_key(folder)
    except FileNotFoundError:
        return make_key(folder)


def public_key(folder: Path) -> ec.EllipticCurvePublicKey:
    """The public half of it."""
    key = load_pem_public_key(load_key(folder).public_pem.encode())
    assert isinstance(key, ec.EllipticCurvePublicKey)
    return key


@contextmanager
def open_log(folder: Path, given: AuditSettings | None = None) -> Iterator[AuditFiles]:
    """Open the log in `folder / "audit"`, and close it as a killed process does: nothing more is written."""
    (folder / "audit").mkdir(exist_ok=True)
    files = AuditFiles(folder / "audit", given or settings(), device_key(folder))
    files.open()
    try:
        yield files
    finally:
        files.close()


def request(number: int, **more: object) -> Fields:
    """The fields of a line."""
    return {"kind": "request", "client": f"key:{number}", **more}


def write_log(folder: Path, lines: int, given: AuditSettings | None = None) -> list[Path]:
    """Write a log of so many requests and a last checkpoint; returns its files."""
    with open_log(folder, given) as files:
        for start in range(0, lines, 4):
            files.append([request(number) for number in range(start, min(lines, start + 4))])
        files.checkpoint("stop")
    return log_files(folder)


def log_files(folder: Path) -> list[Path]:
    """The files, oldest first."""
    return sorted((folder / "audit").glob("*.jsonl"))


def rows(path: Path) -> list[bytes]:
    """The rows of a file with their newlines."""
    return path.read_bytes().splitlines(keepends=True)


def write_rows(path: Path, content: Sequence[bytes]) -> None:
    """Write a file anew."""
    path.write_bytes(b"".join(content))
