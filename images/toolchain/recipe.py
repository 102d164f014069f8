"""Tools for the build itself: the image's Python for the host's architecture, to compile bytecode with.

The packages are unpacked and run through their own loader (`images/lib/bytecode.py`): no root, no chroot.
"""

import re
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "lib"))

from arguments import Arguments, RecipeError, run_recipe, say
from bytecode import python_argv, python_environment
from debs import unpack_deb
from trees import settle_modes

_UNWANTED = re.compile(r"usr/share/(?!python3/)|etc/|var/|usr/lib/.*/(gconv|audit)/")


def build(arguments: Arguments) -> None:
    """Build the artifact."""
    say("unpack Python for the host")
    debs = sorted(
        arguments.inputs.glob("*.deb"), key=lambda deb: (not deb.name.startswith("base-files_"), deb.name)
    )
    for deb in debs:
        unpack_deb(deb, arguments.output, wanted=lambda name: not _UNWANTED.match(name))
    settle_modes(arguments.output)
    probe = "import sys, marshal, zlib, hashlib; print('.'.join(map(str, sys.version_info[:2])))"
    done = subprocess.run(
        [*python_argv(arguments.output), "-S", "-B", "-P", "-c", probe],
        env=python_environment(arguments.output),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.stdout.strip() != "3.13":
        raise RecipeError(f"the toolchain's Python does not run on this host: {done.stderr.strip()[-300:]}")


if __name__ == "__main__":
    run_recipe(build)
