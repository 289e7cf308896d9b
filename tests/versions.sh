#!/usr/bin/env bash
# The tests on other versions of transformers, accelerate and peft than those of .venv.
#
#     bash tests/versions.sh                            # the smoke set on the lowest, two in between and the newest
#     bash tests/versions.sh smoke 5.8.1 newest         # on these; the package in front of .venv, installed in seconds
#     bash tests/versions.sh lowest tests/training      # the whole suite on one of lowest, newest, in an environment of its
#                                                       # own, .venv-lowest or .venv-newest; more arguments go to pytest
#     bash tests/versions.sh pin                        # makes what .venv-newest holds the tested versions: .requirements.txt
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../.setup.sh"

requirements() {
    # "lowest" pins every dependency of the package to its lower bound; the tools of the tests stay free.
    "$(suitable_python)" - "$1" "$ROOT/pyproject.toml" <<'PYTHON'
import re
import sys

which, path = sys.argv[1:]
listed = re.search(r"^dependencies = \[(.*?)^\]", open(path).read(), re.DOTALL | re.MULTILINE).group(1)
for requirement in re.findall(r'"(.+?)"', listed):
    if not requirement.startswith("torch>"):  # installed first
        print(requirement.replace(">=", "==") if which == "lowest" else requirement)
PYTHON
}

lower_bound() {
    sed -n "s/^ *\"$1>=\([0-9.]*\).*/\1/p" "$ROOT/pyproject.toml"
}

full_version() {
    # "5.0" is 5.0.0 to pip as well, but not to the eye.
    [[ $1 == *.*.* ]] && echo "$1" || echo "$1.0"
}

put_in_front() {
    # Without their dependencies, of which .venv has all but those that transformers holds to a range of its own, such as
    # huggingface_hub: that comes with what it needs.
    local which=$1 folder=$2 pip=("$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --target "$2" --no-deps)
    case $which in
        lowest)
            "${pip[@]}" "transformers==$(full_version "$(lower_bound transformers)")" \
                "accelerate==$(full_version "$(lower_bound accelerate)")" "peft==$(full_version "$(lower_bound peft)")"
            ;;
        newest) "${pip[@]}" transformers accelerate peft ;;
        *) "${pip[@]}" "transformers==$which" ;;
    esac
    local needed
    mapfile -t needed < <(
        PYTHONPATH=$folder "$VENV/bin/python" -c '
from importlib.metadata import requires
for line in requires("transformers"):
    if line.startswith(("tokenizers", "huggingface-hub", "safetensors")) and "extra" not in line:
        print(line)'
    )
    unset "pip[-1]"
    "${pip[@]}" "${needed[@]}"
}

smoke_on() {
    set_up test
    local folder=$ROOT/.venv-front/$1
    if [[ ! -e $folder/.whole ]]; then
        rm -rf "$folder"
        put_in_front "$1" "$folder"
        touch "$folder/.whole"
    fi
    (
        cd "$ROOT"
        export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1 PYTHONPATH=$folder
        "$VENV/bin/python" -c '
import accelerate, peft, torch, transformers
print(*(f"{one.__name__} {one.__version__}" for one in (transformers, accelerate, peft, torch)), sep=", ")'
        "$VENV/bin/python" -m pytest -n 2 --dist loadgroup -p no:cacheprovider -m smoke
    )
}

run_on() {
    local which=$1 venv=$ROOT/.venv-$1 pip
    shift
    pip=("$venv/bin/python" -m pip install --quiet --disable-pip-version-check)
    if [[ ! -x $venv/bin/python ]]; then
        echo "Making .venv-$which ..." >&2
        "$(suitable_python)" -m venv "$venv"
        "${pip[@]}" "torch==$TORCH_VERSION"
    fi
    requirements "$which" >"$venv/requirements.txt"
    "${pip[@]}" --upgrade -r "$venv/requirements.txt"
    "${pip[@]}" --constraint "$venv/requirements.txt" --editable "$ROOT[test]"
    echo "$which: $("$venv/bin/python" -m pip list 2>/dev/null | grep -E '^(torch|transformers|accelerate|peft|datasets|evaluate|scikit-learn|numpy) ' | tr -s ' ' | tr '\n' ',')"
    (
        cd "$ROOT"
        export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1
        "$venv/bin/python" -m pytest -n 2 --dist loadgroup -p no:cacheprovider "$@"
    )
}

pin() {
    local python=$ROOT/.venv-newest/bin/python version
    version=$("$python" -c "import sys; print(*sys.version_info[:2], sep='.')")
    {
        echo "# What was tested, on Python $version: .setup.sh holds pip to it. Written by \"bash tests/versions.sh pin\"."
        # Not "torch==2.13.0+cpu": which build it is depends on the machine.
        "$python" -m pip freeze --exclude hf_freeze | grep -E '^[A-Za-z0-9._-]+==' | sed 's/+[a-z0-9.]*$//'
    } >"$TESTED.new"
    mv "$TESTED.new" "$TESTED"
}

case ${1:-smoke} in
    pin) pin ;;
    lowest | newest) run_on "$@" ;;
    smoke)
        shift || true
        for which in "${@:-lowest 5.8.1 5.14.1 newest}"; do
            for one in $which; do smoke_on "$one"; done
        done
        ;;
    *) echo "tests/versions.sh [smoke [version ...] | lowest | newest [arguments of pytest] | pin]" >&2 && exit 2 ;;
esac
