# shellcheck shell=bash
# Several replicas with a bucket behind them and one writer: real clients pull and push through a load balancer
# (alternate.py) that sends each request to another replica.

# All members. The last one is started later than the others.
REPLICA_HOSTS=(127.0.0.1 127.0.0.2 127.0.0.3 127.0.0.4)
WRITER_HOST=127.0.0.1
LATE_HOST=127.0.0.4

replicas_story() {
  bucket_begin replicas || return 0
  local balancer name
  read -r REPLICA_PORT balancer < <(free_ports 2)
  BALANCER=127.0.0.1:$balancer
  for name in "${REPLICA_HOSTS[@]:0:3}"; do
    check "replicas: $name starts, empty" replica_start "$name"
  done
  check "replicas: a load balancer that alternates starts" balancer_start
  [ "$last" = ok ] || return 0

  replicas_mirrored
  replicas_pushed
  replicas_without_writer
  replicas_without_disk
  replicas_handed_over
  for name in "${REPLICA_HOSTS[@]}"; do
    check "replicas: $name ends" stop "replica-$name"
  done
  stop balancer
  bucket_store_stop
}

# --- The replicas and their load balancer ----------------------------------------------

# replica_start HOST: over that replica's data, which may be there.
replica_start() {
  local file=$WORK/replica-$1.yml
  cat >"$file" <<YAML
version: 0.1
log: {level: info, formatter: text}
storage:
  filesystem: {rootdirectory: $WORK/data-replica-$1}
  minfree: 0
http: {addr: "$1:$REPLICA_PORT", shutdowndelay: 0s}
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
  - {anyone: true, effect: allow}
replicas:
  peers: [$(printf '"%s",' "${REPLICA_HOSTS[@]/%/:$REPLICA_PORT}")]
  self: $1:$REPLICA_PORT
  secret: end-to-end replicas' secret
  hostedwriter: $WRITER_HOST:$REPLICA_PORT
YAML
  bucket_config "$file" never
  "$MILLPOND" check "$file" >/dev/null
  spawn "replica-$1" "$MILLPOND" serve "$file"
  wait_until 20 "replica $1 to listen" answers "http://$1:$REPLICA_PORT/v2/" 200
}

# replica_start_empty HOST
replica_start_empty() {
  stop "replica-$1"
  rm -rf "$WORK/data-replica-$1"
  replica_start "$1"
}

balancer_start() {
  spawn balancer /usr/bin/python3 "$E2E/alternate.py" --port "${BALANCER#*:}" "${REPLICA_HOSTS[@]:0:3}" \
    --replica-port "$REPLICA_PORT"
  wait_until 20 "the load balancer" answers "http://$BALANCER/v2/" 200
}

# at ADDRESS COMMAND...: the command's mirror is that one.
at() {
  local MIRROR=$1
  shift
  "$@"
}

# at_replica HOST COMMAND...
at_replica() {
  local host=$1
  shift
  at "$host:$REPLICA_PORT" "$@"
}

# --- Mirrored images, so that there is something to push -------------------------------

replicas_mirrored() {
  mark replicas
  quietly skopeo_wipe
  for name in gzip index pinned; do
    check "replicas: skopeo pulls $name, each request from another replica" at "$BALANCER" pull_and_verify skopeo "$name"
  done
  check "replicas: each blob was asked of upstream once" one_get_each replicas gzip pinned
}

# --- A push whose requests alternate, and what each replica gives right after it ----------

replicas_pushed() {
  check "replicas: skopeo pushes gzip, each request to another replica" replicas_push gzip ci/app 1
  check "replicas: skopeo pushes an index" replicas_push index ci/multi 1
  check "replicas: no upload's PATCH and PUT went to the same replica, and each replica got some" uploads_alternated
  replicas_give_all "right after the push" "${REPLICA_HOSTS[@]:0:3}"
  check "replicas: $LATE_HOST starts, empty" replica_start "$LATE_HOST"
  replicas_give_all "right after its start" "$LATE_HOST"

  replicas_containerd
  for name in "${REPLICA_HOSTS[@]}"; do
    check "replicas: $name lists the tags" at_replica "$name" tags_are ci/app 1
  done
}

