"""The root file system: Debian packages unpacked without maintainer scripts, and what replaces those.

1. Unpack, base-files first: it brings /bin, /lib and /sbin as links into /usr, which all others rely on.
2. Leave out documentation (not the copyright files), locales, programs, and modules of Python nobody uses here.
3. Remedies for maintainer scripts: users and groups, certificate bundle, name service, Python's link.
4. State of the package manager for scanners, one file per package.
5. Compile the bytecode, settle the modes, check that every library needed is there and for this processor.
"""

import fnmatch
import os
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "lib"))

from arguments import Arguments, RecipeError, run_recipe, say
from bytecode import compile_tree
from debs import keep_status, unpack_deb
from elf import read_elf
from trees import settle_modes

_USER_LINE = "edge:x:10001:10001:edgebuild service:/nonexistent:/usr/sbin/nologin\n"
_GROUP_LINE = "edge:x:10001:\n"
# Where a device mounts the volume of the server's state.
_STATE = "var/lib/edge"
# First match wins; "-" leaves out, "+" keeps. Names have no leading slash; "*" also matches "/".
_RULES = (
    "+ usr/share/doc/*/copyright",
    "- usr/share/doc/*/*",
    # What is left are links of one package's documentation to another's.
    "+ usr/share/doc/*",
    "+ usr/share/base-passwd/*",
    "+ usr/share/ca-certificates/*",
    "+ usr/share/common-licenses/*",
    "+ usr/lib/locale/C.utf8/*",
    "- usr/share/*",
    "- usr/lib/locale/*",
    "+ usr/bin/python3.13",
    "- usr/bin/*",
    "- usr/sbin/*",
    "- usr/libexec/*",
    "- usr/lib/*/gconv/*",
    "- usr/lib/*/audit/*",
    "- usr/lib/*/libthread_db.*",
    "- usr/lib/*/libpcprofile.*",
    "- usr/lib/*/libmemusage.*",
    "- usr/lib/*/libc_malloc_debug.*",
    "- usr/lib/*/engines-3/*",
    "- usr/lib/binfmt.d/*",
    "- usr/lib/tmpfiles.d/*",
    "- usr/lib/systemd/*",
    "- usr/lib/python3*/__pycache__/*",
    "- usr/lib/python3.13/_sysconfigdata*",
    "+ usr/lib/python3.13/_sysconfigdata__linux_*",
    "- usr/lib/python3.13/ensurepip/*",
    "- usr/lib/python3.13/pydoc_data/*",
    "- usr/lib/python3.13/curses/*",
    "- usr/lib/python3.13/sqlite3/*",
    "- usr/lib/python3.13/dbm/*",
    "- usr/lib/python3.13/idlelib/*",
    "- usr/lib/python3.13/tkinter/*",
    "- usr/lib/python3.13/turtle*",
    "- usr/lib/python3.13/_pyrepl/*",
    "- usr/lib/python3.13/test/*",
    "- usr/lib/python3.13/lib-dynload/readline.*",
    "- usr/lib/python3.13/lib-dynload/_curses*",
    "- usr/lib/python3.13/lib-dynload/_dbm.*",
    "- usr/lib/python3.13/lib-dynload/_sqlite3.*",
    "- usr/lib/python3.13/lib-dynload/_uuid.*",
    "- usr/lib/python3.13/lib-dynload/*test*",
    "- usr/lib/python3.13/lib-dynload/xx*",
    "- usr/lib/valgrind/*",
    "- etc/cron*",
    "- etc/profile*",
    "- etc/update-motd.d/*",
    "- etc/default/*",
    "- etc/dpkg/*",
    "- etc/bindresvport.blacklist",
    "- var/lib/*",
)


def build(arguments: Arguments) -> None:
    """Build the artifact."""
    root = arguments.output
    say("unpack Debian packages")
    debs = sorted(
        arguments.inputs.glob("*.deb"), key=lambda deb: (not deb.name.startswith("base-files_"), deb.name)
    )
    for deb in debs:
        unpack_deb(deb, root, wanted=is_wanted)
    write_remedies(root)
    for deb in debs:
        keep_status(deb, root)
    remove_empty_folders(root)
    say("compile bytecode of the standard library")
    compile_tree(arguments.tools("toolchain"), root / "usr/lib/python3.13", prefix="/usr/lib/python3.13")
    settle_modes(root)
    (root / _STATE).mkdir(parents=True, exist_ok=True)
    for folder, mode in (("tmp", 0o1777), ("var/tmp", 0o1777), (_STATE, 0o1777), ("root", 0o700)):
        (root / folder).chmod(mode)
    check_libraries(root, arguments.machine)


