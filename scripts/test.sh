#!/usr/bin/env bash
# All checks and tests, from nothing: bash scripts/test.sh [pytest arguments]
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

echo "== ruff"
ruff check .
ruff format --check .
echo "== mypy"
mypy
echo "== pytest"
export OMP_NUM_THREADS=1
python -m pytest --durations=10 "$@"
