# shellcheck shell=bash
# What is not about one client: a range before the whole, many ranges, many clients at once, tags
# that move, and the reference registry's data directory taken over.

# --- One download for everybody ---------------------------------------------------

range_story() {
  local blob
  blob=$(image gzip '.host.layers[1]')
  mirror_is_fresh range || return 0
  mark range
  check "range: bytes 1000000-1000999 of a 40 MiB blob nobody pulled yet" range_is_right "$blob"
  check "range: then the whole image, and the blob crossed the line once" range_then_whole
  millpond_stop
}

range_is_right() {
  local url
  url=http://$MIRROR/v2/$(image gzip .repository)
  # The manifest first, as every client does: it is what makes the mirror answer for the blob.
  curl -sf -m 30 -o /dev/null -H "Accept: application/vnd.docker.distribution.manifest.v2+json" \
    "$url/manifests/$(image gzip .digest)"
  same "status" 206 "$(curl -s -m 60 -r 1000000-1000999 -o "$WORK/range" -w '%{http_code}' "$url/blobs/$1")"
  same "length" 1000 "$(stat -c %s "$WORK/range")"
  cmp -n 1000 "$WORK/range" "$IMAGES_DIR/blobs/${1#sha256:}" 0 1000000
}

range_then_whole() {
  skopeo_wipe
  skopeo_pull gzip
  skopeo_verify gzip
  one_get_each range gzip
}

# containerd 2.1 and later can fetch a layer by parallel, open-ended ranges, each hung up after its
# chunk. Debian's is older, so curl does the same.
RANGED_WORKERS=8
RANGED_CHUNK=$((2 << 20))

ranged_story() {
  local blob
  blob=$(image gzip '.host.layers[1]')
  mirror_is_fresh ranged || return 0
  mark ranged
  check "ranged: $RANGED_WORKERS at once bytes=N- of a cold 40 MiB blob, cut off after 2 MiB each: right bytes" \
    ranged_is_right "$blob"
  check "ranged: all of it was asked of upstream" wait_until 30 "all of it in upstream's log" crossed_whole ranged "$blob"
  # No request is in flight after this: all are in the log.
  millpond_stop
  mark ranged-end
  check "ranged: no part of it crossed the line twice" crossed_once ranged "$blob"
}

ranged_is_right() {
  local url worker pids=() pid
  url=http://$MIRROR/v2/$(image gzip .repository)
  rm -rf "$WORK/ranged"
  mkdir "$WORK/ranged"
  curl -sf -m 30 -o /dev/null -H "Accept: application/vnd.docker.distribution.manifest.v2+json" \
    "$url/manifests/$(image gzip .digest)"
  for ((worker = 0; worker < RANGED_WORKERS; worker++)); do
    ranged_worker "$url/blobs/$1" "$worker" "$(blob_bytes "$1")" &
    pids+=($!)
  done
  for pid in "${pids[@]}"; do
    wait "$pid" || die "a worker failed"
  done
  same "answers that aren't 206" "" "$(head -qn 1 "$WORK"/ranged/*.head | grep -v ' 206' || true)"
  find "$WORK/ranged" -name '*.part' | sort | xargs cat >"$WORK/ranged/whole"
  right_bytes "$WORK/ranged/whole" "$1"
}

# ranged_worker URL NUMBER SIZE: every eighth chunk. Everything from its start on is asked for; curl
# can't write any more when head has the chunk, and hangs up.
ranged_worker() {
  local offset name
  for ((offset = $2 * RANGED_CHUNK; offset < $3; offset += RANGED_WORKERS * RANGED_CHUNK)); do
    name=$WORK/ranged/$(printf '%012d' "$offset")
    { curl -sN -m 60 -D "$name.head" -H "Range: bytes=$offset-" "$1" || true; } |
      head -c "$RANGED_CHUNK" >"$name.part"
  done
}

blob_bytes() { stat -c %s "$IMAGES_DIR/blobs/${1#sha256:}"; }