def is_wanted(name: str) -> bool:
    """Say whether a package's file belongs into the image."""
    for rule in _RULES:
        if fnmatch.fnmatchcase(name, rule[2:]):
            return rule[0] == "+"
    return True


def write_remedies(root: Path) -> None:
    """Do what the maintainer scripts of the packages would have done."""
    # base-passwd's postinst copies its master files.
    for name, line in (("passwd", _USER_LINE), ("group", _GROUP_LINE)):
        master = (root / f"usr/share/base-passwd/{name}.master").read_text()
        (root / f"etc/{name}").write_text(master + line)
    shutil.rmtree(root / "usr/share/base-passwd")
    # update-ca-certificates (ca-certificates' postinst) writes one bundle; OpenSSL's default file is /usr/lib/ssl/cert.pem.
    certificates = sorted((root / "usr/share/ca-certificates/mozilla").glob("*.crt"))
    if len(certificates) < 50:
        raise RecipeError(f"ca-certificates brought {len(certificates)} certificates, fewer than 50")
    bundle = root / "etc/ssl/certs/ca-certificates.crt"
    bundle.parent.mkdir(parents=True, exist_ok=True)
    bundle.write_bytes(b"".join(path.read_bytes().rstrip(b"\n") + b"\n" for path in certificates))
    shutil.rmtree(root / "usr/share/ca-certificates")
    openssl = root / "usr/lib/ssl"
    openssl.mkdir(parents=True, exist_ok=True)
    link(openssl / "cert.pem", "../../../etc/ssl/certs/ca-certificates.crt")
    link(openssl / "certs", "../../../etc/ssl/certs")
    # libc-bin's postinst installs nsswitch.conf; without nss modules beyond glibc's own this is all there is.
    (root / "etc/nsswitch.conf").write_text(
        "passwd: files\ngroup: files\nhosts: files dns\nservices: files\n"
    )
    # base-files' postinst.
    for name, target in (("run", "../run"), ("lock", "../run/lock")):
        (root / "var" / name).rmdir()
        link(root / "var" / name, target)
    # The link belongs to python3-minimal, which would bring dpkg and tar.
    link(root / "usr/bin/python3", "python3.13")


def link(path: Path, target: str) -> None:
    """Make a symbolic link, in place of one that a package brought."""
    path.unlink(missing_ok=True)
    path.symlink_to(target)


def remove_empty_folders(root: Path) -> None:
    """Remove folders below /usr and /etc in which nothing is left."""
    for top in ("usr", "etc"):
        for folder, _names, _files in os.walk(root / top, topdown=False):
            path = Path(folder)
            # /sbin is a link to usr/sbin.
            if path.parent != root and path != root / "usr/sbin" and not any(path.iterdir()):
                path.rmdir()


def check_libraries(root: Path, machine: str) -> None:
    """Refuse a root whose programs would miss a library, or that holds one for another processor.

    Raises:
        RecipeError: The first fault, with the file's name.
    """
    found = {}
    for folder, _names, files in os.walk(root):
        for path in (Path(folder, name) for name in files):
            if not path.is_symlink() and (elf := read_elf(path)) is not None:
                found[path] = elf
    triplet = root / f"usr/lib/{machine}-linux-gnu"
    for path, elf in sorted(found.items()):
        place = f"/{path.relative_to(root)}"
        if elf.machine != machine:
            raise RecipeError(f"{place} is for {elf.machine}, not {machine}")
        for needed in elf.needed:
            if not any(
                (folder / needed).is_file() for folder in (triplet, root / "usr/lib", root / "usr/lib64")
            ):
                raise RecipeError(f"{place} needs {needed}, which no package of the recipe brings")
    if not found:
        raise RecipeError("no program was unpacked")


if __name__ == "__main__":
    run_recipe(build)
