# shellcheck shell=bash
# Hosted repositories: real clients push into millpond, and others pull what they pushed, at the address
# at which they pull mirrored images. Afterwards the reference registry serves the directory, and
# millpond serves one that the reference registry has written.

hosted_story() {
  local why
  if ! why=$(have dockerd "$DOCKER" containerd ctr podman buildah skopeo runc docker-registry); then
    skip hosted "$why"
    return
  fi
  rm -rf "$WORK"/data-*
  hosted_rules '- {anyone: true, effect: allow}'
  check "hosted: millpond starts with hosted repositories, empty" millpond_with_hosted
  [ "$last" = ok ] || return 0
  hosted_clients_start
  mark hosted
  hosted_pushes
  check "hosted: no upstream was asked for a hosted repository" no_hosted_name_went_up
  millpond_stop
  hosted_login
  hosted_clients_stop
  hosted_directory
}

# hosted_rules RULES: what callers may do, as lines of the section access.
hosted_rules() { printf '%s\n' "$@" >"$WORK/rules.yml"; }

# millpond_with_hosted [FILE]: the usual configuration and what hosts repositories, over the data that there is;
# FILE has further sections.
millpond_with_hosted() {
  cat >"$WORK/hosted.yml" <<YAML
version: 0.1
log: {level: info, formatter: text}
storage:
  filesystem: {rootdirectory: $WORK/data-hosted}
  minfree: 0
http: {addr: $MIRROR, shutdowndelay: 0s}
proxy:
  remoteurl: https://$HUB
  aliases: [docker.io]
  username: $UPSTREAM_USER
  password: $UPSTREAM_PASSWORD
  ca: $CA
hosted:
  - name: ci
    repositories: ["ci/**"]
access:
$(sed 's/^/  /' "$WORK/rules.yml")
$(cat "${1:-/dev/null}")
YAML
  spawn millpond "$MILLPOND" serve "$WORK/hosted.yml"
  wait_until 20 "millpond to listen" hosted_answers
}

# 401 where a client should say who it is.
hosted_answers() {
  curl -s -m 2 -o /dev/null "http://$MIRROR/v2/"
}

hosted_clients_start() {
  check "hosted: docker starts" dockerd_start
  check "hosted: containerd starts" containerd_start
  podman_wipe
  : >"$WORK/registries.conf"
}

hosted_clients_stop() {
  quietly dockerd_stop
  quietly containerd_stop
  quietly podman_wipe
}

hosted_buildah() {
  local command=$1
  shift
  STORAGE_DRIVER=vfs timeout 180 buildah --root "$WORK/buildah/root" --runroot "$WORK/buildah/run" \
    --storage-driver vfs "$command" "$@"
}

hosted_buildah_wipe() {
  rm -rf "$WORK/buildah"
  mkdir -p "$WORK/buildah"
}

# hosted_whole REPOSITORY:TAG: skopeo gets the manifest, all its children and every blob with their bytes.
hosted_whole() {
  local folder=$WORK/hosted-whole file
  rm -rf "$folder"
  timeout 120 skopeo --insecure-policy copy --quiet --all --src-tls-verify=false \
    "docker://$MIRROR/$1" "dir:$folder"
  for file in "$folder"/*; do
    case ${file##*/} in
      version | manifest.json | *.manifest.json | signature-*) ;;
      *) right_bytes "$file" "sha256:${file##*/}" ;;
    esac
  done
}

# hosted_config REPOSITORY:TAG: the digest of the image's config, as the registry has it.
hosted_config() {
  timeout 30 skopeo inspect --raw --tls-verify=false "docker://$MIRROR/$1" | jq -er .config.digest
}

# --- Pushes, by one client each, and pulls by another one ----------------------------

