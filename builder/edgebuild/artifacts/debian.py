"""Debian packages for any architecture, through a private apt: no root, nothing of the host's own apt is changed.

1. The host's apt is asked which mirrors it uses; the same servers are asked for the suite that images use.
2. A private apt with its own state fetches the lists (it checks the archive's signature) and resolves the closure.
3. The closure's packages are named by their path in the archive and their sha256.
"""

import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from urllib.parse import unquote

from edgebuild.artifacts.store import Store
from edgebuild.errors import ToolError
from edgebuild.host import Host
from edgebuild.process import Stopping, find_program, run

KEYRINGS = (
    Path("/usr/share/keyrings/debian-archive-keyring.gpg"),
    Path("/usr/share/keyrings/debian-archive-keyring.pgp"),
)
_NO_APT_HINT = "run on Debian or Ubuntu, or use an edgebuild.lock whose inputs are in the store"
_MIRROR_HINT = "run `apt-get update`, or name a Debian mirror with --mirror URL"
_FIELDS = ("SITE", "RELEASE", "ORIGIN", "COMPONENT")


@dataclass(frozen=True, slots=True, kw_only=True)
class Archive:
    """One package archive.

    Attributes:
        name: "main" or "security", as locks call it.
        url: Address without a slash at its end; below it are dists/ and pool/.
        suites: Suites read from it, e.g. ("trixie", "trixie-updates").
        proxy: What the host's apt reaches it through, or "".
    """

    name: str
    url: str
    suites: tuple[str, ...]
    proxy: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """One resolved package.

    Attributes:
        name: Its name.
        version: Its version, with epoch.
        archive: Name of the archive that has it.
        path: Where it lies there.
        sha256: Hash of the file.
        size_bytes: Its length.
    """

    name: str
    version: str
    archive: str
    path: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolution:
    """A closure.

    Attributes:
        packages: Sorted by name.
        epoch_s: Date of the newest archive that was read, in seconds since 1970.
    """

    packages: tuple[Package, ...]
    epoch_s: int


def find_archives(suite: str, *, host: Host, mirrors: tuple[str, ...] = ()) -> tuple[Archive, ...]:
    """Find where this host gets Debian packages from.

    Args:
        suite: Code name, e.g. "trixie".
        host: Its apt is asked.
        mirrors: Addresses given by the user: the main archive and, if given, the one of security updates. They replace
            what apt says.

    Raises:
        ToolError: There is no apt, or it knows no Debian mirror.
    """
    if mirrors:
        names = ("main", "security")
        suites = ((suite,), (f"{suite}-security",))
        return tuple(
            Archive(name=name, url=url.rstrip("/"), suites=own, proxy=_apt_proxy(url, host))
            for name, url, own in zip(names, mirrors, suites, strict=False)
        )
    targets = _debian_sources(host)
    main = _best(targets, lambda release: not release.endswith(("-security", "-updates", "-backports")))
    if main is None:
        raise ToolError("this host's apt knows no Debian mirror", hint=_MIRROR_HINT)
    updates = any(site == main and release.endswith("-updates") for site, release in targets)
    archives = [
        Archive(
            name="main",
            url=main,
            suites=(suite, f"{suite}-updates") if updates else (suite,),
            proxy=_apt_proxy(main, host),
        )
    ]
    if security := _best(targets, lambda release: release.endswith("-security")):
        archives.append(
            Archive(
                name="security", url=security, suites=(f"{suite}-security",), proxy=_apt_proxy(security, host)
            )
        )
    return tuple(archives)


def resolve_packages(
    closures: tuple[tuple[str, ...], ...],
    *,
    architecture: str,
    archives: tuple[Archive, ...],
    host: Host,
    store: Store,
    stop: Stopping | None = None,
) -> tuple[Resolution, ...]:
    """Find, for each closure on its own, its packages and all that they depend on, in their current versions.

    Args:
        closures: Packages asked for, closure by closure; the lists are fetched once for all.
        architecture: Debian's name, e.g. "arm64"; need not be the host's.
        archives: Where to look.
        host: This machine.
        store: Keeps apt's lists between runs.
        stop: Ends apt from another thread.

    Returns:
        The closures in the same order.

    Raises:
        ToolError: The keyring is missing, a mirror does not answer or has no such suite, or a package is not there.
    """
    keyring = next((path for path in KEYRINGS if path.is_file()), None)
    if keyring is None:
        raise ToolError(
            f"the keys of Debian's archive are missing: {KEYRINGS[0]}",
            hint="install the package debian-archive-keyring",
        )
    apt = _PrivateApt(store.scratch(f"apt-{architecture}"), host, stop)
    suites = ", ".join(suite for archive in archives for suite in archive.suites)
    where = f"{suites} for {architecture} from {' and '.join(archive.url for archive in archives)}"
    with store.alone(f"apt-{architecture}"):
        apt.configure(architecture, archives, keyring)
        apt.run(
            "update",
            "-q",
            "-o",
            "APT::Update::Error-Mode=any",
            failure=f"apt cannot read {where}",
            hint="check the network and the mirror, or name another one with --mirror URL",
        )
        epoch_s = apt.newest_release_s()
        return tuple(
            Resolution(packages=_closure(apt, names, archives, where), epoch_s=epoch_s) for names in closures
        )


