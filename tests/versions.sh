#!/usr/bin/env bash
# The tests on the lowest versions that pyproject.toml allows, and on the newest that pip finds: each in an environment of
# its own, .venv-lowest and .venv-newest.
#
#     bash tests/versions.sh                            # both
#     bash tests/versions.sh lowest tests/training      # one of them; further arguments go to pytest
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

case ${1:-both} in
    pin) pin ;;
    lowest | newest) run_on "$@" ;;
    both) run_on lowest && run_on newest ;;
    *) echo "tests/versions.sh [lowest | newest [arguments of pytest] | pin]" >&2 && exit 2 ;;
esac
