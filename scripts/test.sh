#!/usr/bin/env bash
# Checks format, style and types, and runs the tests; warnings are errors.
#   bash scripts/test.sh            everything except the rigs
#   bash scripts/test.sh --rigs     only the rigs: slower tests with real components
#   bash scripts/test.sh ARGS...    pytest with these arguments
set -euo pipefail
. "$(dirname "$0")/venv.sh" dev

if [ "${1:-}" = --rigs ]; then
    shift
    exec python -m pytest -n auto --dist loadfile -m rig "$@"
fi
ruff format --check .
ruff check .
pyright
exec python -m pytest -n auto --dist worksteal -m "not rig" "$@"