hosted_pushes() {
  local base=library/debian-test:gzip
  check "hosted: docker pulls a mirrored image" docker_run pull --quiet "$MIRROR/$base"
  check "hosted: docker push, without a login" hosted_docker_push "$base" ci/docker:1
  check "hosted: docker push again, and by a second tag" hosted_docker_push "$base" ci/docker:1 ci/docker:2
  check "hosted: docker's push is whole" hosted_whole ci/docker:2
  check "hosted: podman pulls what docker pushed" hosted_podman_pull ci/docker:1

  check "hosted: podman push" podman_run push --quiet --tls-verify=false "$MIRROR/ci/docker:1" "docker://$MIRROR/ci/podman:1"
  check "hosted: podman's push is whole" hosted_whole ci/podman:1
  check "hosted: containerd pulls what podman pushed" hosted_ctr_pull ci/podman:1

  check "hosted: ctr images push" hosted_ctr_push ci/podman:1 ci/ctr:1
  check "hosted: containerd's push is whole" hosted_whole ci/ctr:1
  check "hosted: docker pulls what containerd pushed" hosted_docker_pull ci/ctr:1

  hosted_buildah_wipe
  check "hosted: buildah build --cache-to" hosted_build ci/built:1
  check "hosted: buildah push" hosted_buildah push --quiet --tls-verify=false "$MIRROR/ci/built:1" "docker://$MIRROR/ci/built:1"
  check "hosted: buildah's push is whole" hosted_whole ci/built:1
  check "hosted: docker pulls what buildah pushed" hosted_docker_pull ci/built:1
  hosted_buildah_wipe
  check "hosted: buildah build --cache-from takes the layers from the cache" hosted_build_from_cache

  check "hosted: skopeo copy --all of an index" hosted_skopeo_copy library/debian-multi:1.0 ci/multi:1
  check "hosted: skopeo's copy is whole" hosted_whole ci/multi:1
  check "hosted: buildah pulls what skopeo pushed" hosted_buildah pull --quiet --tls-verify=false "$MIRROR/ci/multi:1"
  check "hosted: curl pushes with 100-continue" hosted_curl
  check "hosted: a mirrored repository can't be pushed to" hosted_refused
}

# hosted_docker_push IMAGE REPOSITORY:TAG...
hosted_docker_push() {
  local image=$1 target
  shift
  for target in "$@"; do
    docker_run tag "$MIRROR/$image" "$MIRROR/$target"
    docker_run push "$MIRROR/$target"
  done
}

hosted_docker_pull() {
  docker_run pull --quiet "$MIRROR/$1"
  same "config of $1" "$(hosted_config "$1")" "$(docker_run image inspect --format '{{.Id}}' "$MIRROR/$1")"
}

hosted_podman_pull() {
  podman_run pull --quiet --tls-verify=false "$MIRROR/$1"
  same "config of $1" "$(hosted_config "$1")" "sha256:$(podman_run image inspect --format '{{.Id}}' "$MIRROR/$1")"
}

hosted_ctr_pull() {
  ctr_run images pull --plain-http "$MIRROR/$1"
}

hosted_ctr_push() {
  ctr_run images tag "$MIRROR/$1" "$MIRROR/$2"
  ctr_run images push --plain-http "$MIRROR/$2"
}

# hosted_containerfile: a build with steps that a cache can save.
hosted_containerfile() {
  mkdir -p "$WORK/build"
  cat >"$WORK/build/Containerfile" <<CONTAINERFILE
FROM $MIRROR/library/debian-test:gzip
RUN echo built >/built
RUN echo again >>/built
CONTAINERFILE
}

# hosted_build TAG OPTION...
hosted_build() {
  local tag=$1
  shift
  hosted_containerfile
  hosted_buildah build --isolation chroot --tls-verify=false --layers --tag "$MIRROR/$tag" \
    --cache-to "$MIRROR/ci/cache" --cache-from "$MIRROR/ci/cache" "$@" "$WORK/build"
}

hosted_build_from_cache() {
  local said
  said=$(hosted_build ci/built:2 2>&1)
  grep -qi 'cache pulled from remote' <<<"$said" || die "nothing came from the cache: $said"
}

# hosted_skopeo_copy FROM TO
hosted_skopeo_copy() {
  timeout 120 skopeo --insecure-policy copy --quiet --all --src-tls-verify=false --dest-tls-verify=false \
    "docker://$MIRROR/$1" "docker://$MIRROR/$2"
}

# curl waits for the server's word before it sends more than 1 MiB.
hosted_curl() {
  local digest said
  head -c 3000000 /dev/urandom >"$WORK/blob"
  digest=sha256:$(sha256sum <"$WORK/blob" | cut -d' ' -f1)
  said=$(curl -sv -m 30 -X POST -H 'Expect: 100-continue' --data-binary "@$WORK/blob" \
    "http://$MIRROR/v2/ci/curl/blobs/uploads/?digest=$digest" 2>&1)
  grep -q '^< HTTP/1.1 100 Continue' <<<"$said" || die "no 100: $said"
  grep -q '^< HTTP/1.1 201 Created' <<<"$said" || die "no 201: $said"
  curl -sf -m 30 "http://$MIRROR/v2/ci/curl/blobs/$digest" | cmp - "$WORK/blob"
}

