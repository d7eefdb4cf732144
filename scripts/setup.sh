# Sourced by quickstart.sh and test.sh: makes .venv, installs requirements.txt and the fgkd command.
# Needs Python 3.11 or newer and nothing else. Does nothing when that was done before.
# With lowest=1 it makes .venv-lowest, of the lowest versions that pyproject.toml names.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=""
for candidate in python3.11 python3.12 python3.13 python3; do
  if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    python=$candidate
    break
  fi
done
if [ -z "$python" ]; then
  echo "error: no Python 3.11 or newer on PATH" >&2
  exit 1
fi

venv=.venv requirements=requirements.txt
if [ -n "${lowest:-}" ]; then
  venv=.venv-lowest requirements=.venv-lowest.txt
  "$python" scripts/lowest_requirements.py > "$requirements"
fi
stamp=$venv/installed-requirements.txt
if ! cmp -s "$requirements" "$stamp"; then
  echo "Installing into $venv with $("$python" --version) (about 2 minutes and 7 GB with torch) ..."
  "$python" -m venv "$venv"
  pip=("$venv/bin/python" -m pip install --quiet --disable-pip-version-check)
  if ! "${pip[@]}" -r "$requirements"; then
    free=$(df -Pk . | awk 'NR == 2 { printf "%.1f", $4 / 1048576 }')
    echo "error: pip could not install all of $requirements into $PWD/$venv ($free GB are free" \
      "there, and 7 are needed); run this again to continue" >&2
    exit 1
  fi
  "${pip[@]}" --no-deps --no-build-isolation --editable .
  cp "$requirements" "$stamp"
fi
export PATH="$PWD/$venv/bin:$PATH"
