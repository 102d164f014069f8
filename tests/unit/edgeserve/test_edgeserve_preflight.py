"""The checks one by one; that the server makes them is tested with the real process."""

import hashlib
import json
import os
import struct
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgebuild.oci.digest import Digest
from edgebuild.oci.tar import file_frame
from edgebuild.plan import model_identity
from edgeserve import exits
from edgeserve.log import Log
from edgeserve.preflight.card import load_identities, model_digest
from edgeserve.preflight.memory import check_memory
from edgeserve.preflight.model import ModelCheckError, check_files, verify_model
from edgeserve.preflight.pages import check_pages, load_alignment
from edgeserve.preflight.paths import check_paths
from edgeserve.preflight.results import Result
from edgeserve.settings import MemorySettings, ModelSettings, Runtime, ServerSettings
from tests.support.kernel_tree import write_kernel_tree

_WEIGHTS = b"GGUF" + bytes(range(256)) * 9000


def _problems(result: Result) -> list[str]:
    return [finding.problem for finding in result.findings]


# --- memory


def _machine(
    folder: Path, *, available_mib: int, limit_mib: int | None = None, controllers: str = "memory"
) -> Path:
    files = {
        "proc/meminfo": f"MemTotal: 99999999 kB\nMemAvailable: {available_mib << 10} kB\n",
        "proc/self/mountinfo": "1 0 0:1 / /sys/fs/cgroup rw - cgroup2 cgroup rw\n",
        "proc/self/cgroup": "0::/\n",
        "sys/fs/cgroup/cgroup.controllers": f"cpu {controllers}\n",
        "sys/fs/cgroup/memory.max": "max\n" if limit_mib is None else f"{limit_mib << 20}\n",
    }
    return write_kernel_tree(folder, files)


def test_memory_that_suffices(tmp_path: Path) -> None:
    result = check_memory(
        MemorySettings(need_bytes=100 << 20), _machine(tmp_path, available_mib=100, limit_mib=100)
    )
    assert (result.exit_code, result.findings) == (exits.OK, ())
    assert result.seen == {"need_mib": 100, "limit_mib": 100, "available_mib": 100}


def test_memory_that_does_not_suffice(tmp_path: Path) -> None:
    settings = MemorySettings(need_bytes=100 << 20)
    root = _machine(tmp_path, available_mib=90, limit_mib=80)
    result = check_memory(settings, root)
    assert result.exit_code == exits.MEMORY
    assert _problems(result) == [
        "the container may use 80 MiB, the plan needs 100 MiB",
        "90 MiB of memory are available, the plan needs 100 MiB",
    ]
    warned = check_memory(replace(settings, check="warn"), root)
    assert warned.exit_code == exits.OK
    assert _problems(warned) == _problems(result)


def test_memory_that_nobody_planned_or_knows(tmp_path: Path) -> None:
    assert check_memory(MemorySettings(), _machine(tmp_path, available_mib=1)).findings == ()
    blind = check_memory(MemorySettings(need_bytes=1 << 50), tmp_path / "nothing")
    assert blind.findings == ()
    assert blind.seen["available_mib"] == "unknown"


def test_own_memory_counts_as_available(tmp_path: Path) -> None:
    root = write_kernel_tree(
        _machine(tmp_path, available_mib=90), {"proc/self/status": f"VmRSS:\t  {10 << 10} kB\n"}
    )
    assert check_memory(MemorySettings(need_bytes=100 << 20), root).findings == ()


def test_no_memory_group_is_a_warning(tmp_path: Path) -> None:
    result = check_memory(MemorySettings(), _machine(tmp_path, available_mib=1, controllers="pids"))
    assert result.exit_code == exits.OK
    (finding,) = result.findings
    assert "does nothing" in finding.problem
    assert "cgroup_enable=memory" in finding.remedy


# --- pages


def _library(folder: Path, alignment: int | None) -> Path:
    """Copy a real ELF file, this Python's, with another alignment of its mapped segments."""
    data = bytearray(Path(sys.executable).resolve().read_bytes())
    if alignment is not None:
        (offset,) = struct.unpack_from("<Q", data, 32)
        entry, count = struct.unpack_from("<HH", data, 54)
        for number in range(count):
            if struct.unpack_from("<I", data, offset + number * entry)[0] == 1:
                struct.pack_into("<Q", data, offset + number * entry + 48, alignment)
    path = folder / "libthing.so"
    path.write_bytes(data)
    return path


def test_alignment_that_fits_the_pages(tmp_path: Path) -> None:
    page = os.sysconf("SC_PAGE_SIZE")
    path = _library(tmp_path, None)
    assert load_alignment(path) % page == 0
    assert load_alignment(path) >= page
    result = check_pages(tmp_path)
    assert (result.findings, result.seen) == ((), {"page_bytes": page})


