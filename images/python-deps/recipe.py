"""The server's Python dependencies: wheels of the target."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "lib"))

from arguments import Arguments, run_recipe
from bytecode import compile_tree
from trees import settle_modes
from wheels import check_libraries, unpack_wheels

# cryptography needs the module _cffi_backend; these compile declarations, for those who build extension modules.
_UNWANTED = r"^(cffi|pycparser)/"


def build(arguments: Arguments) -> None:
    """Build the artifact."""
    unpack_wheels(arguments, arguments.output, unwanted=_UNWANTED)
    check_libraries(arguments.output, arguments.machine)
    compile_tree(arguments.tools("toolchain"), arguments.output, prefix="/opt/edge/deps")
    settle_modes(arguments.output)


if __name__ == "__main__":
    run_recipe(build)
