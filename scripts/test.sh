#!/usr/bin/env bash
# Formats are checked, code is linted and typed, laws are tested; warnings are errors.
#   bash scripts/test.sh            all but the rigs
#   bash scripts/test.sh --rigs     slower tests on real components only
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
