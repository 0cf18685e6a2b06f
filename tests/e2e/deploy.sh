# shellcheck shell=bash
# What operators deploy: the container image, built with buildah and run with podman, and the systemd
# unit. No daemon takes part, and nothing is pulled from anywhere else.

# The user of the Dockerfile.
IMAGE_USER=65532

DEPLOY_IMAGE=localhost/millpond-e2e

# --- The image -------------------------------------------------------------------------

image_story() {
  local why
  if ! why=$(have buildah podman runc strip ldd); then
    skip image "$why"
    return
  fi
  check "image: buildah builds it from the tested program" image_builds
  [ "$last" = ok ] || return 0
  check "image: its own user, volume, healthcheck, stop signal" image_is_right
  check "image: a read-only container without capabilities is ready" image_starts image
  check "image: skopeo pulls gzip through it, from an upstream that it finds by name" image_pulls gzip
  check "image: the healthcheck says healthy" image_is healthy
  touch "$WORK/image-conf/down"
  check "image: the registry API answers 503 while a configured check fails" \
    wait_until 20 "status 503" image_answers 503
  check "image: the healthcheck says unhealthy" image_is unhealthy
  rm "$WORK/image-conf/down"
  check "image: and 200 again" wait_until 20 "status 200" image_answers 200
  check "image: ends well with its stop signal" image_stops
}

image_buildah() {
  timeout 300 buildah --root "$WORK/containers/root" --runroot "$WORK/containers/run" \
    --storage-driver vfs "$@"
}

image_podman() {
  timeout 120 podman --root "$WORK/containers/root" --runroot "$WORK/containers/run" \
    --tmpdir "$WORK/containers/tmp" --storage-driver vfs --events-backend none \
    --cgroup-manager cgroupfs --runtime runc "$@"
}

# The last stage of the Dockerfile is the released one; only the program comes from elsewhere.
image_builds() {
  "$ROOT/deploy/image/rootfs" "$MILLPOND" "$WORK/image"
  image_buildah bud --isolation chroot --format docker --build-arg ROOTFS=prebuilt \
    --tag "$DEPLOY_IMAGE" --file "$ROOT/Dockerfile" "$WORK/image"
}

image_is_right() {
  local found
  found=$(image_podman image inspect "$DEPLOY_IMAGE")
  same "user" "$IMAGE_USER:$IMAGE_USER" "$(jq -r '.[0].Config.User' <<<"$found")"
  same "volume" '{"/var/lib/millpond":{}}' "$(jq -c '.[0].Config.Volumes' <<<"$found")"
  same "stop signal" SIGTERM "$(jq -r '.[0].Config.StopSignal' <<<"$found")"
  same "healthcheck" '["CMD","/usr/bin/millpond","health"]' "$(jq -c '.[0].Healthcheck.Test' <<<"$found")"
}

# image_starts NAME [OPTION...]: a container with the image's own command. Its upstream has a name, so that
# the C library's resolver is at work.
image_starts() {
  local name=$1
  shift
  mkdir -p "$WORK/image-conf"
  cp "$CA" "$WORK/image-conf/ca.pem"
  cat >"$WORK/image-conf/config.yml" <<YAML
version: 0.1
storage:
  filesystem: {rootdirectory: /var/lib/millpond}
  minfree: 0
http: {addr: $MIRROR}
health:
  file: [{file: /etc/millpond/down, interval: 200ms}]
proxy:
  remoteurl: https://localhost:$HUB_PORT
  realm: https://127.0.0.1:$TOKEN_PORT/token
  username: $UPSTREAM_USER
  password: $UPSTREAM_PASSWORD
  anonymous: true
  ca: /etc/millpond/ca.pem
YAML
  chmod -R go+rX "$WORK/image-conf"
  # The limits because podman would raise them, and a sandbox may not let it. Without systemd, podman says
  # that nobody will run the healthcheck: this run does.
  image_podman run --detach --name "$name" --network host --read-only --cap-drop all \
    --security-opt no-new-privileges --ulimit nofile=1024:1024 --ulimit nproc=1024:1024 \
    --volume "$WORK/image-conf:/etc/millpond:ro" "$@" "$DEPLOY_IMAGE"
  wait_until 20 "the container to be ready" image_podman exec "$name" /usr/bin/millpond health
}

