#!/bin/sh
# Makes the virtual environment of a checkout: setup-venv.sh FOLDER [GROUP…]
#
# Needs Python 3.11 or later and an index of Python packages, as pip or uv are configured on this machine. Neither
# root nor pip need be there: where Python came without pip, apt brings its wheel into the new environment's folder.
set -eu
case $1 in /*) folder=$1 ;; *) folder=$PWD/$1 ;; esac
shift
python=${PYTHON:-python3}
here=$(cd "$(dirname "$0")/.." && pwd)
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore

say() { printf '%s\n' "$*" >&2; }

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    say "error: $("$python" --version) is too old: edgebuild needs Python 3.11 or later"
    say "hint: install it and name it: make PYTHON=python3.12"
    exit 1
}

# An apt of our own: no root is needed, and nothing of the host's apt changes.
fetch_pip_wheel() {
    state=$folder/apt
    mkdir -p "$state/lists/partial" "$state/cache/archives/partial"
    : >"$state/status"
    set -- -o Dir::State="$state" -o Dir::State::status="$state/status" -o Dir::Cache="$state/cache" -o Debug::NoLocking=1 -o APT::Sandbox::User=""
    apt-get -qq "$@" update >&2
    (cd "$state" && apt-get -qq "$@" download python3-pip-whl >&2 && dpkg-deb -x python3-pip-whl_*.deb .)
    echo "$state"/usr/share/python-wheels/pip-*.whl
}

if [ ! -x "$folder/bin/uv" ]; then
    rm -rf "$folder"
    "$python" -m venv --without-pip "$folder"
    if command -v uv >/dev/null 2>&1; then
        uv pip install -q --python "$folder/bin/python" uv
    elif "$python" -m pip --version >/dev/null 2>&1; then
        "$python" -m pip --python "$folder/bin/python" install -q uv 2>/dev/null || {
            "$python" -m pip install -q --target "$folder/lib/bootstrap" uv && cp "$folder"/lib/bootstrap/bin/uv "$folder/bin/uv"
        }
    else
        wheel=$(fetch_pip_wheel) || {
            say "error: this Python has no pip, and apt could not bring it"
            say "hint: install python3-pip or uv"
            exit 1
        }
        PYTHONPATH=$wheel "$folder/bin/python" -m pip install -q uv
        rm -rf "$folder/apt"
    fi
fi
groups=""
for group in "$@"; do groups="$groups --group $group"; done
# shellcheck disable=SC2086 # the groups are words of their own
cd "$here" && "$folder/bin/uv" pip install -q --compile-bytecode --python "$folder/bin/python" --editable . $groups
# Compiled here too, for those whose environment keeps Python from doing it by the way: it is half of a command's start.
"$folder/bin/python" -m compileall -q builder images/verify