# crossed MARK BLOB: the bytes of it that upstream's log counts since that mark.
crossed() {
  requests_since "$1" | awk -v blob="/blobs/$2" '
    $1 == "GET" && $3 ~ "20[06]" && index($2, blob) { sum += $4 }
    END { printf "%d\n", sum }'
}

crossed_whole() { [ "$(crossed "$@")" -ge "$(blob_bytes "$2")" ]; }

# A tenth more is for what was on its way when a stream was given up.
crossed_once() {
  local bytes most
  bytes=$(crossed "$@")
  most=$(($(blob_bytes "$2") * 11 / 10))
  [ "$bytes" -le "$most" ] || die "upstream sent $bytes bytes, more than $most:
$(requests_since "$1" | grep "$2")"
}

concurrency_story() {
  mirror_is_fresh concurrency || return 0
  mark concurrency
  check "concurrency: 4 skopeo at once, cold, all complete" four_at_once
  check "concurrency: each blob has exactly 1 GET in upstream's log" one_get_each concurrency gzip
  millpond_stop
}

four_at_once() {
  local each pids=() pid
  skopeo_wipe
  for each in 1 2 3 4; do
    skopeo_copy gzip "$WORK/skopeo/$each" &
    pids+=($!)
  done
  for pid in "${pids[@]}"; do
    wait "$pid" || die "a skopeo failed"
  done
  for each in 1 2 3 4; do
    skopeo_folder_is gzip "$WORK/skopeo/$each"
  done
}

# --- Tags -------------------------------------------------------------------------

# Tags go stale at once here, so every pull by tag asks upstream what the tag is now.
tags_story() {
  local pusher=("$IMAGES_DIR" hub "$HUB" "$CA" "$UPSTREAM_USER" "$UPSTREAM_PASSWORD")
  mirror_is_fresh tags 1ms || return 0
  check "tags: moving -> gzip upstream" /usr/bin/python3 "$E2E/push.py" "${pusher[@]}" gzip moving
  check "tags: moving is gzip" moving_is gzip
  mark tags
  check "tags: unchanged: asked again" moving_is gzip
  check "tags: unchanged: HEAD, 0 upstream GETs" no_gets_since tags
  check "tags: moving -> zstd upstream" /usr/bin/python3 "$E2E/push.py" "${pusher[@]}" zstd moving
  check "tags: moving is zstd" moving_is zstd
  millpond_stop
}

moving_is() {
  same "digest of moving" "$(image "$1" .digest)" "$(
    timeout 30 skopeo inspect --raw --tls-verify=false "docker://$MIRROR/library/debian-test:moving" |
      sha256sum | sed 's/^/sha256:/; s/ .*//'
  )"
}

# --- The configuration of other clients ------------------------------------------------------

# CRI-O and BuildKit don't run here. CRI-O's file is read by the library that skopeo is made of;
# BuildKit's is at least well-formed.
client_config_story() {
  mirror_is_fresh client-config || return 0
  check "client-config: CRI-O's file, read by skopeo" crio_file_pulls
  check "client-config: BuildKit's file is TOML and names the mirror" buildkit_file_is_right
  check "client-config: --undo leaves nothing behind" undone
  millpond_stop
}

crio_file_pulls() {
  client_config crio "http://$MIRROR"
  skopeo_wipe
  timeout 120 skopeo --insecure-policy \
    --registries-conf "$CLIENT_ROOT/etc/containers/registries.conf.d/millpond.conf" copy --quiet --all \
    "docker://docker.io/$(image pinned .repository)$(image pinned .suffix)" "dir:$WORK/skopeo/pinned"
  skopeo_verify pinned
}

buildkit_file_is_right() {
  client_config buildkit "http://$MIRROR"
  /usr/bin/python3 - "$CLIENT_ROOT/etc/buildkit/buildkitd.toml" "$MIRROR" <<'PYTHON'
import sys, tomllib
registry = tomllib.load(open(sys.argv[1], "rb"))["registry"]
assert registry["docker.io"]["mirrors"] == [sys.argv[2]], registry
assert registry[sys.argv[2]]["http"] is True, registry
PYTHON
}

