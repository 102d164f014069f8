"""Emulators for the smoke test: static programs of Debian's qemu-user, which run on any Linux of the host's architecture."""

import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "lib"))

from arguments import Arguments, RecipeError, run_recipe, say
from debs import unpack_deb
from elf import read_elf
from trees import settle_modes

_PROGRAMS = ("usr/bin/qemu-aarch64", "usr/bin/qemu-x86_64")
_COPYRIGHT = "usr/share/doc/qemu-user/copyright"


def build(arguments: Arguments) -> None:
    """Build the artifact."""
    say("unpack qemu-user")
    with tempfile.TemporaryDirectory(prefix="qemu-") as folder:
        root = Path(folder)
        deb = arguments.input("qemu-user_*.deb")
        unpack_deb(deb, root, wanted=lambda name: name in {*_PROGRAMS, _COPYRIGHT})
        for name in _PROGRAMS:
            elf = read_elf(root / name)
            if elf is None or elf.machine != arguments.machine or elf.needed:
                raise RecipeError(f"/{name} of {deb.name} is not a static program for {arguments.machine}")
            shutil.copy(root / name, arguments.output)
        shutil.copy(root / _COPYRIGHT, arguments.output)
    settle_modes(arguments.output)


if __name__ == "__main__":
    run_recipe(build)
