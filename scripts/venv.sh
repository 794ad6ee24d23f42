# To be sourced: creates or reuses .venv with this package and the extras named in $1, and activates it.
# Installs only if pyproject.toml, constraints.txt or the extras have changed since the last installation.

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
extras=$1
python=${PYTHON:-python3}
stamp=.venv/.installed-$extras
required=$( (cat pyproject.toml constraints.txt && pwd) | sha256sum)

if [ "$(cat "$stamp" 2>/dev/null)" != "$required" ]; then
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
        { echo "error: $python: Python 3.10 or newer is needed; name one with PYTHON=..." >&2; exit 2; }
    [ -x .venv/bin/python ] || "$python" -m venv .venv ||
        { echo "error: .venv: cannot be created; on Debian: apt-get install python3-venv" >&2; exit 2; }
    echo "installing into .venv (once)"
    pip=(.venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt)
    # torch is installed first and pinned: with a range pip might choose another build for the other packages.
    "${pip[@]}" "$(grep '^torch==' constraints.txt)" && "${pip[@]}" -e ".[$extras]" || exit 1
    # sweeps, by which W&B checks sweep files, requires an old numpy, which that check does not use.
    [ "$extras" != dev ] || "${pip[@]}" --no-deps sweeps jsonref || exit 1
    echo "$required" >"$stamp"
fi
. .venv/bin/activate
