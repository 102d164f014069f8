"""The server's Python dependencies: wheels of the target, unpacked where PYTHONPATH finds them.

Wheels only, so nothing is compiled and no code of the target runs. What only installers, type checkers and test runs
need is left out; metadata and licences stay, for importlib.metadata and for scanners.
"""

import re
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "lib"))

from arguments import Arguments, RecipeError, run_recipe, say
from bytecode import compile_tree
from elf import read_elf
from trees import settle_modes, unpack_wheel

# RECORD lists files that are left out here; the other metadata files say nothing about the content.
_UNWANTED = re.compile(
    r"(^|/)(tests?|testing)/|\.pyi$|(^|/)py\.typed$|\.[ch]$|\.dist-info/(RECORD|INSTALLER|REQUESTED|direct_url\.json)$"
    # cryptography needs the module _cffi_backend; these compile declarations, for those who build extension modules.
    r"|^(cffi|pycparser)/"
)


def build(arguments: Arguments) -> None:
    """Build the artifact."""
    wheels = sorted(arguments.inputs.glob("*.whl"))
    if not wheels:
        raise RecipeError("no wheel is among the inputs")
    say("unpack wheels")
    for wheel in wheels:
        unpack_wheel(wheel, arguments.output, wanted=lambda name: not _UNWANTED.search(name))
    for data in sorted(arguments.output.glob("*.data")):
        # Binary distribution format, "Installing a wheel": purelib and platlib go to the root; the rest is for installers.
        for part in ("purelib", "platlib"):
            if (data / part).is_dir():
                shutil.copytree(data / part, arguments.output, dirs_exist_ok=True)
        shutil.rmtree(data)
    check_libraries(arguments.output, arguments.machine)
    compile_tree(arguments.tools("toolchain"), arguments.output, prefix="/opt/edge/deps")
    settle_modes(arguments.output)


def check_libraries(root: Path, machine: str) -> None:
    """Refuse extension modules for another processor, or that need a library besides those that come with glibc.

    Raises:
        RecipeError: The first fault, with the file's name.
    """
    for path in sorted(root.rglob("*.so*")):
        elf = read_elf(path)
        if elf is None or elf.machine != machine:
            raise RecipeError(f"{path.relative_to(root)} is not a library for {machine}")
        for needed in elf.needed:
            # libc6 depends on libgcc_s1, for unwinding.
            if not re.fullmatch(
                r"(libc|libm|libpthread|libdl|librt|libgcc_s)\.so\.[0-9]+|ld-linux-.*", needed
            ):
                raise RecipeError(f"{path.relative_to(root)} needs {needed}, which the image does not have")


if __name__ == "__main__":
    run_recipe(build)
