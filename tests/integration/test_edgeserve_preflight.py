"""What the server refuses to start with: each fault has one line with its remedy, and an exit code of its own."""

import hashlib
import json
import os
import re
import shutil
import struct
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from edgebuild.oci.tar import file_frame
from edgeserve import exits
from edgeserve.cgroups import memory_group
from tests.support.llama import run_edgeserve, running_server, server_environment, write_runtime

_QUICK = {"server.drain_s": 0}


def _card(folder: Path, model: Path) -> dict[str, str]:
    """Write the model's document as edgebuild does, and return the settings that name it."""
    content = model.read_bytes()
    before, after = file_frame(f"models/{model.name}", len(content))
    identity = {
        "path": str(model),
        "size_bytes": len(content),
        "digest": "sha256:" + hashlib.sha256(before + content + after).hexdigest(),
        "digest_before_hex": before.hex(),
        "digest_after_zero_bytes": len(after),
    }
    card = folder / "model.json"
    card.write_text(json.dumps({"schema_version": 1, "files": [identity]}))
    return {"model.card": str(card)}


@pytest.fixture
def own_model(tiny_model: Path, tmp_path: Path) -> Path:
    """A model that a test may change."""
    return Path(shutil.copy(tiny_model, tmp_path / "own.gguf"))


def _libraries(llama_host: Path, folder: Path, *, without: tuple[str, ...] = ()) -> Path:
    """Copy the engine's libraries but those of some CPU variants."""
    library = folder / "lib"
    library.mkdir()
    for file in (llama_host / "llama_cpp" / "lib").iterdir():
        if not file.name.startswith(tuple(f"libggml-cpu-{variant}" for variant in without)):
            shutil.copy(file, library)
    return library


def _refused(
    llama_host: Path,
    folder: Path,
    model: Path,
    overrides: Mapping[str, Any],
    *,
    prefix: tuple[str | Path, ...] = (),
) -> tuple[int, list[str]]:
    """Run `serve`, which must end by itself, and `check`, which must say the same.

    Returns:
        The exit code, and the lines that say what is wrong.
    """
    environment = server_environment(llama_host, write_runtime(folder, model, overrides))
    seen = []
    for command in ("serve", "check"):
        done = run_edgeserve(environment, command, prefix=prefix)
        assert "Traceback" not in done.stderr
        faults = [
            # What is available changes from moment to moment.
            re.sub(r"\d+ MiB of memory", "N MiB of memory", line.split("preflight ", 1)[1])
            for line in done.stderr.splitlines()
            if " error preflight " in line
        ]
        assert all("remedy=" in fault for fault in faults)
        seen.append((done.returncode, faults))
    assert seen[0] == seen[1]
    return seen[0]


# --- processor