undone() {
  local client
  for client in docker containerd crio podman buildkit; do
    client_config "$client" "http://$MIRROR" --undo
  done
  same "files" "" "$(find "$CLIENT_ROOT" -type f)"
}

# --- The reference registry's directory -----------------------------------------------

# A directory written by a real distribution 2.8 proxy is served as it is, with its own
# configuration file; and goes back to it.
distribution_story() {
  local images=(gzip index artifact)
  cat >"$WORK/distribution.yml" <<YAML
version: 0.1
log:
  fields:
    service: registry
storage:
  cache:
    blobdescriptor: inmemory
  filesystem:
    rootdirectory: $WORK/data-distribution
http:
  addr: $DISTRIBUTION
  headers:
    X-Content-Type-Options: [nosniff]
health:
  storagedriver:
    enabled: true
    interval: 10s
    threshold: 3
proxy:
  remoteurl: https://$HUB
  username: $UPSTREAM_USER
  password: $UPSTREAM_PASSWORD
YAML
  check "distribution: a 2.8 proxy pulls ${images[*]}" fill_distribution "${images[@]}"
  upstreams_stop
  check "distribution: millpond starts with its configuration on its data" distribution_taken_over
  check "distribution: millpond serves ${images[*]}, upstream stopped" pull_from_mirror "${images[@]}"
  millpond_stop
  check "distribution: every entry of its expiry list is kept, and extended by use" state_carried_on
  upstreams_start
  mark handed-back
  check "distribution: the 2.8 proxy takes its data back and serves ${images[*]}" \
    serve_with_distribution distribution "${images[@]}"
  check "distribution: 0 upstream GETs of blobs, handed back" no_blob_gets_since handed-back

  mirror_is_fresh there || return 0
  check "distribution: millpond pulls ${images[*]}" pull_from_mirror "${images[@]}"
  millpond_stop
  mark back
  check "distribution: a 2.8 proxy serves ${images[*]} from millpond's data" serve_with_distribution there "${images[@]}"
  check "distribution: 0 upstream GETs of blobs" no_blob_gets_since back
}

start_distribution() {
  REGISTRY_HTTP_ADDR=$MIRROR REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY=$WORK/data-$1 SSL_CERT_FILE=$CA \
    spawn distribution docker-registry serve "$WORK/distribution.yml"
  millpond_is_up
}

fill_distribution() {
  start_distribution distribution
  pull_from_mirror "$@"
  # It saves its expiry list every few seconds.
  wait_until 15 "distribution to save its state" test -s "$WORK/data-distribution/scheduler-state.json"
  stop distribution
  cp "$WORK/data-distribution/scheduler-state.json" "$WORK/state-before.json"
}

# Both lists are in UTC and to the second comparable as text.
state_carried_on() {
  local state=$WORK/data-distribution/scheduler-state.json
  jq -e 'length > 0' "$WORK/state-before.json" >/dev/null
  same "entries lost" "" "$(jq -r --slurpfile now "$state" 'keys[] | select($now[0][.] == null)' "$WORK/state-before.json")"
  same "entries of another type" "" "$(jq -r --slurpfile now "$state" \
    'to_entries[] | select($now[0][.key].EntryType != .value.EntryType) | .key' "$WORK/state-before.json")"
  same "entries that expire earlier than before" "" "$(jq -r --slurpfile now "$state" \
    'to_entries[] | select($now[0][.key].ExpiryData[:19] < .value.ExpiryData[:19]) | .key' "$WORK/state-before.json")"
}

distribution_taken_over() {
  REGISTRY_HTTP_ADDR=$MIRROR spawn millpond "$MILLPOND" serve "$WORK/distribution.yml"
  millpond_is_up
}

serve_with_distribution() {
  start_distribution "$1"
  shift
  pull_from_mirror "$@"
  stop distribution
}

pull_from_mirror() {
  local name
  skopeo_wipe
  for name in "$@"; do
    skopeo_pull "$name"
    skopeo_verify "$name"
  done
}

no_blob_gets_since() {
  same "blob GETs" "" "$(requests_since "$1" | grep '^GET .*/blobs/' || true)"
}
