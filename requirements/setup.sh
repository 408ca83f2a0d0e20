#!/bin/sh
# Make or bring up to date the virtual environment .venv of this checkout (`make setup`).
#
# Does nothing, at once, when .venv was completed for the very contents of the files in `inputs`. An environment that is
# out of date is upgraded in place; one that was left half made (killed, disk full) is made afresh.
#
# usage: PYTHON=python3 sh requirements/setup.sh
set -eu
pytorch=  # the process that installs PyTorch beside this one; a shell lets it ignore Ctrl-C
trap '[ -z "$pytorch" ] || kill "$pytorch" 2>/dev/null; exit 130' INT TERM

export PIP_DISABLE_PIP_VERSION_CHECK=1
PYTHON=${PYTHON:-python3}
venv=.venv
python=$venv/bin/python
completed=$venv/.sirfp-completed  # holds the checksum of the inputs it was completed for
begun=$venv/.sirfp-begun          # stands while an installation is under way
inputs="requirements/setup.sh requirements/lock.txt requirements/detectron2.txt requirements/detectron2.sh setup.cfg"

fail() {
    echo "setup: $*" >&2
    exit 2
}

failed() {
    rm -f "$begun"
    fail "could not install requirements/lock.txt; pip says why above, and keeps what it has downloaded"
}

make_venv() {
    command -v "$PYTHON" >/dev/null || fail "$PYTHON not found; install Python 3.10 or later, or name one: make PYTHON=/path/to/python3"
    "$PYTHON" -c "import sys; sys.exit(sys.version_info < (3, 10))" \
        || fail "$PYTHON is $("$PYTHON" --version 2>&1); Python 3.10 or later is needed: make PYTHON=/path/to/python3"
    "$PYTHON" -c "import venv, ensurepip" 2>/dev/null \
        || fail "$PYTHON cannot make virtual environments; on Debian and Ubuntu: apt install python3-venv"
    echo "setup: making $venv with $("$PYTHON" --version 2>&1)"
    "$PYTHON" -m venv --clear "$venv"
}

cd "$(dirname "$0")/.."
checksum=$(cat $inputs | cksum)
is_complete() {
    [ -x "$python" ] && [ "$(cat "$completed" 2>/dev/null)" = "$checksum" ]
}
if is_complete; then exit 0; fi

# One at a time: a second call waits for the first, and then finds its work done.
if command -v flock >/dev/null; then
    exec 9<requirements
    flock 9
    if is_complete; then exit 0; fi
fi

if [ -e "$begun" ] || ! "$python" -m pip --version >/dev/null 2>&1; then make_venv; fi
"$python" -c "import sys; sys.exit(sys.version_info < (3, 10))" \
    || fail "$venv holds $("$python" --version 2>&1); Python 3.10 or later is needed: remove $venv and try again"

echo "setup: installing the pinned requirements; a first time takes minutes, and 6 GB of disk"
: >"$begun"
# The pinned setuptools first: it builds what comes as source only (fvcore, iopath, antlr4) and this package. Then
# PyTorch's 5 GB beside all others, so that two cores unpack. --no-compile: Python compiles what is imported, when it is.
plain="--no-deps --no-compile"
of_pytorch='^(torch|nvidia-[a-z0-9-]*|cuda-[a-z0-9-]*|triton)=='
grep -E "$of_pytorch" requirements/lock.txt >$venv/.sirfp-pytorch.txt
grep -vE "$of_pytorch" requirements/lock.txt >$venv/.sirfp-others.txt
"$python" -m pip install $plain --quiet "$(grep '^setuptools==' requirements/lock.txt)" || failed
"$python" -m pip install $plain --quiet -r $venv/.sirfp-pytorch.txt &
pytorch=$!
"$python" -m pip install $plain --no-build-isolation --use-pep517 -r $venv/.sirfp-others.txt || { wait; failed; }
echo "setup: waiting for PyTorch and its CUDA libraries"
wait "$pytorch" || failed
pytorch=
PYTHON=$python sh requirements/detectron2.sh
"$python" -m pip install --no-deps --no-build-isolation --quiet -e .
echo "$checksum" >"$completed"
rm "$begun"
echo "setup: $venv is complete"