def test_a_processor_that_runs_no_variant(
    llama_host: Path, qemu_host: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """An emulated Nehalem: no AVX, whatever this machine has and /proc/cpuinfo says."""
    library = _libraries(llama_host, tmp_path, without=("x64", "sse42"))
    overrides = {"engine.library_dir": str(library)}
    prefix = (qemu_host / "qemu-x86_64", "-cpu", "Nehalem")
    code, faults = _refused(llama_host, tmp_path, tiny_model, overrides, prefix=prefix)
    assert code == exits.CPU
    assert len(faults) == 1
    assert "runs none of the image's variants: alderlake" in faults[0]


def test_an_emulated_processor_takes_what_it_can(
    llama_host: Path, qemu_host: Path, tiny_model: Path, tmp_path: Path
) -> None:
    environment = server_environment(llama_host, write_runtime(tmp_path, tiny_model))
    done = run_edgeserve(environment, "check", prefix=(qemu_host / "qemu-x86_64", "-cpu", "Nehalem"))
    assert done.returncode == exits.OK
    assert "variants=sse42,x64" in done.stderr


def test_a_library_folder_without_variants(llama_host: Path, tiny_model: Path, tmp_path: Path) -> None:
    library = _libraries(llama_host, tmp_path, without=("",))
    code, faults = _refused(llama_host, tmp_path, tiny_model, {"engine.library_dir": str(library)})
    assert code == exits.CPU
    assert "no libggml-cpu-*.so there" in faults[0]


# --- pages


def test_libraries_linked_for_smaller_pages(llama_host: Path, tiny_model: Path, tmp_path: Path) -> None:
    library = _libraries(llama_host, tmp_path)
    path = library / "libllama.so"
    data = bytearray(path.read_bytes())
    (offset,) = struct.unpack_from("<Q", data, 32)
    entry, count = struct.unpack_from("<HH", data, 54)
    for number in range(count):
        if struct.unpack_from("<I", data, offset + number * entry)[0] == 1:
            struct.pack_into("<Q", data, offset + number * entry + 48, os.sysconf("SC_PAGE_SIZE") // 2)
    path.write_bytes(data)
    code, faults = _refused(llama_host, tmp_path, tiny_model, {"engine.library_dir": str(library)})
    assert code == exits.PAGE_SIZE
    assert "libllama.so: segments are aligned to" in faults[0]


# --- memory


def test_more_than_this_machine_has(llama_host: Path, tiny_model: Path, tmp_path: Path) -> None:
    code, faults = _refused(llama_host, tmp_path, tiny_model, {"memory.need_bytes": 1 << 50})
    assert code == exits.MEMORY
    assert f"the plan needs {1 << 30} MiB" in faults[-1]


def test_a_shortage_may_be_a_warning(llama_host: Path, tiny_model: Path, tmp_path: Path) -> None:
    overrides = _QUICK | {"memory.need_bytes": 1 << 50, "memory.check": "warn"}
    with running_server(llama_host, tmp_path, tiny_model, overrides) as server:
        server.wait_for(r"warning preflight check=memory problem=.* remedy=")
        assert server.terminate() == 0


@pytest.fixture
def small_group() -> Iterator[Path]:
    """A control group with 192 MiB of memory."""
    group = memory_group()
    if os.geteuid() or group is None:
        pytest.skip("needs root and a memory control group")
    folder = group.top / f"edgeserve-test-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made: {error}")
    limit = folder / ("memory.limit_in_bytes" if group.version == 1 else "memory.max")
    try:
        if not limit.exists():
            pytest.skip("the memory controller is not handed down to new groups")
        limit.write_text(str(192 << 20))
        yield folder
    finally:
        folder.rmdir()


def test_a_container_with_too_little(
    llama_host: Path, tiny_model: Path, tmp_path: Path, small_group: Path
) -> None:
    prefix = ("sh", "-c", f'echo $$ > {small_group}/cgroup.procs && exec "$0" "$@"')
    overrides = {"memory.need_bytes": 200 << 20}
    code, faults = _refused(llama_host, tmp_path, tiny_model, overrides, prefix=prefix)
    assert code == exits.MEMORY
    assert "the container may use 192 MiB, the plan needs 200 MiB" in faults[0]
    enough = server_environment(
        llama_host, write_runtime(tmp_path, tiny_model, {"memory.need_bytes": 192 << 20})
    )
    done = run_edgeserve(enough, "check", prefix=prefix)
    assert done.returncode == exits.OK
    assert "limit_mib=192" in done.stderr


# --- state


def test_a_volume_that_cannot_be_written(llama_host: Path, tiny_model: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    user = () if os.geteuid() == 0 else ("--map-root-user",)
    mount = f'mount --bind {state} {state} && mount -o remount,bind,ro {state} && exec "$0" "$@"'
    prefix = ("unshare", *user, "--mount", "sh", "-c", mount)
    if subprocess.run([*prefix, "true"], check=False, capture_output=True).returncode:
        pytest.skip("no mount namespaces here")
    code, faults = _refused(llama_host, tmp_path, tiny_model, {"server.state_dir": str(state)}, prefix=prefix)
    assert code == exits.PATHS
    assert f"{state} cannot be written: Read-only file system" in faults[0]


def test_a_state_folder_that_is_not_there(llama_host: Path, tiny_model: Path, tmp_path: Path) -> None:
    code, faults = _refused(llama_host, tmp_path, tiny_model, {"server.state_dir": str(tmp_path / "gone")})
    assert code == exits.PATHS
    assert len(faults) == 1


# --- model


def test_a_model_is_checked_before_it_is_served(llama_host: Path, own_model: Path, tmp_path: Path) -> None:
    with running_server(llama_host, tmp_path, own_model, _QUICK | _card(tmp_path, own_model)) as server:
        checked, ready = (
            next(number for number, line in enumerate(server.lines) if word in line)
            for word in (" model-check ", " ready ")
        )
        assert checked < ready
        assert "result=ok" in server.lines[checked]
        assert "sha_instructions=" in server.lines[checked]
        assert server.terminate() == 0


def test_a_changed_model(llama_host: Path, own_model: Path, tmp_path: Path) -> None:
    overrides = _card(tmp_path, own_model)
    data = bytearray(own_model.read_bytes())
    data[-1] ^= 1
    own_model.write_bytes(data)
    code, faults = _refused(llama_host, tmp_path, own_model, overrides)
    assert code == exits.MODEL_CHANGED
    assert "its bytes are not those that the image was built with" in faults[0]
    with running_server(
        llama_host, tmp_path, own_model, _QUICK | overrides | {"model.check": "never"}
    ) as server:
        assert server.terminate() == 0


def test_a_model_cut_short_or_gone(llama_host: Path, own_model: Path, tmp_path: Path) -> None:
    overrides = _card(tmp_path, own_model)
    own_model.write_bytes(own_model.read_bytes()[:-4096])
    code, faults = _refused(llama_host, tmp_path, own_model, overrides)
    assert code == exits.MODEL_CHANGED
    assert "bytes, was built with" in faults[0]
    own_model.unlink()
    code, faults = _refused(llama_host, tmp_path, own_model, overrides)
    assert code == exits.MODEL_FILE
    assert "own.gguf: No such file or directory" in faults[0]


def test_the_first_start_leaves_a_seal(llama_host: Path, own_model: Path, tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    overrides = _QUICK | _card(tmp_path, own_model) | {"server.state_dir": str(tmp_path / "state")}
    for result in ("ok", "sealed"):
        with running_server(llama_host, tmp_path, own_model, overrides) as server:
            server.wait_for(f" model-check file=.* result={result}")
            assert server.terminate() == 0
    own_model.touch()
    with running_server(llama_host, tmp_path, own_model, overrides) as server:
        server.wait_for(" model-check file=.* result=ok")
        assert server.terminate() == 0


def test_all_faults_are_told_together(llama_host: Path, tmp_path: Path) -> None:
    overrides = {"memory.need_bytes": 1 << 50, "server.state_dir": str(tmp_path / "gone")}
    code, faults = _refused(llama_host, tmp_path, tmp_path / "no.gguf", overrides)
    assert code == exits.MEMORY
    assert [fault.split()[0] for fault in faults[-2:]] == ["check=paths", "check=model"]
