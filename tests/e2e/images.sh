# shellcheck shell=bash
# The images: a root file system from Debian's own packages, everything else from images.py; and
# what the checks ask about them.

# Enough of Debian for a shell to run in a container: four megabytes of packages, no bootstrap.
# dpkg-deb unpacks them as they are; their maintainer scripts are not run.
DEBIAN_PACKAGES=(base-files base-passwd busybox-static dash libc6 netbase)

# Debian's packages are kept between runs, outside of the work tree.
debian_root() {
  local cache=${XDG_CACHE_HOME:-$HOME/.cache}/millpond-e2e/debs fresh=$WORK/debs deb
  if [ "$(find "$cache" -name '*.deb' 2>/dev/null | wc -l)" != "${#DEBIAN_PACKAGES[@]}" ]; then
    mkdir -p "$fresh" "$(dirname "$cache")"
    # The package lists may be absent (a fresh container) or outdated.
    (cd "$fresh" && timeout 120 apt-get download -q "${DEBIAN_PACKAGES[@]}") ||
      (timeout 180 apt-get update -q && cd "$fresh" && timeout 120 apt-get download -q "${DEBIAN_PACKAGES[@]}")
    rm -rf "$cache"
    mv "$fresh" "$cache"
  fi
  mkdir -p "$WORK/root"
  for deb in "$cache"/*.deb; do
    dpkg-deb -x "$deb" "$WORK/root"
  done
}

IMAGES_DIR=

make_images() {
  IMAGES_DIR=$WORK/images
  debian_root
  /usr/bin/python3 "$E2E/images.py" "$WORK/root" "$IMAGES_DIR"
}

push_images() {
  timeout 120 /usr/bin/python3 "$E2E/push.py" "$IMAGES_DIR" hub "$HUB" "$CA" "$UPSTREAM_USER" "$UPSTREAM_PASSWORD"
  timeout 120 /usr/bin/python3 "$E2E/push.py" "$IMAGES_DIR" second "$SECOND" "$CA" "$SECOND_USER" "$SECOND_PASSWORD"
}

# image NAME FIELD: .digest, .suffix, .host.config, ... of an image; arrays come one a line.
image() {
  jq -er --arg name "$1" '.[$name]'"$2"' | if type == "array" then .[] else . end' "$IMAGES_DIR/images.json"
}

# host_blobs IMAGE...: config and layers of what this machine pulls of these images, each once. An
# artifact has none: it isn't for a machine.
host_blobs() {
  local name
  for name in "$@"; do
    if [ "$(jq --arg name "$name" '.[$name].host' "$IMAGES_DIR/images.json")" != null ]; then
      image "$name" .host.config
      image "$name" .host.layers
    fi
  done | sort -u
}

# host_manifests IMAGE: the manifests on the way: the index, and this machine's child.
host_manifests() {
  { image "$1" .digest && image "$1" .host.digest; } | sort -u
}

# What a container of the image gzip is asked to do, and what it must say: it is a Debian, the upper
# layer is on top, its whiteout hides a file, and the payload is intact.
# shellcheck disable=SC2016
CONTAINER_SCRIPT='. /etc/os-release; echo "$ID"; busybox cat /etc/notes
test -e /etc/issue || echo hidden; busybox sha256sum /payload.bin'

container_says() {
  printf 'debian\nend-to-end\nhidden\n%s  /payload.bin\n' "$(cat "$IMAGES_DIR/payload.sha256")"
}

# right_bytes FILE DIGEST
right_bytes() {
  same "sha256 of $1" "${2#sha256:}" "$(sha256sum <"$1" | cut -d' ' -f1)"
}
