"""Debian's side that needs no network: which mirrors a host's apt names, and what is said when apt fails.

apt-get, apt-config and apt-cache are small programs of these tests, first on PATH.
"""

from pathlib import Path

import pytest

from edgebuild.artifacts.debian import Archive, Package, find_archives, resolve_packages
from edgebuild.artifacts.store import Store
from edgebuild.errors import ToolError
from edgebuild.host import Host
from tests.unit.artifacts.telling import host_at

MAIN = Archive(name="main", url="http://m.test/debian", suites=("trixie",), proxy="")
HASH = "a" * 64


def programs(folder: Path, **scripts: str) -> Host:
    """Make a host whose PATH begins with the given programs."""
    place = folder / "bin"
    place.mkdir(exist_ok=True)
    for name, script in scripts.items():
        path = place / name.replace("_", "-")
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
    host = host_at(folder)
    return host_at(folder, PATH=f"{place}:{host.environment['PATH']}")


def lines(*targets: str) -> str:
    return "cat <<'END'\n" + "\n".join(targets) + "\nEND" if targets else "true"


def archives(
    folder: Path, *targets: str, sources: tuple[str, ...] = (), proxies: str = ""
) -> tuple[Archive, ...]:
    """Find the archives of a host whose apt says this of its lists and of its sources."""
    script = f"if [ $1 = update ]; then\n{lines(*sources)}\nelse\n{lines(*targets)}\nfi"
    host = programs(folder, apt_get=script, apt_config=proxies or "true")
    return find_archives("trixie", host=host)


def test_mirrors_of_a_debian_host(tmp_path: Path) -> None:
    found = archives(
        tmp_path,
        "http://m.test/debian/|bookworm|Debian|main",
        "http://m.test/debian/|bookworm-updates|Debian|main",
        "http://m.test/debian/|bookworm-backports|Debian|main",
        "http://m.test/debian/|bookworm|Debian|non-free",
        "https://s.test/debian-security|bookworm-security|Debian|main",
        "https://other.test/apt|bookworm|Other|main",
        "https://other.test/debian|bookworm|Other|main",
    )
    assert found == (
        Archive(name="main", url="http://m.test/debian", suites=("trixie", "trixie-updates"), proxy=""),
        Archive(name="security", url="https://s.test/debian-security", suites=("trixie-security",), proxy=""),
    )


def test_mirrors_of_a_host_whose_lists_were_never_fetched(tmp_path: Path) -> None:
    found = archives(
        tmp_path,
        sources=(
            "'https://packages.test/apt/dists/stable/InRelease' packages.test_InRelease 0 ",
            "'http://m.test/debian/dists/bookworm/InRelease' m.test_debian_dists_bookworm_InRelease 0 ",
            "'http://m.test/debian-security/dists/bookworm-security/InRelease' m.test_InRelease 0 ",
            "'http://m.test/debian/dists/bookworm/main/binary-amd64/Packages.xz' m.test_Packages 0 ",
        ),
    )
    assert [(archive.name, archive.url) for archive in found] == [
        ("main", "http://m.test/debian"),
        ("security", "http://m.test/debian-security"),
    ]


def test_host_without_debian_mirror(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match="knows no Debian mirror") as caught:
        archives(tmp_path, "http://u.test/ubuntu|noble|Ubuntu|main")
    assert "--mirror" in caught.value.hint


def test_host_without_apt(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match="apt-get is not installed") as caught:
        find_archives("trixie", host=host_at(tmp_path, PATH=str(tmp_path)))
    assert "edgebuild.lock" in caught.value.hint


def test_mirrors_given_by_the_user_need_no_apt(tmp_path: Path) -> None:
    host = host_at(tmp_path, PATH=str(tmp_path))
    found = find_archives("trixie", host=host, mirrors=("https://a.test/d/", "https://a.test/s"))
    assert found == (
        Archive(name="main", url="https://a.test/d", suites=("trixie",), proxy=""),
        Archive(name="security", url="https://a.test/s", suites=("trixie-security",), proxy=""),
    )


@pytest.mark.parametrize(
    ("said", "proxy"),
    [
        ("echo \"PROXY1='http://p.test:3128'\"", "http://p.test:3128"),
        ("echo \"PROXY0='http://own.test:1' PROXY1='http://p.test:3128'\"", "http://own.test:1"),
        ("echo \"PROXY0='DIRECT' PROXY1='http://p.test:3128'\"", ""),
    ],
)
def test_proxy_of_the_hosts_apt_is_taken_over(tmp_path: Path, said: str, proxy: str) -> None:
    (found,) = archives(tmp_path, "http://m.test/debian|bookworm|Debian|main", proxies=said)
    assert found.proxy == proxy


