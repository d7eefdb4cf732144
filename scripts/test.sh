#!/usr/bin/env bash
# All checks and tests, from nothing: bash scripts/test.sh [--lowest | --cuda] [pytest arguments]
# --lowest: the tests alone, on the lowest versions that pyproject.toml names.
# --cuda: what only a GPU does, with the torch that is there: nothing is installed.
if [ "${1:-}" = --cuda ]; then
  cd "$(dirname "${BASH_SOURCE[0]}")/.."
  exec python -m pytest tests/test_cuda.py --durations=10 "${@:2}"
fi
if [ "${1:-}" = --lowest ]; then
  lowest=1
  shift
fi
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

if [ -z "${lowest:-}" ]; then
  echo "== ruff"
  ruff check .
  ruff format --check .
  echo "== mypy"
  mypy
fi
echo "== pytest"
export OMP_NUM_THREADS=1
python -m pytest -n 2 --durations=10 "$@"