hosted_refused() {
  local said
  ! said=$(docker_run push "$MIRROR/library/debian-test:gzip" 2>&1) || die "pushed: $said"
  grep -q 'only ci/\*\* can be pushed to' <<<"$said" || die "no reason: $said"
}

no_hosted_name_went_up() {
  same "requests" "" "$(requests_since hosted | grep ' /v2/ci/' || true)"
}

# --- Docker as an anonymous mirror client and as a user who pushes -------------------

hosted_login() {
  printf '%s\n' "$ALICE_HTPASSWD" >"$WORK/mirror.htpasswd"
  printf 'auth:\n  htpasswd: {realm: millpond, path: %s}\n' "$WORK/mirror.htpasswd" >"$WORK/auth.yml"
  hosted_rules '- {users: [alice], repositories: ["ci/**"], effect: allow}' \
    '- {repositories: ["library/**"], anyone: true, actions: [pull, list], effect: allow}'
  check "hosted: millpond starts with users and rules" millpond_with_hosted "$WORK/auth.yml"
  [ "$last" = ok ] || return 0
  quietly dockerd_wipe
  check "hosted: login: docker, anonymous, pulls from docker.io through the mirror" dockerd_pull gzip
  check "hosted: login: docker push without a login is refused" hosted_docker_is_refused
  check "hosted: login: docker login" docker_login "$ALICE_PASSWORD"
  check "hosted: login: docker push" hosted_docker_push_user
  check "hosted: login: docker still pulls from docker.io" dockerd_pull index
  check "hosted: login: skopeo pulls with credentials" hosted_skopeo_user
  check "hosted: login: skopeo without credentials is refused" hosted_skopeo_is_refused
  millpond_stop
}

hosted_docker_tag() { docker_run tag "$(dockerd_reference gzip)" "$MIRROR/ci/user:1"; }

hosted_docker_is_refused() {
  hosted_docker_tag
  ! docker_run push "$MIRROR/ci/user:1" || die "pushed without a login"
}

hosted_docker_push_user() {
  hosted_docker_tag
  docker_run push "$MIRROR/ci/user:1"
}

hosted_skopeo_user() {
  timeout 60 skopeo inspect --tls-verify=false --creds "alice:$ALICE_PASSWORD" \
    "docker://$MIRROR/ci/user:1" | jq -er .Digest
}

hosted_skopeo_is_refused() {
  ! timeout 60 skopeo inspect --tls-verify=false "docker://$MIRROR/ci/user:1" || die "pulled without a login"
}

# --- The directory, served by the reference registry and back ------------------------

hosted_directory() {
  cat >"$WORK/plain.yml" <<YAML
version: 0.1
log: {level: warn}
storage:
  filesystem: {rootdirectory: $WORK/data-hosted}
  delete: {enabled: true}
http: {addr: $MIRROR, secret: e2e}
YAML
  check "hosted: docker-registry starts on the directory" plain_registry_start
  [ "$last" = ok ] || return 0
  local name
  for name in docker:1 docker:2 podman:1 ctr:1 built:1 multi:1 user:1; do
    check "hosted: docker-registry serves ci/$name" hosted_whole "ci/$name"
  done
  check "hosted: docker-registry takes a push" hosted_skopeo_copy ci/multi:1 ci/registry:1
  check "hosted: docker-registry ends" stop plain-registry
  hosted_rules '- {anyone: true, effect: allow}'
  check "hosted: millpond starts on what docker-registry has written" millpond_with_hosted
  for name in registry:1 docker:2 multi:1; do
    check "hosted: millpond serves ci/$name" hosted_whole "ci/$name"
  done
  check "hosted: millpond goes on: skopeo pushes" hosted_skopeo_copy ci/registry:1 ci/after:1
  check "hosted: millpond goes on: whole" hosted_whole ci/after:1
  millpond_stop
}

plain_registry_start() {
  spawn plain-registry docker-registry serve "$WORK/plain.yml"
  wait_until 20 "docker-registry to listen" mirror_answers
}