def _closure(
    apt: "_PrivateApt", names: tuple[str, ...], archives: tuple[Archive, ...], where: str
) -> tuple[Package, ...]:
    uris = apt.run(
        "install",
        "--print-uris",
        "-qq",
        *names,
        failure=f"apt finds no versions of {' '.join(names)} in {where} that go together",
        hint="look at the recipe's packages",
    )
    chosen = tuple(_chosen(uris, archives))
    records = apt.records(tuple(f"{item.name}={item.version}" for item in chosen))
    return tuple(sorted((_package(item, records) for item in chosen), key=lambda item: item.name))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Chosen:
    name: str
    version: str
    archive: str
    path: str


class _PrivateApt:
    """apt-get with a state folder of its own."""

    def __init__(self, folder: Path, host: Host, stop: Stopping | None) -> None:
        self._folder = folder
        self._stop = stop
        self._environment = {
            **host.environment,
            "APT_CONFIG": str(folder / "apt.conf"),
            "LC_ALL": "C",
            "DEBIAN_FRONTEND": "noninteractive",
        }
        self._host = host

    def configure(self, architecture: str, archives: tuple[Archive, ...], keyring: Path) -> None:
        """Write its configuration; the host's is not read, except for proxies and certificates."""
        for name in ("state/lists/partial", "cache/archives/partial", "etc/preferences.d"):
            (self._folder / name).mkdir(parents=True, exist_ok=True)
        (self._folder / "status").write_text("")
        (self._folder / "sources.list").write_text(
            "".join(
                f"deb [signed-by={keyring} arch={architecture}] {archive.url} {suite} main\n"
                for archive in archives
                for suite in archive.suites
            )
        )
        settings = {
            "APT::Architecture": architecture,
            "APT::Install-Recommends": "false",
            "APT::Sandbox::User": "",
            "Acquire::Languages": "none",
            "Acquire::Retries": "3",
            "Acquire::http::Timeout": "30",
            "Acquire::https::Timeout": "30",
            "Dir::Etc": f"{self._folder}/etc",
            "Dir::Etc::main": "/dev/null",
            "Dir::Etc::parts": "/dev/null",
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::Etc::sourcelist": f"{self._folder}/sources.list",
            "Dir::State": f"{self._folder}/state",
            "Dir::State::status": f"{self._folder}/status",
            "Dir::Cache": f"{self._folder}/cache",
        }
        lines = [f'{name} "{value}";' for name, value in settings.items()]
        lines += [f'APT::Architectures {{"{architecture}";}};', *_network_settings(self._host)]
        (self._folder / "apt.conf").write_text("\n".join(lines) + "\n")

    def run(self, *arguments: str, failure: str, hint: str) -> str:
        """Run apt-get and return its output."""
        done = run(
            ["apt-get", *arguments],
            environment=self._environment,
            check=False,
            hint=_NO_APT_HINT,
            stop=self._stop,
        )
        if done.returncode != 0:
            said = [line[3:].strip() for line in done.stderr.splitlines() if line.startswith("E: ")]
            raise ToolError(f"{failure}: {' | '.join(said[:3]) or done.stderr.strip()[-200:]}", hint=hint)
        return done.stdout

    def records(self, packages: tuple[str, ...]) -> dict[str, dict[str, str]]:
        """Read the archive's records of package versions, by path in the archive."""
        done = run(["apt-cache", "show", "--", *packages], environment=self._environment, hint=_NO_APT_HINT)
        found = {}
        for stanza in done.stdout.split("\n\n"):
            fields = dict(re.findall(r"^([A-Za-z0-9-]+): (.*)$", stanza, re.MULTILINE))
            if "Filename" in fields:
                found[fields["Filename"]] = fields
        return found

    def newest_release_s(self) -> int:
        """Read the dates of the Release files; the newest counts."""
        releases = (self._folder / "state/lists").glob("*Release")
        texts = [path.read_text("utf-8", "replace") for path in releases]
        lines = [match[1] for text in texts if (match := re.search(r"^Date: (.+)$", text, re.MULTILINE))]
        dates = [int(parsedate_to_datetime(line).timestamp()) for line in lines]
        if not dates:
            raise ToolError(f"no Release file with a date is among the lists in {self._folder}")
        return max(dates)