def test_alignment_that_does_not_fit(tmp_path: Path) -> None:
    page = os.sysconf("SC_PAGE_SIZE")
    _library(tmp_path, page // 2)
    result = check_pages(tmp_path)
    assert result.exit_code == exits.PAGE_SIZE
    assert _problems(result) == [
        f"{tmp_path}/libthing.so: segments are aligned to {page // 2} bytes, pages here have {page}"
    ]


@pytest.mark.parametrize("content", [b"", b"\x7fELF", b"text" * 100, b"\x7fELF\x02\x01" + bytes(200)])
def test_what_is_no_library_is_left_to_the_loader(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "libthing.so").write_bytes(content)
    assert check_pages(tmp_path).findings == ()


# --- paths


def test_paths(tmp_path: Path) -> None:
    assert check_paths("", "").seen == {"state": "not kept"}
    assert check_paths(str(tmp_path), "").seen == {"state": "kept"}
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    for name, problem in (("gone", "No such file or directory"), ("file", "Not a directory")):
        result = check_paths(str(tmp_path / name), "")
        assert result.exit_code == exits.PATHS
        assert _problems(result) == [f"server.state_dir: {tmp_path}/{name} cannot be written: {problem}"]


def test_a_trace_that_cannot_be_written(tmp_path: Path) -> None:
    assert check_paths("", str(tmp_path / "trace.json")).findings == ()
    result = check_paths("", str(tmp_path / "gone/trace.json"))
    assert result.exit_code == exits.PATHS
    assert "No such file or directory" in _problems(result)[0]


# --- model


def _runtime(folder: Path, **settings: Any) -> Runtime:
    """Write a model and its document as edgebuild writes them."""
    model, card = folder / "m.gguf", folder / "model.json"
    if not model.exists():
        model.write_bytes(_WEIGHTS)
        before, after = file_frame("models/m.gguf", len(_WEIGHTS))
        identity = {
            "path": str(model),
            "size_bytes": len(_WEIGHTS),
            "digest": "sha256:" + hashlib.sha256(before + _WEIGHTS + after).hexdigest(),
            "digest_before_hex": before.hex(),
            "digest_after_zero_bytes": len(after),
        }
        card.write_text(json.dumps({"schema_version": 1, "files": [identity]}))
    return Runtime(
        schema_version=1,
        model=ModelSettings(name="m", files=(str(model),), card=settings.pop("card", str(card)), **settings),
        server=ServerSettings(state_dir=str(folder / "state") if (folder / "state").is_dir() else ""),
    )


def _log(folder: Path) -> tuple[Log, Callable[[], str]]:
    path = folder / "log"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    return Log(descriptor), path.read_text


def test_the_model_of_the_image(tmp_path: Path) -> None:
    log, read = _log(tmp_path)
    runtime = _runtime(tmp_path)
    assert check_files(runtime).findings == ()
    verify_model(runtime, log)
    assert "model-check" in read()
    assert "result=ok" in read()
    assert "mb_per_s=" in read()


def _change(model: Path) -> None:
    data = bytearray(model.read_bytes())
    data[len(data) // 2] ^= 1
    model.write_bytes(data)


def test_one_bit_is_found(tmp_path: Path) -> None:
    runtime = _runtime(tmp_path)
    _change(tmp_path / "m.gguf")
    assert check_files(runtime).findings == ()
    with pytest.raises(ModelCheckError, match="bytes are not those") as caught:
        verify_model(runtime, _log(tmp_path)[0])
    assert caught.value.result.exit_code == exits.MODEL_CHANGED
    verify_model(_runtime(tmp_path, check="never"), _log(tmp_path)[0])
    verify_model(_runtime(tmp_path, card=""), _log(tmp_path)[0])


def _of_several(folder: Path) -> tuple[Runtime, tuple[Path, ...]]:
    """Write a model in three files and its document."""
    paths = tuple(folder / f"m-0000{number}-of-00003.gguf" for number in (1, 2, 3))
    identities = []
    for path in paths:
        content = _WEIGHTS + path.name.encode()
        path.write_bytes(content)
        before, after = file_frame(f"models/{path.name}", len(content))
        identities.append(
            {
                "path": str(path),
                "size_bytes": len(content),
                "digest": "sha256:" + hashlib.sha256(before + content + after).hexdigest(),
                "digest_before_hex": before.hex(),
                "digest_after_zero_bytes": len(after),
            }
        )
    card = folder / "model.json"
    card.write_text(json.dumps({"schema_version": 1, "files": identities}))
    model = ModelSettings(name="m", files=tuple(map(str, paths)), card=str(card))
    return Runtime(schema_version=1, model=model), paths


def test_every_file_of_a_model_is_compared(tmp_path: Path) -> None:
    log, read = _log(tmp_path)
    runtime, paths = _of_several(tmp_path)
    assert check_files(runtime).findings == ()
    verify_model(runtime, log)
    assert read().count("result=ok") == 3
    for path in paths:
        whole = path.read_bytes()
        _change(path)
        with pytest.raises(ModelCheckError, match=f"{path.name}: its bytes are not those") as caught:
            verify_model(runtime, log)
        assert caught.value.result.exit_code == exits.MODEL_CHANGED
        path.unlink()
        assert _problems(check_files(runtime)) == [f"{path}: No such file or directory"]
        path.write_bytes(whole[:-1])
        assert check_files(runtime).exit_code == exits.MODEL_CHANGED
        path.write_bytes(whole)


def test_the_identity_of_several_files(tmp_path: Path) -> None:
    runtime, _ = _of_several(tmp_path)
    identities = load_identities(tmp_path / "model.json")
    digests = tuple(Digest.parse(item.digest) for item in identities.values())
    # The builder's label says the same of the layers.
    assert model_digest(identities, runtime.model.files) == str(model_identity(digests))
    assert model_digest(identities, runtime.model.files[:1]) == str(digests[0])
    with pytest.raises(KeyError):
        model_digest(identities, ("/models/other.gguf",))


def test_a_size_is_found_without_reading(tmp_path: Path) -> None:
    runtime = _runtime(tmp_path)
    (tmp_path / "m.gguf").write_bytes(_WEIGHTS[:-1])
    result = check_files(runtime)
    assert result.exit_code == exits.MODEL_CHANGED
    assert _problems(result) == [
        f"{tmp_path}/m.gguf: has {len(_WEIGHTS) - 1} bytes, was built with {len(_WEIGHTS)}"
    ]
    assert check_files(_runtime(tmp_path, check="never")).findings == ()


def test_a_file_that_is_missing_or_none(tmp_path: Path) -> None:
    runtime = _runtime(tmp_path)
    (tmp_path / "m.gguf").unlink()
    assert _problems(check_files(runtime)) == [f"{tmp_path}/m.gguf: No such file or directory"]
    with pytest.raises(ModelCheckError, match="No such file"):
        verify_model(runtime, _log(tmp_path)[0])
    (tmp_path / "m.gguf").mkdir()
    assert check_files(_runtime(tmp_path, check="never")).exit_code == exits.MODEL_FILE


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "cannot be read: No such file"),
        ("{", "does not describe"),
        ("[" * 100_000, "does not describe"),
        ('{"files": [{"path": "/m"}]}', "KeyError"),
        ('{"files": []}', "does not describe"),
        ('{"files": [{"path": "/m", "size_bytes": -1, "digest_after_zero_bytes": 0}]}', "a size is no size"),
        (
            '{"files": [{"path": "/m", "size_bytes": 1, "digest_after_zero_bytes": 99999999999}]}',
            "a size is no size",
        ),
        (
            '{"files": [{"path": "/m", "size_bytes": 1, "digest_after_zero_bytes": 0, "digest": "md5:0"}]}',
            "no sha256",
        ),
    ],
)
def test_a_document_that_says_nothing(tmp_path: Path, content: str | None, problem: str) -> None:
    runtime = _runtime(tmp_path)
    (tmp_path / "model.json").unlink()
    if content is not None:
        (tmp_path / "model.json").write_text(content)
    result = check_files(runtime)
    assert result.exit_code == exits.MODEL_FILE
    assert problem in _problems(result)[0]


