"""The lock's format: what is written is read back, and nothing else is accepted."""

import json
from pathlib import Path

import pytest

from edgebuild.errors import LockError
from edgebuild.lock import Lock, LockedArtifact, LockedInput, load_lock, render_lock
from edgebuild.oci.platform import LINUX_AMD64, LINUX_ARM64

DEB = LockedInput(
    kind="deb",
    name="python3.13-minimal",
    version="3.13.5-2+deb13u5",
    file="python3.13-minimal_3.13.5-2+deb13u5_arm64.deb",
    archive="main",
    path="pool/main/p/python3.13/python3.13-minimal_3.13.5-2+deb13u5_arm64.deb",
    sha256="a" * 64,
    size_bytes=2008016,
)
WHEEL = LockedInput(
    kind="pypi", name="ziglang", version="1", file="z.whl", host="aarch64", sha256="b" * 64, size_bytes=0
)
LOCK = Lock(
    epoch_s=1_790_000_000,
    artifacts=(
        LockedArtifact(artifact="rootfs", platform="linux/amd64", inputs=()),
        LockedArtifact(artifact="rootfs", platform="linux/arm64", inputs=(DEB, WHEEL)),
    ),
)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "edgebuild.lock"
    path.write_bytes(render_lock(LOCK))
    assert load_lock(path) == LOCK
    assert render_lock(load_lock(path)) == path.read_bytes()


def test_every_input_has_a_line_of_its_own() -> None:
    lines = render_lock(LOCK).decode().splitlines()
    assert sum("sha256" in line for line in lines) == 2
    assert all(line.count("sha256") <= 1 for line in lines)


def test_inputs_are_those_of_platform_and_host() -> None:
    assert LOCK.inputs("rootfs", LINUX_ARM64, machine="x86_64") == (DEB,)
    assert LOCK.inputs("rootfs", LINUX_ARM64, machine="aarch64") == (DEB, WHEEL)
    assert LOCK.inputs("rootfs", LINUX_AMD64, machine="x86_64") == ()
    assert LOCK.version_of("python3.13-minimal") == "3.13.5-2+deb13u5"
    with pytest.raises(LockError, match="the lock has no server for linux/arm64"):
        LOCK.inputs("server", LINUX_ARM64, machine="x86_64")
    with pytest.raises(LockError, match="no absent"):
        LOCK.version_of("absent")


def changed(**fields: object) -> bytes:
    document = json.loads(render_lock(LOCK))
    document["artifacts"][1]["inputs"][0] |= fields
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        (b"", "JSON"),
        (b"[]", "document"),
        (b"\xff\xfe", "document"),
        (changed(sha256="A" * 64), "artifacts.1.inputs.0.sha256"),
        (changed(file="../../etc/passwd"), "artifacts.1.inputs.0.file"),
        (changed(file=".hidden"), "artifacts.1.inputs.0.file"),
        (changed(path="/etc/passwd"), "artifacts.1.inputs.0.path"),
        (changed(size_bytes="5"), "artifacts.1.inputs.0.size_bytes"),
        (changed(size_bytes=-1), "artifacts.1.inputs.0.size_bytes"),
        (changed(url="https://x.test"), "artifacts.1.inputs.0.url"),
        (changed(host="sparc"), "artifacts.1.inputs.0.host"),
        (b'{"schema_version": 2, "epoch_s": 1, "artifacts": []}', "schema_version"),
        (b'{"schema_version": 1, "epoch_s": 99999999999999, "artifacts": []}', "epoch_s"),
    ],
)
def test_anything_else_is_refused_with_its_place(tmp_path: Path, raw: bytes, told: str) -> None:
    path = tmp_path / "edgebuild.lock"
    path.write_bytes(raw)
    with pytest.raises(LockError) as caught:
        load_lock(path)
    assert told in caught.value.message
    assert str(path) in caught.value.message
    assert "--update-lock" in caught.value.hint
    assert caught.value.faults


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    path = tmp_path / "edgebuild.lock"
    path.write_bytes(changed(sha256="x", kind="rpm", size_bytes=None))
    with pytest.raises(LockError, match="and 2 more") as caught:
        load_lock(path)
    assert len(caught.value.faults) == 3


def test_absent_and_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(LockError, match="no such lock file"):
        load_lock(tmp_path / "absent.lock")
    with pytest.raises(LockError, match="cannot be read"):
        load_lock(tmp_path)
    (tmp_path / "big.lock").write_bytes(bytes(5 << 20))
    with pytest.raises(LockError, match="larger than"):
        load_lock(tmp_path / "big.lock")
