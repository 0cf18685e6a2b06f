#!/usr/bin/env bash
# Installs what the benches compare with and count by, where it is missing: Debian's valgrind, nginx, skopeo
# and docker-registry. CI calls it; the benches themselves install nothing, and say what they miss.
set -euo pipefail

# shellcheck source=tests/apt.sh
source "$(dirname "${BASH_SOURCE[0]}")/../tests/apt.sh"

packages=()
command -v valgrind >/dev/null || packages+=(valgrind)
command -v nginx >/dev/null || packages+=(nginx-light)
command -v skopeo >/dev/null || packages+=(skopeo)
command -v docker-registry >/dev/null || packages+=(docker-registry)
[ "${#packages[@]}" != 0 ] || exit 0

timeout 180 apt-get update -qq >/dev/null || true
# One by one: one that isn't to be had must not take the others along.
for package in "${packages[@]}"; do
  apt_install "$package" >/dev/null ||
    echo "apt can't install $package" >&2
done