push_to_distribution() {
  timeout 120 skopeo --insecure-policy copy --quiet --all --preserve-digests --dest-tls-verify=false \
    "dir:$WORK/skopeo/index" "docker://$MIRROR/ci/theirs:1"
}

# replicas_push IMAGE REPOSITORY TAG: what skopeo has pulled before, byte for byte.
replicas_push() {
  timeout 120 skopeo --insecure-policy copy --quiet --all --preserve-digests --dest-tls-verify=false \
    "dir:$WORK/skopeo/$1" "docker://$BALANCER/$2:$3"
}

# The load balancer's log is the witness: METHOD PATH STATUS REPLICA.
uploads_alternated() {
  local uploads
  uploads=$(awk '$1 ~ "^(PATCH|PUT)$" && index($2, "/blobs/uploads/") { sub("[?].*", "", $2); print }' "$LOGS/balancer.out")
  same "replicas that an upload used twice in succession" "" \
    "$(awk '$4 == replica[$2] { print } { replica[$2] = $4 }' <<<"$uploads")"
  same "replicas that uploads used" 3 "$(awk '{ print $4 }' <<<"$uploads" | sort -u | wc -l)"
  same "requests that weren't accepted" "" "$(awk '$3 !~ "^20[12]$"' <<<"$uploads")"
}

# replicas_give_all WHEN HOST...: skopeo pulls both pushed images from each.
replicas_give_all() {
  local when=$1 host
  shift
  for host in "$@"; do
    check "replicas: $host gives gzip, $when" at_replica "$host" replica_gives gzip ci/app:1
    check "replicas: $host gives the index, $when" at_replica "$host" replica_gives index ci/multi:1
  done
}

# replica_gives IMAGE REPOSITORY:TAG: the mirror's copy has the manifests and all blobs of that image.
replica_gives() {
  local folder=$WORK/replica-gives
  rm -rf "$folder"
  timeout 120 skopeo --insecure-policy copy --quiet --all --src-tls-verify=false "docker://$MIRROR/$2" "dir:$folder"
  skopeo_folder_is "$1" "$folder"
}

# tags_are REPOSITORY TAG...
tags_are() {
  local repository=$1
  shift
  same "tags of $repository" "$*" "$(curl -sf -m 30 "http://$MIRROR/v2/$repository/tags/list" | jq -r '.tags | join(" ")')"
}

# containerd pushes a manifest and its blobs in two requests each, without PATCH.
replicas_containerd() {
  local why
  # shellcheck disable=SC2046
  if ! why=$(have $(containerd_needs)); then
    skip "replicas: containerd" "$why"
    return
  fi
  # Its files name one mirror, in this part another one than before.
  quietly client_config containerd "http://$MIRROR" --undo
  check "replicas: containerd starts" at "$BALANCER" containerd_start
  check "replicas: containerd pulls zstd, each request from another replica" \
    at "$BALANCER" hosted_ctr_pull library/debian-test:zstd
  check "replicas: containerd pushes it, each request to another replica" \
    at "$BALANCER" hosted_ctr_push library/debian-test:zstd ci/ctr:1
  for name in "${REPLICA_HOSTS[@]}"; do
    check "replicas: $name gives what containerd pushed" at_replica "$name" replica_gives zstd ci/ctr:1
  done
  quietly containerd_stop
  quietly client_config containerd "http://$BALANCER" --undo
}

# --- The writer goes, and comes back. Meanwhile, an image with a new layer is pushed -----

