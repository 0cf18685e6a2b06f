# shellcheck shell=bash
# podman with the configuration of millpond client-config: docker.io and a second registry, by their own names.

podman_needs() { echo podman runc; }
podman_images() { echo gzip zstd index pinned second; }

podman_start() {
  client_config podman "http://$MIRROR" --upstream docker.io --upstream "$SECOND_NAME"
  cp "$CLIENT_ROOT/etc/containers/registries.conf.d/millpond.conf" "$WORK/registries.conf"
  podman_wipe
}

podman_stop() { :; }

podman_wipe() {
  rm -rf "$WORK/podman"
  mkdir -p "$WORK/podman"
}

podman_run() {
  CONTAINERS_REGISTRIES_CONF=$WORK/registries.conf timeout 120 podman \
    --root "$WORK/podman/root" --runroot "$WORK/podman/run" --tmpdir "$WORK/podman/tmp" \
    --storage-driver vfs --events-backend none --cgroup-manager cgroupfs --runtime runc "$@"
}

podman_reference() {
  local registry=docker.io
  [ "$(image "$1" .upstream)" = hub ] || registry=$SECOND_NAME
  printf '%s/%s%s\n' "$registry" "$(image "$1" .repository)" "$(image "$1" .suffix)"
}

podman_pull() {
  podman_run pull --quiet "$(podman_reference "$1")"
}

podman_verify() {
  local found digest
  found=$(podman_run image inspect "$(podman_reference "$1")")
  same "config digest" "$(image "$1" .host.config)" "sha256:$(jq -r '.[0].Id' <<<"$found")"
  same "diffIDs" "$(image "$1" .host.diff_ids)" "$(jq -r '.[0].RootFS.Layers[]' <<<"$found")"
  for digest in $(host_manifests "$1"); do
    jq -r '.[0].RepoDigests[]' <<<"$found" | grep -q "@$digest\$" || die "no manifest $digest in $found"
  done
}

# The pulled layers make a Debian that runs, and hold the payload's bytes.
podman_container() {
  local said
  # The limits because podman would raise them, and a sandbox may not let it.
  said=$(podman_run run --rm --network none \
    --ulimit nofile=1024:1024 --ulimit nproc=1024:1024 "$(podman_reference gzip)" sh -c "$CONTAINER_SCRIPT")
  same "what the container said" "$(container_says)" "$said"
}
