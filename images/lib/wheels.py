"""Unpacks wheels of the target where PYTHONPATH finds them: nothing is compiled, and no code of the target runs.

What only installers, type checkers and test runs need is left out; metadata and licences stay, for importlib.metadata and
for scanners.
"""

import re
import shutil
from collections.abc import Collection
from pathlib import Path

from arguments import Arguments, RecipeError, say
from elf import read_elf
from trees import unpack_wheel

# RECORD lists files that are left out here; the other metadata files say nothing about the content.
_UNWANTED = re.compile(
    r"(^|/)(tests?|testing)/|\.(pyi|pyx|pxd|pxi|proto)$|(^|/)py\.typed$|\.[ch]$"
    r"|\.dist-info/(RECORD|INSTALLER|REQUESTED|direct_url\.json)$"
)
# libc6 depends on libgcc_s1, for unwinding.
_OF_GLIBC = re.compile(r"(libc|libm|libpthread|libdl|librt|libgcc_s)\.so\.[0-9]+|ld-linux-.*")


def unpack_wheels(arguments: Arguments, root: Path, *, unwanted: str = r"(?!)") -> None:
    """Unpack all wheels among the inputs.

    Args:
        arguments: What the recipe is told.
        root: Folder on PYTHONPATH.
        unwanted: Pattern of more names to leave out.

    Raises:
        RecipeError: There is none.
    """
    wheels = sorted(arguments.inputs.glob("*.whl"))
    if not wheels:
        raise RecipeError("no wheel is among the inputs")
    say("unpack wheels")
    left_out = re.compile(f"{_UNWANTED.pattern}|{unwanted}")
    for wheel in wheels:
        unpack_wheel(wheel, root, wanted=lambda name: not left_out.search(name))
    for data in sorted(root.glob("*.data")):
        # Binary distribution format, "Installing a wheel": purelib and platlib go to the root; the rest is for installers.
        for part in ("purelib", "platlib"):
            if (data / part).is_dir():
                shutil.copytree(data / part, root, dirs_exist_ok=True)
        shutil.rmtree(data)


def check_libraries(root: Path, machine: str, *, brought: Collection[str] = ()) -> None:
    """Refuse libraries for another processor, or that need one besides those that come with glibc.

    Args:
        root: Where to look.
        machine: Processor of the target.
        brought: Names of libraries that the artifact itself brings.

    Raises:
        RecipeError: The first fault, with the file's name.
    """
    for path in sorted(root.rglob("*.so*")):
        if path.is_symlink():
            continue
        elf = read_elf(path)
        if elf is None or elf.machine != machine:
            raise RecipeError(f"{path.relative_to(root)} is not a library for {machine}")
        for needed in elf.needed:
            if needed not in brought and not _OF_GLIBC.fullmatch(needed):
                raise RecipeError(f"{path.relative_to(root)} needs {needed}, which the image does not have")
