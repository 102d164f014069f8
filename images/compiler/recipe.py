"""Tools that compile for every target: zig, CMake and ninja, from their wheels for the host."""

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "lib"))

from arguments import Arguments, RecipeError, run_recipe, say
from elf import read_elf
from trees import settle_modes, unpack_wheel

# Headers of other systems and processors are three quarters of zig's files.
_FOREIGN = re.compile(
    r"ziglang/(doc|lib/docs|lib/libc/(darwin|mingw|musl|wasi|freebsd|netbsd|openbsd)"
    r"|lib/libc/include/(?!(x86|x86_64|aarch64|generic|any)-(linux-any|linux-gnu|glibc)))"
)
_PROGRAMS = ("ziglang/zig", "cmake/data/bin/cmake", "ninja")


def build(arguments: Arguments) -> None:
    """Build the artifact."""
    output = arguments.output
    say("unpack zig, CMake and ninja")
    unpack_wheel(arguments.input("ziglang-*.whl"), output, wanted=lambda name: not _FOREIGN.match(name))
    for pattern in ("cmake-*.whl", "ninja-*.whl"):
        unpack_wheel(arguments.input(pattern), output)
    (ninja,) = output.glob("ninja-*.data/scripts/ninja")
    package = output / "ninja"
    package.rename(output / "ninja-package")
    ninja.rename(package)
    for program in _PROGRAMS:
        elf = read_elf(output / program)
        if elf is None or elf.machine != arguments.machine:
            raise RecipeError(f"{program} is not a program for {arguments.machine}")
        (output / program).chmod(0o755)
    settle_modes(output)


if __name__ == "__main__":
    run_recipe(build)
