# To be sourced: makes or reuses .venv with this package and the extras named in $1, and activates it.
# Installs only where pyproject.toml, constraints.txt or the extras have changed since the last time.

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
extras=$1
python=${PYTHON:-python3}
stamp=.venv/.installed-$extras
wanted=$( (cat pyproject.toml constraints.txt && pwd) | sha256sum)

if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
        { echo "error: Python 3.10 or newer is needed; name one with PYTHON=..." >&2; exit 2; }
    [ -x .venv/bin/python ] || "$python" -m venv .venv ||
        { echo "error: no venv could be made; on Debian: apt-get install python3-venv" >&2; exit 2; }
    echo "installing into .venv (once)"
    pip=(.venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt)
    # torch first and pinned: a range would let pip pick another build while it resolves the rest
    "${pip[@]}" "$(grep '^torch==' constraints.txt)" && "${pip[@]}" -e ".[$extras]" || exit 1
    # W&B's check of sweep files asks for an old numpy, which it does not need for that.
    [ "$extras" != dev ] || "${pip[@]}" --no-deps sweeps jsonref || exit 1
    echo "$wanted" >"$stamp"
fi
. .venv/bin/activate
