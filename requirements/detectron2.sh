#!/bin/sh
# Install Detectron2 itself into an environment that has its requirements (`pip install '.[detectron2]'`). Works for
# any Python, as detectron2.txt says; a Detectron2 that is there already, such as one built from source, is left alone.
#
# usage: PYTHON=python3 sh requirements/detectron2.sh
set -eu
PYTHON=${PYTHON:-python3}
if "$PYTHON" -c "import detectron2" 2>/dev/null; then exit 0; fi
purelib=$("$PYTHON" -c "import sysconfig; print(sysconfig.get_path('purelib'))")
"$PYTHON" -m pip install --no-deps --require-hashes --only-binary=:all: --python-version 3.10 \
    --upgrade --target "$purelib" -r "$(dirname "$0")/detectron2.txt"
rm -rf "$purelib/tools"  # a stray top-level package of that wheel
"$PYTHON" -c "import detectron2"