RECORD = f"Package: p\\nVersion: 1:2+b\\nFilename: pool/main/p/p_2+b_arm64.deb\\nSize: 7\\nSHA256: {HASH}\\n"
RELEASE = "mkdir -p $(dirname $APT_CONFIG)/state/lists; printf 'Origin: Debian\\nDate: Sat, 14 Nov 2026 10:00:00 UTC\\n'"
UPDATE = f'if [ "$1" = update ]; then {RELEASE} > $(dirname $APT_CONFIG)/state/lists/x_InRelease; exit 0; fi'
URI = "'http://m.test/debian/pool/main/p/p_2%2bb_arm64.deb' p_1%3a2%2bb_arm64.deb 7 MD5Sum:x"


def resolve(host: Host, store: Store) -> tuple[Package, ...]:
    (found,) = resolve_packages((("p",),), architecture="arm64", archives=(MAIN,), host=host, store=store)
    assert found.epoch_s == 1_794_650_400
    return found.packages


def test_closure_is_named_by_path_and_hash(tmp_path: Path, store: Store) -> None:
    host = programs(
        tmp_path,
        apt_get=f'{UPDATE}\n[ "$1" = install ] && {lines(URI)}',
        apt_config="true",
        apt_cache=f"[ $3 = p=1:2+b ] && printf '{RECORD}'",
    )
    assert resolve(host, store) == (
        Package(
            name="p",
            version="1:2+b",
            archive="main",
            path="pool/main/p/p_2+b_arm64.deb",
            sha256=HASH,
            size_bytes=7,
        ),
    )
    configuration = (store.scratch("apt-arm64") / "apt.conf").read_text()
    assert 'APT::Architecture "arm64";' in configuration
    assert "http://m.test/debian trixie main" in (store.scratch("apt-arm64") / "sources.list").read_text()


def test_proxies_of_the_host_reach_the_private_apt(tmp_path: Path, store: Store) -> None:
    host = programs(
        tmp_path,
        apt_get=f'{UPDATE}\n[ "$1" = install ] && {lines(URI)}',
        apt_config="""echo 'Acquire::http::Proxy "http://p.test:3128";'; echo 'Acquire::http "";'""",
        apt_cache=f"printf '{RECORD}'",
    )
    resolve(host, store)
    configuration = (store.scratch("apt-arm64") / "apt.conf").read_text()
    assert 'Acquire::http::Proxy "http://p.test:3128";' in configuration


def test_mirror_that_cannot_be_read(tmp_path: Path, store: Store) -> None:
    refusal = "echo 'W: hm' >&2; echo \"E: The repository 'x' does not have a Release file.\" >&2; exit 100"
    host = programs(tmp_path, apt_get=refusal, apt_config="true")
    with pytest.raises(ToolError) as caught:
        resolve(host, store)
    assert caught.value.message == (
        "apt cannot read trixie for arm64 from http://m.test/debian: "
        "The repository 'x' does not have a Release file."
    )
    assert "--mirror" in caught.value.hint


def test_package_that_is_not_there(tmp_path: Path, store: Store) -> None:
    refusal = "echo 'E: Unable to locate package p' >&2; exit 100"
    host = programs(tmp_path, apt_get=f"{UPDATE}\n{refusal}", apt_config="true")
    with pytest.raises(ToolError, match="Unable to locate package p"):
        resolve(host, store)


def test_file_from_elsewhere_is_refused(tmp_path: Path, store: Store) -> None:
    uri = URI.replace("m.test", "evil.test")
    host = programs(
        tmp_path, apt_get=f'{UPDATE}\n[ "$1" = install ] && {lines(uri)}', apt_config="true", apt_cache="true"
    )
    with pytest.raises(ToolError, match="in no archive that was asked"):
        resolve(host, store)


def test_record_without_sha256_is_refused(tmp_path: Path, store: Store) -> None:
    host = programs(
        tmp_path,
        apt_get=f'{UPDATE}\n[ "$1" = install ] && {lines(URI)}',
        apt_config="true",
        apt_cache="printf '" + RECORD.replace("SHA256", "MD5sum") + "'",
    )
    with pytest.raises(ToolError, match="no sha256"):
        resolve(host, store)
