# Sourced by examples/quickstart.sh and tests/run.sh: makes .venv with what an extra needs, or reuses it.
#
#     source .setup.sh; set_up test
#
# A stamp in .venv says which extra was installed, and for which pyproject.toml.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
VENV=$ROOT/.venv
TESTED=$ROOT/.requirements.txt # the exact versions, also of what the dependencies depend on
TORCH_VERSION=$(sed -n "s/^torch==//p" "$TESTED")

set_up() {
    local stamp=$VENV/.installed wanted
    # The path counts too: a clone that was moved needs a new editable install.
    wanted="$(cat "$ROOT/pyproject.toml" "$ROOT/.setup.sh" "$TESTED" | cksum) $ROOT"
    if ! is_set_up "$1"; then
        # A second run waits until the first has installed everything. macOS has no flock.
        exec 9>"$ROOT/.setup.lock"
        if command -v flock >/dev/null; then flock 9; fi
        is_set_up "$1" || install "$1"
        exec 9>&-
    fi
}

is_set_up() {
    # The extra "test" holds all others.
    [[ -x $VENV/bin/python ]] && grep -qsxF -e "$1 $wanted" -e "test $wanted" "$stamp"
}

install() {
    local extra=$1 pip=("$VENV/bin/python" -m pip install --quiet --disable-pip-version-check)
    if ! "$VENV/bin/python" -c "import pip" 2>/dev/null; then
        echo "Making .venv ..." >&2
        "$(suitable_python)" -m venv "$VENV"
    fi
    # Repair an interrupted install: pip counts a package from its .dist-info on, but writes RECORD last.
    find "$VENV" -name "*.dist-info" -type d ! -exec test -e "{}/RECORD" ";" -prune -exec rm -r "{}" +
    rm -f "$stamp"
    echo "Installing hf_freeze[$extra] into .venv, which takes minutes the first time ..." >&2
    if ! "$VENV/bin/python" -c "from importlib.metadata import version; version('torch')" 2>/dev/null; then
        "${pip[@]}" "torch==$TORCH_VERSION"
    fi
    if has_tested_versions "$VENV/bin/python"; then
        "${pip[@]}" --constraint "$TESTED" --editable "$ROOT[$extra]"
    else
        echo "The tested versions in $TESTED are not for this Python: pip chooses within the ranges of pyproject.toml." >&2
        "${pip[@]}" --editable "$ROOT[$extra]"
    fi
    echo "$extra $wanted" >"$stamp"
}

has_tested_versions() {
    # Some of them have no release for Python 3.10, or none yet for 3.14.
    "$1" -c "import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))"
}

suitable_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3 python python3.{14,13,12,11,10}; do
        if "$candidate" -c "import sys; sys.exit(sys.version_info < (3, 10))" 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "Found no Python 3.10 or later. Name one: PYTHON=/path/to/python3 bash ..." >&2
    return 1
}
