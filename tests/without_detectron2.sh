#!/bin/sh
# Build a wheel, install it with the extra `export` into a new environment without Detectron2, and run every command
# there (`make test-core`). Needs a package index or pip's cache, minutes and 6 GB of disk; the environment is removed.
#
# usage: PYTHON=python3 sh tests/without_detectron2.sh
set -eu
cd "$(dirname "$0")/.."
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
trap 'exit 130' INT TERM
"${PYTHON:-python3}" -m venv "$place/venv"
python=$place/venv/bin/python
mkdir "$place/source"  # a copy, as building leaves files beside the sources
cp -r setup.cfg pyproject.toml README.md LICENSE sirfp "$place/source"
"$python" -m pip wheel --quiet --no-deps --wheel-dir "$place" "$place/source"
"$python" -m pip install --quiet "$(ls "$place"/*.whl)[export]"
if "$python" -c "import detectron2" 2>/dev/null; then echo "Detectron2 is installed there" >&2; exit 1; fi
mkdir "$place/files"
OMP_WAIT_POLICY=passive "$python" tests/without_detectron2.py "$place/files"
cd "$place"
"$python" -c "import sirfp; print('installed in', sirfp.__file__)"
