# shellcheck shell=bash
# The programs this run needs: Debian's, installed by apt when one of them is missing.

# shellcheck source=tests/apt.sh
source "$ROOT/tests/apt.sh"

# Some machines carry a newer docker command line in /usr/local/bin; the run is about the one that
# belongs to the daemon.
DOCKER=/usr/bin/docker

# program:package. runc runs the containers of dockerd and podman (crun refuses hybrid cgroups).
TOOLS=(
  docker-registry:docker-registry /usr/sbin/dockerd:docker.io "$DOCKER:docker.io" containerd:containerd
  ctr:containerd runc:runc ip:iproute2 podman:podman skopeo:skopeo zstd:zstd jq:jq curl:curl
  buildah:buildah strip:binutils systemd-analyze:systemd
  openssl:openssl /usr/bin/python3:python3
  /usr/share/doc/python3-grpcio:python3-grpcio
  promtool:prometheus /usr/lib/python3/dist-packages/prometheus_client:python3-prometheus-client
)

missing_tools() {
  local tool
  for tool in "${TOOLS[@]}"; do
    command -v "${tool%%:*}" >/dev/null || [ -e "${tool%%:*}" ] || printf '%s\n' "${tool#*:}"
  done | sort -u
}

# Packages one by one when all at once fails: one that isn't to be had must not take the others along.
install_tools() {
  local packages package
  mapfile -t packages < <(missing_tools)
  [ "${#packages[@]}" != 0 ] || return 0
  note "installing: ${packages[*]}"
  timeout 180 apt-get update -qq >"$LOGS/apt.txt" 2>&1 || true
  if ! apt_install "${packages[@]}" >>"$LOGS/apt.txt" 2>&1; then
    for package in "${packages[@]}"; do
      apt_install "$package" >>"$LOGS/apt.txt" 2>&1 || note "apt can't install $package: $(tail -n 1 "$LOGS/apt.txt")"
    done
  fi
}

# have PROGRAM...: the first one that is missing is named on standard output.
have() {
  local program
  for program in "$@"; do
    if ! command -v "$program" >/dev/null; then
      printf '%s could not be installed' "$program"
      return 1
    fi
  done
}