image_pulls() {
  skopeo_wipe
  skopeo_pull "$1"
  skopeo_verify "$1"
}

# image_is STATUS: what podman makes of the healthcheck. One failure isn't enough for it.
image_is() {
  wait_until 30 "the status $1" image_has_status "$1"
}

image_has_status() {
  image_podman healthcheck run image || true
  [ "$(image_podman inspect image | jq -r '.[0].State | (.Health // .Healthcheck).Status')" = "$1" ]
}

image_answers() {
  [ "$(curl -s -m 5 -o /dev/null -w '%{http_code}' "http://$MIRROR/v2/")" = "$1" ]
}

image_stops() {
  image_podman stop --time 10 image
  same "exit code" 0 "$(image_podman inspect image | jq '.[0].State.ExitCode')"
  image_podman rm --force --volumes image
}

# --- The unit ----------------------------------------------------------------------------

# Highest exposure that `systemd-analyze security` may find.
UNIT_EXPOSURE=2.0

unit_story() {
  local why
  if ! why=$(have systemd-analyze systemd-socket-activate buildah podman runc); then
    skip unit "$why"
    return
  fi
  check "unit: systemd-analyze verify finds nothing" unit_verifies
  check "unit: exposure below $UNIT_EXPOSURE" unit_is_hardened
  # No systemd runs here, so a container runtime applies what the unit forbids.
  check "unit: a program whose system calls the unit's filter allows is ready" unit_starts
  check "unit: skopeo pulls gzip through it" image_pulls gzip
  quietly image_podman rm --force --volumes unit
  check "unit: takes over the socket of its socket unit, and says that it is ready and alive" unit_is_activated
}

# The installed program's path is the tested one's.
unit_verifies() {
  mkdir -p "$WORK/units"
  cp "$ROOT"/deploy/systemd/millpond.* "$WORK/units"
  sed -i "s#/usr/bin/millpond#$MILLPOND#" "$WORK/units/millpond.service"
  same "findings" "" "$(systemd-analyze verify "$WORK"/units/millpond.* 2>&1)"
}

unit_is_hardened() {
  local exposure
  exposure=$(systemd-analyze security --offline=true --no-pager "$ROOT/deploy/systemd/millpond.service" |
    sed -n 's/.*Overall exposure level for [^:]*: \([0-9.]*\) .*/\1/p')
  echo "exposure ${exposure:?}"
  awk -v found="$exposure" -v limit="$UNIT_EXPOSURE" 'BEGIN { exit !(found < limit) }'
}

unit_starts() {
  [ -d "$WORK/image" ] || image_builds
  /usr/bin/python3 "$E2E/seccomp.py" "$ROOT/deploy/systemd/millpond.service" >"$WORK/seccomp.json"
  image_starts unit --security-opt "seccomp=$WORK/seccomp.json"
}

# As systemd does it: the socket is open before the service, a client's connection starts that, and the
# service tells the manager's socket about itself.
unit_is_activated() {
  local name
  name=$(sed -n 's/^FileDescriptorName=//p' "$ROOT/deploy/systemd/millpond.socket")
  mkdir -p "$WORK/data-unit"
  cat >"$WORK/unit.yml" <<YAML
version: 0.1
storage:
  filesystem: {rootdirectory: $WORK/data-unit}
  minfree: 0
http: {addr: $MIRROR}
proxy: {remoteurl: https://$HUB, ca: $CA}
YAML
  spawn notified /usr/bin/python3 "$E2E/notified.py" "$WORK/notify"
  wait_until 10 "the manager's socket" test -S "$WORK/notify"
  spawn activated systemd-socket-activate --listen="$MIRROR" --fdname="$name" \
    --setenv=NOTIFY_SOCKET="$WORK/notify" --setenv=WATCHDOG_USEC=1000000 --setenv=E2E_RUN_ID="$RUN_ID" \
    "$MILLPOND" serve --config "$WORK/unit.yml"
  millpond_is_up
  wait_until 10 "READY=1" grep -qx READY=1 "$LOGS/notified.out"
  wait_until 10 "WATCHDOG=1" grep -qx WATCHDOG=1 "$LOGS/notified.out"
  stop activated
  wait_until 10 "STOPPING=1" grep -qx STOPPING=1 "$LOGS/notified.out"
  stop notified
}
