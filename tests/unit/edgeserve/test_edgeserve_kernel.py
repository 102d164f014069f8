import os
import platform
from pathlib import Path

import pytest

from edgeserve.cgroups import has_memory_groups, memory_group
from edgeserve.kernel import (
    machine_memory,
    process_memory,
    processor_features,
    processor_name,
    read_temperatures,
)
from tests.support.kernel_tree import write_kernel_tree

_V2_MOUNT = "31 23 0:28 {root} /sys/fs/cgroup ro,nosuid shared:9 - cgroup2 cgroup rw,nsdelegate\n"
_V1_MOUNT = "35 31 0:32 {root} /sys/fs/cgroup/memory ro,nosuid - cgroup cgroup rw,memory\n"
_V2 = "sys/fs/cgroup"
_CONTROLLERS = {f"{_V2}/cgroup.controllers": "cpuset cpu io memory pids\n"}
_CGROUPS = "#subsys_name\thierarchy\tnum_cgroups\tenabled\ncpu\t0\t9\t1\nmemory\t0\t9\t{}\n"


def _limit(root: Path) -> int | None:
    group = memory_group(root)
    assert group is not None
    return group.limit_bytes()


def test_this_machine_tells() -> None:
    own, machine = process_memory(), machine_memory()
    assert own is not None
    assert machine is not None
    assert 0 < own.anonymous_bytes < own.resident_bytes <= own.peak_bytes
    assert own.peak_bytes < machine[1] < machine[0]
    assert processor_name()
    assert processor_features()


def test_a_machine_that_tells_nothing(tmp_path: Path) -> None:
    assert process_memory(tmp_path) is None
    assert machine_memory(tmp_path) is None
    assert list(read_temperatures(tmp_path)) == []
    assert memory_group(tmp_path) is None
    assert has_memory_groups(tmp_path) is None
    assert processor_name(tmp_path) == platform.machine()


@pytest.mark.skipif(platform.machine() != "x86_64", reason="arm64 asks the auxiliary vector")
def test_x86_features_are_those_of_cpuinfo(tmp_path: Path) -> None:
    write_kernel_tree(tmp_path, {"proc/cpuinfo": "model name\t: Box\nflags\t\t: fpu avx2 sha_ni\n\n"})
    assert processor_features(tmp_path) == frozenset({"fpu", "avx2", "sha_ni"})
    assert processor_name(tmp_path) == "Box"
    assert processor_features(tmp_path / "gone") is None


def test_a_raspberry_pi_is_named_by_its_board(tmp_path: Path) -> None:
    write_kernel_tree(
        tmp_path, {"proc/cpuinfo": "processor\t: 0\n\nModel\t\t: Raspberry Pi 4 Model B Rev 1.5\n"}
    )
    assert processor_name(tmp_path) == "Raspberry Pi 4 Model B Rev 1.5"


def test_version_2_takes_the_smallest_limit_on_the_way_up(tmp_path: Path) -> None:
    files = {
        "proc/self/mountinfo": _V2_MOUNT.format(root="/"),
        "proc/self/cgroup": "0::/pod/box\n",
        f"{_V2}/pod/memory.max": f"{64 << 20}\n",
        f"{_V2}/pod/box/memory.max": "max\n",
    }
    write_kernel_tree(tmp_path, files | _CONTROLLERS)
    assert _limit(tmp_path) == 64 << 20
    (tmp_path / f"{_V2}/pod/box/memory.max").write_text(f"{32 << 20}\n")
    assert _limit(tmp_path) == 32 << 20


def test_version_2_in_a_namespace_of_its_own(tmp_path: Path) -> None:
    files = {
        "proc/self/mountinfo": _V2_MOUNT.format(root="/"),
        "proc/self/cgroup": "0::/\n",
        f"{_V2}/memory.max": "1048576\n",
    }
    write_kernel_tree(tmp_path, files | _CONTROLLERS)
    assert _limit(tmp_path) == 1 << 20


def test_a_mount_that_shows_a_part_of_the_hierarchy(tmp_path: Path) -> None:
    files = {
        "proc/self/mountinfo": _V2_MOUNT.format(root="/docker/a\\040b"),
        "proc/self/cgroup": "0::/docker/a b/inner\n",
        f"{_V2}/memory.max": "max\n",
        f"{_V2}/inner/memory.max": "4096\n",
    }
    write_kernel_tree(tmp_path, files | _CONTROLLERS)
    assert _limit(tmp_path) == 4096


@pytest.mark.parametrize("path", ["/../../elsewhere", "/docker/names-of-the-host"])
def test_a_path_that_the_mount_does_not_show(tmp_path: Path, path: str) -> None:
    files = {
        "proc/self/mountinfo": _V2_MOUNT.format(root="/"),
        "proc/self/cgroup": f"0::{path}\n",
        f"{_V2}/memory.max": "8192\n",
        "elsewhere/memory.max": "1\n",
    }
    write_kernel_tree(tmp_path, files | _CONTROLLERS)
    assert _limit(tmp_path) == 8192


@pytest.mark.parametrize(("told", "limit"), [(str(1 << 30), 1 << 30), (str(2**63 - 4096), None)])
def test_version_1_takes_the_limit_of_the_hierarchy(tmp_path: Path, told: str, limit: int | None) -> None:
    files = {
        "proc/self/mountinfo": _V1_MOUNT.format(root="/"),
        "proc/self/cgroup": "4:memory:/box\n1:name=systemd:/\n0::/\n",
        "sys/fs/cgroup/memory/box/memory.stat": f"cache 0\nhierarchical_memory_limit {told}\n",
    }
    write_kernel_tree(tmp_path, files)
    assert _limit(tmp_path) == limit
    assert has_memory_groups(tmp_path)


def test_a_kernel_without_memory_groups(tmp_path: Path) -> None:
    pi = tmp_path / "pi"
    write_kernel_tree(
        pi,
        {
            "proc/self/mountinfo": _V2_MOUNT.format(root="/"),
            "proc/self/cgroup": "0::/\n",
            f"{_V2}/cgroup.controllers": "cpuset cpu io pids\n",
        },
    )
    assert memory_group(pi) is None
    assert has_memory_groups(pi) is False
    for enabled in (0, 1):
        hidden = write_kernel_tree(tmp_path / str(enabled), {"proc/cgroups": _CGROUPS.format(enabled)})
        assert has_memory_groups(hidden) is bool(enabled)


def test_a_file_that_may_not_be_read_is_as_if_it_were_not_there(tmp_path: Path) -> None:
    write_kernel_tree(tmp_path, {"proc/meminfo": "MemTotal: 8 kB\nMemAvailable: 4 kB\n"})
    assert machine_memory(tmp_path) == (8192, 4096)
    if os.geteuid():
        (tmp_path / "proc/meminfo").chmod(0)
        assert machine_memory(tmp_path) is None
