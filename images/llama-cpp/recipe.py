"""The inference engine: llama.cpp's libraries for the target, and llama-cpp-python's ctypes modules.

1. Unpack the sources of llama.cpp, which are in llama-cpp-python's sdist.
2. Keep only the CPU variants asked for.
3. Compile with zig for glibc 2.31, with nothing in the output that depends on folder, host or time.
4. Lay out the package `llama_cpp` with an empty `__init__`, the libraries beside it, and the licences.
5. Check processor, symbol versions and needed libraries of every library; compile the bytecode.

`--variants none` builds what quantises and does not run: no CPU backend, and the C++ part unoptimised, which halves the
time; the loops that quantise are C.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "lib"))

from arguments import Arguments, RecipeError, run_recipe, say
from bytecode import compile_tree
from elf import read_elf
from trees import settle_modes, unpack_sdist

VARIANTS = {
    "aarch64": ("armv8.0_1", "armv8.2_2", "armv8.6_2"),
    "x86_64": ("x64", "sse42", "haswell", "alderlake", "icelake"),
}
TARGETS = {"aarch64": "aarch64-linux-gnu.2.31", "x86_64": "x86_64-linux-gnu.2.31"}
# zig refuses -march with these names ("unknown CPU: 'armv8'"); the wrapper puts its own names in their place.
MARCH = {
    "armv8-a": "generic",
    "armv8.2-a+dotprod+fp16": "generic+v8_2a+dotprod+fullfp16",
    "armv8.6-a+dotprod+fp16+sve+i8mm+sve2": "generic+v8_6a+dotprod+fullfp16+sve+i8mm+sve2",
}
LIBRARIES = ("libllama.so", "libggml.so", "libggml-base.so")
MODULES = ("llama_cpp.py", "_ctypes_extensions.py")
# The libraries of the image's root file system that the engine may need, and the newest symbols it may want.
SYSTEM_LIBRARIES = re.compile(
    r"(libc|libm|libpthread|libdl|librt)\.so\.[0-9]+|ld-linux-[a-z0-9-]+\.so\.[0-9]+"
)
GLIBC_LIMIT = (2, 31)
OPTIONS = (
    "CMAKE_BUILD_TYPE=Release",
    "BUILD_SHARED_LIBS=ON",
    "CMAKE_INSTALL_RPATH=$ORIGIN",
    "CMAKE_BUILD_WITH_INSTALL_RPATH=ON",
    "CMAKE_PLATFORM_NO_VERSIONED_SONAME=ON",
    "CMAKE_DISABLE_FIND_PACKAGE_Git=ON",
    # The state of a repository around the build folder must not get in: no git, and an empty name keeps CMake from looking.
    "GIT_EXE=",
    "GIT_EXECUTABLE=",
    "GGML_NATIVE=OFF",
    "GGML_BACKEND_DL=ON",
    "GGML_CPU_ALL_VARIANTS=ON",
    "GGML_OPENMP=OFF",
    "GGML_CCACHE=OFF",
    "GGML_ALL_WARNINGS=OFF",
    "LLAMA_ALL_WARNINGS=OFF",
    *(f"LLAMA_BUILD_{part}=OFF" for part in ("COMMON", "TESTS", "TOOLS", "EXAMPLES", "SERVER", "APP")),
    "LLAMA_OPENSSL=OFF",
)


def build(arguments: Arguments) -> None:
    """Build the artifact."""
    variants = chosen_variants(arguments)
    with tempfile.TemporaryDirectory(prefix="llama-cpp-") as folder:
        work = Path(folder)
        say("unpack the sources")
        source = work / "source"
        unpack_sdist(arguments.input("llama_cpp_python-*.tar.gz"), source, wanted=is_wanted_source)
        keep_variants(source / "vendor/llama.cpp/ggml/src/CMakeLists.txt", variants)
        compile_libraries(arguments, work, optimize=bool(variants))
        say("lay out and check")
        lay_out(arguments.output, source, work / "build/bin", variants)
    check_libraries(arguments.output / "llama_cpp/lib", arguments.machine)
    compile_tree(arguments.tools("toolchain"), arguments.output, prefix="/opt/edge/engine")
    settle_modes(arguments.output)


def chosen_variants(arguments: Arguments) -> tuple[str, ...]:
    """Return the CPU variants to build; none at all for `--variants none`.

    Raises:
        RecipeError: One is not known.
    """
    if arguments.variants == ("none",):
        return ()
    known = VARIANTS[arguments.machine]
    if unknown := sorted(set(arguments.variants) - set(known)):
        raise RecipeError(f"no CPU variant of {arguments.platform} is called {unknown[0]}")
    return arguments.variants or known


def is_wanted_source(name: str) -> bool:
    """Say whether a file of the sdist takes part."""
    if name.startswith("vendor/llama.cpp/"):
        below = name.removeprefix("vendor/llama.cpp/").partition("/")
        return ".git" not in name.split("/") and (
            not below[1] or below[0] in {"cmake", "ggml", "include", "licenses", "src", "vendor"}
        )
    return name in {f"llama_cpp/{module}" for module in MODULES} | {"LICENSE.md"}


def write_wrappers(arguments: Arguments, folder: Path, *, flags: tuple[str, ...]) -> None:
    """Write programs that call zig as a compiler for the target, always with `flags`, which may hold spaces."""
    zig = shlex.quote(str(arguments.tools("compiler") / "ziglang/zig"))
    translate = "".join(f"-march={march}) word=-mcpu={cpu};;" for march, cpu in MARCH.items())
    compiler = (
        "#!/bin/sh\n"
        f'for word do shift; case "$word" in {translate} esac; set -- "$@" "$word"; done\n'
        f'exec {zig} COMMAND -target {TARGETS[arguments.machine]} {shlex.join(flags)} "$@"\n'
    )
    plain = f'#!/bin/sh\nexec {zig} COMMAND "$@"\n'
    folder.mkdir()
    for command, text in (("cc", compiler), ("c++", compiler), ("ar", plain), ("ranlib", plain)):
        wrapper = folder / command
        wrapper.write_text(text.replace("COMMAND", command))
        wrapper.chmod(0o755)


def keep_variants(lists: Path, variants: tuple[str, ...]) -> None:
    """Delete the lines that add other CPU variants; CMake has no option for it.

    Raises:
        RecipeError: A variant has no line of its own.
    """
    line = re.compile(r"^\s*ggml_add_cpu_backend_variant\((\S+?)[\s)]")
    kept: list[str] = []
    seen: set[str] = set()
    for text in lists.read_text().splitlines(keepends=True):
        found = line.match(text)
        if found is None or found[1] in variants:
            kept.append(text)
            seen |= {found[1]} if found else set()
    if missing := sorted(set(variants) - seen):
        raise RecipeError(f"llama.cpp's ggml/src/CMakeLists.txt has no CPU variant {missing[0]}")
    lists.write_text("".join(kept))


def compile_libraries(arguments: Arguments, work: Path, *, optimize: bool) -> None:
    """Configure and build the target "llama", which pulls in ggml and every variant."""
    tools, source, destination = arguments.tools("compiler"), work / "source/vendor/llama.cpp", work / "build"
    wrappers = work / "zig"
    # In the wrappers, since CMake splits flags at spaces, which folders may have.
    write_wrappers(
        arguments,
        wrappers,
        flags=("-g0", f"-ffile-prefix-map={source}=.", f"-ffile-prefix-map={destination}=build"),
    )
    link = "-Wl,--build-id=none -s"
    options = (
        *OPTIONS,
        "CMAKE_SYSTEM_NAME=Linux",
        f"CMAKE_SYSTEM_PROCESSOR={arguments.machine}",
        f"CMAKE_C_COMPILER={wrappers}/cc",
        f"CMAKE_CXX_COMPILER={wrappers}/c++",
        f"CMAKE_ASM_COMPILER={wrappers}/cc",
        f"CMAKE_AR={wrappers}/ar",
        f"CMAKE_RANLIB={wrappers}/ranlib",
        f"CMAKE_MAKE_PROGRAM={tools}/ninja",
        "CMAKE_C_FLAGS_RELEASE=-O3 -DNDEBUG",
        # Without optimisation zig would add checks of undefined behaviour.
        f"CMAKE_CXX_FLAGS_RELEASE={'-O3' if optimize else '-O0 -fno-sanitize=all'} -DNDEBUG",
        f"CMAKE_SHARED_LINKER_FLAGS={link}",
        f"CMAKE_MODULE_LINKER_FLAGS={link}",
    )
    environment = {
        "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
        "LC_ALL": "C.UTF-8",
        "HOME": str(work),
        "TMPDIR": str(work),
        "ZIG_GLOBAL_CACHE_DIR": str(arguments.cache or work / "zig-global"),
        "ZIG_LOCAL_CACHE_DIR": str(work / "zig-local"),
        "NINJA_STATUS": "[%f/%t] ",
    }
    cmake = tools / "cmake/data/bin/cmake"
    say("configure llama.cpp; the first time zig compiles its C++ library, about a minute")
    run(
        [cmake, "-G", "Ninja", "-S", source, "-B", destination, *(f"-D{option}" for option in options)],
        environment,
    )
    run([tools / "ninja", "-C", destination, f"-j{arguments.jobs}", "llama"], environment)


def run(argv: list[str | Path], environment: dict[str, str]) -> None:
    """Run a program and turn ninja's lines into progress; on failure show its last lines.

    Raises:
        RecipeError: It fails.
    """
    step = re.compile(r"\[(\d+/\d+)\] ")
    tail: list[str] = []
    with subprocess.Popen(
        argv,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            tail = [*tail[-60:], line]
            if found := step.match(line):
                say(f"compile llama.cpp {found[1]}")
    if process.returncode != 0:
        sys.stderr.writelines(tail)
        raise RecipeError(f"{Path(argv[0]).name} failed with exit code {process.returncode}")


def lay_out(output: Path, source: Path, built: Path, variants: tuple[str, ...]) -> None:
    """Put modules, libraries and licences in their places."""
    package = output / "llama_cpp"
    library = package / "lib"
    library.mkdir(parents=True)
    (package / "__init__.py").touch()
    for module in MODULES:
        shutil.copyfile(source / "llama_cpp" / module, package / module)
    for name in (*LIBRARIES, *(f"libggml-cpu-{variant}.so" for variant in variants)):
        shutil.copyfile(built / name, library / name)
        (library / name).chmod(0o644)
    licences = package / "licenses"
    licences.mkdir()
    shutil.copyfile(source / "LICENSE.md", licences / "llama-cpp-python.LICENSE.md")
    shutil.copyfile(source / "vendor/llama.cpp/LICENSE", licences / "llama.cpp.LICENSE")


def check_libraries(folder: Path, machine: str) -> None:
    """Refuse libraries that would not load on the oldest system that the engine is meant for.

    Raises:
        RecipeError: Another processor, a library that nobody brings, or symbols newer than `GLIBC_LIMIT`.
    """
    own = {path.name for path in folder.iterdir()}
    for path in sorted(folder.iterdir()):
        elf = read_elf(path)
        if elf is None or elf.machine != machine:
            raise RecipeError(f"{path.name} is not a library for {machine}")
        for needed in elf.needed:
            if needed not in own and not SYSTEM_LIBRARIES.fullmatch(needed):
                raise RecipeError(f"{path.name} needs {needed}, which the image does not have")
        for version in elf.versions:
            family, _, number = version.partition("_")
            if family != "GLIBC" or tuple(int(part) for part in number.split(".")) > GLIBC_LIMIT:
                raise RecipeError(f"{path.name} wants {version}, newer than glibc 2.31")


if __name__ == "__main__":
    run_recipe(build)
