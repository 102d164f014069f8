"""gRPC for the server: grpcio and what belongs to it as wheels of the target, and the C++ library that they need."""

import fnmatch
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "lib"))

from arguments import Arguments, run_recipe, say
from bytecode import compile_tree
from debs import keep_status, unpack_deb
from trees import settle_modes
from wheels import check_libraries, unpack_wheels

_PREFIX = "opt/edge/grpc"
# What only clients use: their trusted certificates, and interfaces older than asyncio's; and protobuf's tests.
_UNWANTED = r"^grpc/_cython/_credentials/|^grpc/(beta|framework)/|^google/protobuf/testdata/"
# The copyright lies in gcc-14-base, which the root file system has; this is a link to it.
_OF_DEBIAN = ("usr/lib/*/libstdc++.so.6*", "usr/share/doc/libstdc++6")


def build(arguments: Arguments) -> None:
    """Build the artifact; unlike the other layers of Python it fills the image's root, for the C++ library's sake."""
    root, packages = arguments.output, arguments.output / _PREFIX
    unpack_wheels(arguments, packages, unwanted=_UNWANTED)
    say("unpack the C++ library")
    for deb in sorted(arguments.inputs.glob("*.deb")):
        unpack_deb(deb, root, wanted=lambda name: any(fnmatch.fnmatchcase(name, one) for one in _OF_DEBIAN))
        keep_status(deb, root)
    libraries = root / f"usr/lib/{arguments.machine}-linux-gnu"
    check_libraries(root, arguments.machine, brought={path.name for path in libraries.glob("*.so*")})
    compile_tree(arguments.tools("toolchain"), packages, prefix=f"/{_PREFIX}")
    settle_modes(root)


if __name__ == "__main__":
    run_recipe(build)
