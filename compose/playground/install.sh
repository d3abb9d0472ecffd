#!/bin/sh
# Installs what the playground, the demo and the tests need: Debian packages, and a virtual environment on the
# distribution's own Python (python3-bpfcc belongs to that interpreter, not to another one that comes first on PATH).
set -eu

PYTHON=${PYTHON:-/usr/bin/python3}
VENV=${VENV:-.venv}
PACKAGES="python3-bpfcc python3-venv linux-libc-dev libbpf1 etcd-server etcd-client iproute2 nftables iputils-ping util-linux bpftool ethtool iptables ipset strace gcc libc6-dev"

say() { printf '%s\n' "$*"; }
fail() { printf 'install: %s\n' "$*" >&2; exit 1; }

[ "$(id -u)" = 0 ] || fail "this needs root (network namespaces, eBPF, apt): run it as root, or with sudo"
command -v apt-get >/dev/null || fail "apt-get not found: Debian 12 or later is expected; install by hand: $PACKAGES"

missing=""
for package in $PACKAGES; do
  [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing="$missing $package"
done
if [ -n "$missing" ]; then
  say "Installing Debian packages:$missing"
  # etcd-server would start an etcd of its own on the default port; the playground starts the one it needs.
  policy=/usr/sbin/policy-rc.d
  if [ ! -e $policy ]; then
    printf '#!/bin/sh\nexit 101\n' > $policy
    chmod 755 $policy
    trap 'rm -f /usr/sbin/policy-rc.d' EXIT
    trap 'exit 1' INT TERM
  fi
  export DEBIAN_FRONTEND=noninteractive
  # shellcheck disable=SC2086  # a list of package names
  apt-get install -y -q --no-install-recommends $missing >/dev/null 2>&1 ||
    { apt-get update -q && apt-get install -y -q --no-install-recommends $missing; } ||
    fail "apt-get could not install:$missing"
fi

if [ ! -x "$VENV/bin/python" ]; then
  say "Creating $VENV on $PYTHON"
  "$PYTHON" -m venv --system-site-packages "$VENV"
fi
say "Installing Python packages into $VENV"
pip() { PIP_DISABLE_PIP_VERSION_CHECK=1 "$VENV/bin/pip" install --quiet "$@"; }
pip --require-hashes -r requirements.lock
command -v kubectl >/dev/null || [ -x "$VENV/bin/kubectl" ] || pip --require-hashes -r requirements-kubectl.lock
pip --no-deps --no-build-isolation -e .
