# shellcheck shell=bash
# An air gap: images are exported into a bundle, and imported by another millpond in a network namespace
# without a route, where containerd and dockerd pull them by tag.

AWAY=millpond-$RUN_ID

# Debian 12's dockerd can't unpack zstd.
bundled_images() { echo gzip index list; }

bundle_reference() {
  printf 'docker.io/%s%s\n' "$(image "$1" .repository)" "$(image "$1" .suffix)"
}

bundles_story() {
  local why name here=$MILLPOND path=$PATH PROXY_MORE references=()
  if ! why=$(have containerd ctr dockerd "$DOCKER" skopeo ip nsenter); then
    skip bundles "$why"
    return
  fi
  for name in $(bundled_images); do references+=("$(bundle_reference "$name")"); done
  mirror_is_fresh bundles || return 0
  check "bundles: images are warmed" "$here" warm --config "$WORK/millpond.yml" "${references[@]}"
  check "bundles: images are exported" "$here" export --config "$WORK/millpond.yml" "${references[@]}" "$WORK/bundle.tar"
  check "bundles: the sum of the bundle is right" sum_is_right
  for name in $(bundled_images); do
    check "bundles: skopeo reads $name of the bundle" skopeo_reads_bundle "$name"
  done
  check "bundles: skopeo writes an archive" skopeo_writes_archive
  millpond_stop
  upstreams_stop

  away_begins "$here" || return 0
  PROXY_MORE="offline: true"
  millpond_config bundles-away
  check "bundles: an import that is killed at random points goes on when it is run again" import_survives_kills "$here"
  mv "$WORK/data-bundles-away" "$WORK/data-bundles-killed"
  check "bundles: millpond starts without a route" millpond_start bundles-away
  check "bundles: there is no route" no_route
  check "bundles: what isn't there is a 404 that says why" absence_is_explained
  check "bundles: the bundle is imported" "$MILLPOND" import --config "$WORK/millpond.yml" --pin "$WORK/bundle.tar"
  check "bundles: what skopeo wrote is imported" "$MILLPOND" import --config "$WORK/millpond.yml" \
    --name docker.io/skopeo/gzip:1 "$WORK/skopeo.tar"
  for name in containerd dockerd; do
    check "bundles: $name starts without a route" "${name}_start"
    pull_all "$name" "without a route" gzip index list
    if [ "$name" = containerd ]; then
      check "bundles: what ctr exports is imported" ctr_export_is_imported
    fi
    quietly "${name}_stop"
  done
  millpond_stop
  away_ends "$here" "$path"
  upstreams_start
}

ctr_export_is_imported() {
  ctr_run images export "$WORK/ctr.tar" "$(containerd_reference gzip)"
  "$MILLPOND" import --config "$WORK/millpond.yml" "$WORK/ctr.tar" | tee /dev/stderr | grep -q "^1 of 1 images: "
}

sum_is_right() (cd "$WORK" && sha256sum --check bundle.tar.sha256)

# This machine's platform of an image, byte for byte.
skopeo_reads_bundle() {
  local folder=$WORK/skopeo-bundle digest
  rm -rf "$folder"
  timeout 120 skopeo --insecure-policy copy --quiet \
    "oci-archive:$WORK/bundle.tar:$(bundle_reference "$1")" "dir:$folder"
  right_bytes "$folder/manifest.json" "$(image "$1" .host.digest)"
  for digest in $(host_blobs "$1"); do
    right_bytes "$folder/${digest#sha256:}" "$digest"
  done
}

skopeo_writes_archive() {
  timeout 120 skopeo --insecure-policy copy --quiet --src-tls-verify=false \
    "docker://$MIRROR/$(mirror_path gzip)$(image gzip .suffix)" "oci-archive:$WORK/skopeo.tar"
}

# What is run from here on by its usual name runs in a network namespace that has nothing but loopback.
away_begins() {
  local here=$1 program bin=$WORK/away-bin
  mkdir -p "$bin"
  ip netns add "$AWAY" && ip netns exec "$AWAY" ip link set lo up || return
  for program in containerd ctr dockerd curl; do
    in_namespace "$(command -v "$program")" >"$bin/$program"
  done
  in_namespace "$here" >"$bin/millpond"
  chmod +x "$bin"/*
  PATH=$bin:$PATH MILLPOND=$bin/millpond
}

# Not by `ip netns exec`, which mounts another /sys, without the cgroups that dockerd needs.
in_namespace() { printf '#!/bin/sh\nexec nsenter --net=/run/netns/%s %s "$@"\n' "$AWAY" "$1"; }

away_ends() {
  MILLPOND=$1 PATH=$2
  ip netns del "$AWAY"
}

no_route() { [ -z "$(ip netns exec "$AWAY" ip route)" ]; }

absence_is_explained() {
  curl -s "http://$MIRROR/v2/$(image gzip .repository)/manifests/none" | grep -q "this mirror is offline"
}

# import_survives_kills MILLPOND: no server runs; this process works on the directory by itself.
import_survives_kills() {
  local round import=("$1" import --config "$WORK/millpond.yml" "$WORK/bundle.tar")
  for round in $(seq 8); do
    timeout --signal=KILL "0.$((RANDOM % 10))$((RANDOM % 10))" "${import[@]}" || true
  done
  "${import[@]}"
  "$1" scrub --config "$WORK/millpond.yml" | tee /dev/stderr | grep -q " 0 corrupt"
  "${import[@]}" | grep -q " 0 blobs, 0 B imported"
}