replicas_without_writer() {
  check "replicas: the writer ends" stop "replica-$WRITER_HOST"
  check "replicas: without the writer: $LATE_HOST starts again, empty" replica_start_empty "$LATE_HOST"
  replicas_give_all "without the writer" "${REPLICA_HOSTS[@]:1}"
  for name in "${REPLICA_HOSTS[@]:1}"; do
    check "replicas: without the writer: $name answers a push with 503 and Retry-After" at_replica "$name" push_is_put_off
  done
  check "replicas: without the writer: skopeo's push fails, and says why" push_fails_without_writer

  check "replicas: the writer starts again" replica_start "$WRITER_HOST"
  for name in "${REPLICA_HOSTS[@]:1}"; do
    check "replicas: $name finds the writer again" wait_until 10 "the writer" \
      answers "http://$name:$REPLICA_PORT/v2/ci/app/tags/list" 200
  done
  check "replicas: the same push succeeds now" replicas_push pinned ci/app 2
  check "replicas: its uploads alternated, too" uploads_alternated
  for name in "${REPLICA_HOSTS[@]}"; do
    check "replicas: $name gives what was pushed with the writer back" at_replica "$name" replica_gives pinned ci/app:2
    check "replicas: $name lists both tags" at_replica "$name" tags_are ci/app 1 2
  done
}

# --- The writer's disk is lost: the bucket has all of it ---------------------------------

replicas_without_disk() {
  check "replicas: the writer starts with an empty disk" replica_start_empty "$WRITER_HOST"
  check "replicas: it lists both tags" at_replica "$WRITER_HOST" tags_are ci/app 1 2
  check "replicas: it takes a manifest whose layers are in the bucket only" push_of_a_manifest_alone
  replicas_give_all "after the loss of a disk" "$WRITER_HOST"
  for name in "${REPLICA_HOSTS[@]}"; do
    check "replicas: $name lists all tags" at_replica "$name" tags_are ci/app 1 2 3
  done
}

push_of_a_manifest_alone() {
  local before
  before=$(grep -c . "$LOGS/balancer.out")
  replicas_push gzip ci/app 3
  same "uploads" "" "$(sed "1,${before}d" "$LOGS/balancer.out" | awk '$1 ~ "^(PATCH|PUT)$" && index($2, "/blobs/uploads/")')"
}

push_is_put_off() {
  local head=$WORK/put-off.head after
  same "status" 503 "$(curl -s -m 30 -D "$head" -o "$WORK/put-off.body" -w '%{http_code}' -X POST \
    "http://$MIRROR/v2/ci/app/blobs/uploads/")"
  # Until this replica asks the writer again.
  after=$(tr -d '\r' <"$head" | sed -n 's/^retry-after: //Ip')
  [[ $after = [1-5] ]] || die "Retry-After: $after"
  same "code" UNAVAILABLE "$(jq -r '.errors[0].code' "$WORK/put-off.body")"
}

push_fails_without_writer() {
  local said
  ! said=$(replicas_push pinned ci/app 2 2>&1) || die "pushed without the writer"
  grep -q 503 <<<"$said" || die "no reason: $said"
}

# --- The bucket, served by the reference registry ---------------------------------------

replicas_handed_over() {
  check "replicas: the reference registry starts over the bucket" bucket_distribution
  check "replicas: it serves gzip, by tag and digest by digest" bucket_serves gzip ci/app 1
  check "replicas: it serves what was pushed with the writer back" bucket_serves pinned ci/app 2
  check "replicas: it serves the index" bucket_serves index ci/multi 1
  check "replicas: it serves what containerd pushed" bucket_serves zstd ci/ctr 1
  check "replicas: it takes a push" at "$DISTRIBUTION" push_to_distribution
  stop bucket-distribution
  check "replicas: the writer takes over again, with an empty disk" replica_start_empty "$WRITER_HOST"
  check "replicas: it lists what the reference registry took" at_replica "$WRITER_HOST" tags_are ci/theirs 1
  check "replicas: it gives what the reference registry took" at_replica "$WRITER_HOST" replica_gives index ci/theirs:1
}
