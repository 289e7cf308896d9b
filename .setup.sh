# Sourced by examples/quickstart.sh and tests/run.sh: makes .venv with what an extra needs, or reuses it.
#
#     source .setup.sh; set_up test
#
# The stamp in .venv says for which pyproject.toml, and for which extras, everything was installed.

TORCH_VERSION=2.13.0 # the tested one; plain "torch" would bring the newest, with gigabytes of CUDA

set_up() {
    local extra=$1 root wanted
    root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
    VENV="$root/.venv"
    exec 9>"$root/.setup.lock"
    flock 9 # a second run waits until the first has installed everything
    if [ ! -x "$VENV/bin/python" ] || ! "$VENV/bin/python" -c "import pip" 2>/dev/null; then
        python3 -m venv "$VENV"
    fi
    wanted=$(cat "$root/pyproject.toml" "$root/.setup.sh" | sha256sum | cut -d' ' -f1)
    if [ "$(cat "$VENV/.installed-$extra" 2>/dev/null)" != "$wanted" ]; then
        echo "Installing the extra '$extra' into .venv ..."
        rm -f "$VENV/.installed-$extra"
        if ! "$VENV/bin/python" -c "import torch" 2>/dev/null; then
            "$VENV/bin/python" -m pip install --quiet "torch==$TORCH_VERSION"
        fi
        "$VENV/bin/python" -m pip install --quiet --editable "$root[$extra]"
        echo "$wanted" >"$VENV/.installed-$extra"
    fi
    exec 9>&-
}