def _debian_sources(host: Host) -> tuple[tuple[str, str], ...]:
    """List (address, release) of the host's Debian archives."""
    environment = {**host.environment, "LC_ALL": "C"}
    form = "|".join(f"$({name})" for name in _FIELDS)
    done = run(["apt-get", "indextargets", "--format", form], environment=environment, hint=_NO_APT_HINT)
    targets = [line.split("|") for line in dict.fromkeys(done.stdout.splitlines())]
    found = [
        (site.rstrip("/"), release)
        for site, release, origin, component in targets
        if origin == "Debian" and component == "main"
    ]
    if not found:
        # A fresh container has no lists, from which apt would know the origin; then an archive's customary name decides.
        done = run(["apt-get", "update", "--print-uris"], environment=environment, hint=_NO_APT_HINT)
        sources = re.findall(r"^'(\S+?)/dists/([^/\s]+)/InRelease'", done.stdout, re.MULTILINE)
        found = [
            (site, release) for site, release in sources if site.endswith(("/debian", "/debian-security"))
        ]
    return tuple((site, release) for site, release in found if site.startswith(("http://", "https://")))


def _best(targets: tuple[tuple[str, str], ...], wanted: Callable[[str], bool]) -> str | None:
    return next((site for site, release in targets if wanted(release)), None)


def _network_settings(host: Host) -> Iterator[str]:
    """Yield the host's own settings for proxies and certificates."""
    done = run(
        ["apt-config", "dump", "--no-empty", "--format", '%f "%v";%n', "Acquire::http", "Acquire::https"],
        environment={**host.environment, "LC_ALL": "C"},
        hint=_NO_APT_HINT,
    )
    for line in done.stdout.splitlines():
        if re.match(r"Acquire::https?::\S+ ", line) and "::Timeout" not in line:
            yield line


def _apt_proxy(url: str, host: Host) -> str:
    """Return the proxy that the host's apt is configured with for a mirror, or ""."""
    if find_program("apt-config", path=host.environment.get("PATH")) is None:
        return ""
    scheme, _, rest = url.partition("://")
    server = re.split(r"[:/]", rest, maxsplit=1)[0]
    names = (f"Acquire::{scheme}::Proxy::{server}", f"Acquire::{scheme}::Proxy")
    words = [word for number, name in enumerate(names) for word in (f"PROXY{number}", name)]
    done = run(
        ["apt-config", "shell", *words],
        environment={**host.environment, "LC_ALL": "C"},
        hint=_NO_APT_HINT,
    )
    values = dict(line.split("=", 1) for line in shlex.split(done.stdout))
    chosen = values.get("PROXY0") or values.get("PROXY1") or ""
    return "" if chosen == "DIRECT" else chosen


def _chosen(uris: str, archives: tuple[Archive, ...]) -> Iterator[_Chosen]:
    """Read apt's list of files: 'URI' name_version_architecture.deb size hash."""
    for line in uris.splitlines():
        words = shlex.split(line)
        if len(words) < 3:
            continue
        uri, file = words[0], words[1]
        archive = next((item for item in archives if uri.startswith(f"{item.url}/")), None)
        if archive is None:
            raise ToolError(f"apt would take {file} from {uri}, which is in no archive that was asked")
        name, version, _ = file.split("_")
        path = unquote(uri.removeprefix(f"{archive.url}/"))
        yield _Chosen(name=name, version=unquote(version), archive=archive.name, path=path)


def _package(item: _Chosen, records: Mapping[str, Mapping[str, str]]) -> Package:
    record = records.get(item.path)
    if record is None or "SHA256" not in record:
        raise ToolError(f"the archive's lists have no sha256 of {item.path}", hint=_MIRROR_HINT)
    return Package(
        name=item.name,
        version=item.version,
        archive=item.archive,
        path=item.path,
        sha256=record["SHA256"].lower(),
        size_bytes=int(record["Size"]),
    )
