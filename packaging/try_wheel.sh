#!/bin/sh
# Try a wheel in a fresh Debian without a compiler (root and debootstrap are needed):
#   packaging/try_wheel.sh bookworm dist/filigree_nn-*.whl             # torch by pip, of the version in constraints.txt; which build: PIP_*
#   packaging/try_wheel.sh sid dist/filigree_nn-*abi3*.whl debian      # Debian's own python3-torch, also a CPU build
# What was tried: docs/supply.md. MIRROR is Debian's, ROOT a folder with a system that is there already and stays; pip's settings (PIP_INDEX_URL,
# PIP_FIND_LINKS: a folder of wheels) apply inside too. The last line is the outcome, a row for docs/supply.md.
set -eu
here=$(dirname "$0")
suite=$1 wheel=$2 torch=${3:-$(grep '^torch==' "$here/../constraints.txt")}
root=${ROOT:-$(mktemp -d)}
packages=python3,python3-venv,ca-certificates
[ "$torch" = debian ] && packages=$packages,python3-torch
if [ ! -e "$root/usr/bin/python3" ]; then
    debootstrap --variant=minbase --include="$packages" "$suite" "$root" "${MIRROR:-http://deb.debian.org/debian}" >"$root.log" 2>&1
fi
[ -n "${ROOT:-}" ] || trap 'rm -rf "$root" "$root.log"' EXIT
mkdir -p "$root/try/links"
cp "$wheel" "$here/smoke.py" "$root/try/"
cp /etc/resolv.conf "$root/etc/resolv.conf"
cp "${PIP_CERT:-/etc/ssl/certs/ca-certificates.crt}" "$root/etc/ssl/certs/ca-certificates.crt"  # a proxy's too
[ -z "${PIP_FIND_LINKS:-}" ] || cp "$PIP_FIND_LINKS"/*.whl "$root/try/links/"
chroot "$root" env PIP_CERT=/etc/ssl/certs/ca-certificates.crt PIP_FIND_LINKS=/try/links PIP_DISABLE_PIP_VERSION_CHECK=1 HOME=/try TORCH="$torch" sh -eu -c '
    cd /try
    ! command -v cc c++ gcc g++ || { echo "a compiler is there"; exit 1; }
    system=; [ "$TORCH" != debian ] || system=--system-site-packages
    [ -x env/bin/python ] || python3 -m venv $system env
    [ "$TORCH" = debian ] || env/bin/pip install --quiet --only-binary :all: "$TORCH"
    : >constraints.txt
    if [ "$TORCH" = debian ]; then
        env/bin/python -c "import importlib.metadata as m; print(\"torch==\" + m.version(\"torch\"))" >constraints.txt
        echo "Debian has $(cat constraints.txt)"
    fi
    wheel=$(ls -t filigree_nn-*.whl | head -n 1)
    env/bin/pip install --quiet --only-binary :all: -c constraints.txt "./$wheel[data]"  # refuses where Debian has an older torch
    env/bin/filigree --version
    env/bin/filigree doctor
    env/bin/python smoke.py
'
