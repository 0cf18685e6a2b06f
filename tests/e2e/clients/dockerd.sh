# shellcheck shell=bash
# dockerd, its own daemon, with the daemon.json of millpond client-config. It can only ask a mirror
# for Docker Hub's names.

dockerd_needs() { echo dockerd "$DOCKER" runc; }
# No zstd: Debian 12's dockerd (20.10) can't unpack such layers, whoever serves them.
dockerd_images() { echo gzip index list pinned; }

dockerd_start() {
  local home=$WORK/docker
  mkdir -p "$home/client"
  client_config docker "http://$MIRROR"
  spawn dockerd dockerd --config-file "$CLIENT_ROOT/etc/docker/daemon.json" --data-root "$home/data" \
    --exec-root "$home/exec" --pidfile "$home/dockerd.pid" --host "unix://$home/docker.sock" \
    --iptables=false --ip6tables=false --bridge=none
  wait_until 30 "dockerd's socket" docker_run version
}

dockerd_stop() {
  stop dockerd
  umount_below "$WORK/docker"
  rm -rf "$WORK/docker"
}

dockerd_wipe() {
  dockerd_stop
  dockerd_start
}

# Nobody's own credentials or contexts.
docker_run() {
  DOCKER_CONFIG=$WORK/docker/client timeout 120 "$DOCKER" --host "unix://$WORK/docker/docker.sock" "$@"
}

# As a user types it: debian-test:gzip for docker.io/library/debian-test:gzip.
dockerd_reference() {
  local repository
  repository=$(image "$1" .repository)
  printf '%s%s\n' "${repository#library/}" "$(image "$1" .suffix)"
}

dockerd_pull() {
  docker_run pull --quiet "$(dockerd_reference "$1")"
}

dockerd_verify() {
  local found
  found=$(docker_run image inspect "$(dockerd_reference "$1")")
  same "config digest" "$(image "$1" .host.config)" "$(jq -r '.[0].Id' <<<"$found")"
  same "diffIDs" "$(image "$1" .host.diff_ids)" "$(jq -r '.[0].RootFS.Layers[]' <<<"$found")"
  jq -r '.[0].RepoDigests[]' <<<"$found" | grep -q "@$(image "$1" .digest)\$" ||
    die "not pulled by the right manifest: $found"
}

dockerd_container() {
  local said
  said=$(docker_run run --rm --network none "$(dockerd_reference gzip)" sh -c "$CONTAINER_SCRIPT")
  same "what the container said" "$(container_says)" "$said"
}
