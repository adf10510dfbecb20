#!/usr/bin/env bash
# Installs dreamfleet and what it needs on a node of a cluster, into ~/.dreamfleet/venv, with the versions of
# constraints.txt. Quick when nothing has changed; nodes that share one home take turns.
#
#   DREAMFLEET_EXTRAS=dmc,atari   extras of pyproject.toml to install as well
#   DREAMFLEET_PYTHON=PATH        a Python that has all packages already (shared disk, no internet); it is used as it is
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
base=$HOME/.dreamfleet
extras=${DREAMFLEET_EXTRAS:-}
mkdir -p "$base"
exec 9>"$base/lock"
flock -w 1800 9 || { echo "install_node.sh: another node held $base/lock for half an hour" >&2; exit 1; }

fail() { echo "install_node.sh: $1" >&2; exit 1; }

# Login shells get the environment too: `ray down`, `ray exec` and `ray attach` look for `ray` there.
line="[ ! -f $root/deploy/environment.sh ] || . $root/deploy/environment.sh  # dreamfleet"
grep -qxF "$line" "$HOME/.bashrc" 2>/dev/null || echo "$line" >>"$HOME/.bashrc"

[ -s "$HOME/.ray/auth_token" ] ||
  fail "there is no token in ~/.ray/auth_token; make one where you call ray up: ray get-auth-token --generate"
chmod 600 "$HOME/.ray/auth_token"

if [ -n "${DREAMFLEET_PYTHON:-}" ]; then
  [ -x "$DREAMFLEET_PYTHON" ] || fail "DREAMFLEET_PYTHON is $DREAMFLEET_PYTHON, which is no program on $(hostname)"
  "$DREAMFLEET_PYTHON" -c 'import ray, torch, gymnasium' || fail "DREAMFLEET_PYTHON lacks a package, see above"
  [ -L "$base/venv" ] || [ ! -e "$base/venv" ] || fail "to use DREAMFLEET_PYTHON, remove $base/venv first"
  ln -sfn "$(dirname "$(dirname "$DREAMFLEET_PYTHON")")" "$base/venv"
  mkdir -p "$base/bin"
  printf '#!/bin/sh\nexec "%s" -m dreamfleet "$@"\n' "$DREAMFLEET_PYTHON" >"$base/bin/dreamfleet"
  chmod +x "$base/bin/dreamfleet"
  exit 0
fi

rm -rf "$base/bin"
wanted=$(cat "$root/pyproject.toml" "$root/constraints.txt" "$0" <(echo "$extras") | sha256sum)
if [ -f "$base/installed" ] && [ "$(cat "$base/installed")" = "$wanted" ]; then exit 0; fi

if [ ! -x "$base/venv/bin/pip" ]; then
  python=
  for name in python3 python3.13 python3.12 python3.11; do
    if "$name" -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      python=$name
      break
    fi
  done
  [ -n "$python" ] || fail "$(hostname) has no Python from 3.11 on with venv (Debian, Ubuntu: apt install python3-venv)"
  rm -rf "$base/venv"
  "$python" -m venv "$base/venv"
fi

cd "$root"
# The constraints hold for what builds packages too: pip reads the first name up to version 25.2, the second after it.
export PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt PIP_DISABLE_PIP_VERSION_CHECK=1
pip=("$base/venv/bin/python" -m pip install --quiet --progress-bar off)
if ! command -v nvidia-smi >/dev/null; then
  # Without a GPU, torch's own index has a build without CUDA: a tenth of the download. PyPI's does as well.
  torch=$(grep '^torch==' constraints.txt)
  "${pip[@]}" --retries 1 --no-deps --index-url https://download.pytorch.org/whl/cpu "$torch" ||
    echo "install_node.sh: download.pytorch.org gave no $torch; PyPI's build with CUDA is taken" >&2
fi
"${pip[@]}" --editable ".${extras:+[$extras]}"
echo "$wanted" >"$base/installed"
