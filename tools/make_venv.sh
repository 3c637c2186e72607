#!/bin/sh
# Make a virtual environment with the newest Python that really runs (version managers leave commands that do not).
# Usage: tools/make_venv.sh FOLDER
set -eu
for python in python3.13 python3.12 python3.11 python3; do
    if "$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
        echo "hesse: making $1 with $("$python" --version)" >&2
        exec "$python" -m venv --clear "$1"
    fi
done
echo "hesse: no Python 3.11 or newer with venv found (python3 is $(python3 --version 2>&1 | head -n 1)): install one, e.g. 'apt install python3 python3-venv' or from python.org, then run make again" >&2
exit 1
