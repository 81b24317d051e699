#!/usr/bin/env bash
# Build the wheel from the source archive, install it into an environment of its own, and use it outside the tree.
#
#     scripts/wheel_check.sh VENV
#
# VENV has the dependencies and the package `build`. The new environment sees VENV's libraries through a .pth file. A
# .pth file in a folder that was added in this way is not read, so the editable package of VENV is not seen.
set -euo pipefail
venv=$(cd "$1" && pwd)
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
unset PYTHONPATH

"$venv/bin/python" -m build --outdir "$work/dist" "$root" >"$work/build.log" 2>&1 || { cat "$work/build.log"; exit 1; }
"$venv/bin/python" -m venv --without-pip "$work/venv"
python=$work/venv/bin/python
"$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
    >"$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/dependencies.pth"
"$venv/bin/python" -m pip --python "$python" install --quiet --no-deps --no-index --force-reinstall "$work"/dist/*.whl

cd "$work"
pythia_dyn=$work/venv/bin/pythia-dyn
"$pythia_dyn" --help >/dev/null
"$pythia_dyn" models --json | "$python" -c 'import json, sys; assert json.load(sys.stdin)["models"]'
"$python" "$root/scripts/wheel_check.py" "$work/venv"
"$pythia_dyn" fetch --model walk >/dev/null
"$pythia_dyn" msd --model walk >/dev/null
"$pythia_dyn" order --model walk >/dev/null
"$pythia_dyn" report --model walk >/dev/null
grep -q "</html>" results/report.html
echo "the wheel works outside the tree: $(basename "$work"/dist/*.whl), $(du -k "$work"/dist/*.whl | cut -f1) KB"