def test_a_seal_spares_the_second_reading(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    log, read = _log(tmp_path)
    for _ in range(2):
        verify_model(_runtime(tmp_path), log)
    assert (read().count("result=ok"), read().count("result=sealed")) == (1, 1)
    verify_model(_runtime(tmp_path, check="always"), log)
    assert read().count("result=ok") == 2


def test_a_seal_breaks_with_the_file(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    model = tmp_path / "m.gguf"
    verify_model(_runtime(tmp_path), _log(tmp_path)[0])
    before = model.stat()
    _change(model)
    os.utime(model, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(ModelCheckError, match="bytes are not those"):
        verify_model(_runtime(tmp_path), _log(tmp_path)[0])


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"schema_version": 2}', b'{"schema_version": 1, "files": 1}']
)
def test_a_seal_that_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state/model-seal.json").write_bytes(content)
    log, read = _log(tmp_path)
    for _ in range(2):
        verify_model(_runtime(tmp_path), log)
    assert (read().count("result=ok"), read().count("result=sealed")) == (1, 1)


def test_a_seal_that_cannot_be_kept_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state/model-seal.new").mkdir()
    log, read = _log(tmp_path)
    verify_model(_runtime(tmp_path), log)
    assert "warning model-check" in read()
    assert "the seal cannot be kept" in read()
