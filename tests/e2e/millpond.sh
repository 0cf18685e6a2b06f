# shellcheck shell=bash
# millpond itself: built, configured for the two upstreams, started, asked for its metrics.

# The binary given on the command line, or a fresh build.
find_millpond() {
  if [ -n "${1:-}" ]; then
    MILLPOND=$(realpath "$1")
    return
  fi
  note "building millpond"
  (cd "$ROOT" && timeout 1200 cargo build --profile ci --bin millpond)
  MILLPOND=$(cd "$ROOT" && realpath "${CARGO_TARGET_DIR:-target}/ci/millpond")
}

# millpond_start DATA [TAGS_TTL]: over the data directory $WORK/data-DATA, which may be new or not. $PROXY_MORE,
# if set, is a further line of the section proxy.
millpond_start() {
  millpond_config "$@"
  spawn millpond "$MILLPOND" serve "$WORK/millpond.yml"
  millpond_is_up
}

# The configuration of millpond_start.
millpond_config() {
  cat >"$WORK/millpond.yml" <<YAML
version: 0.1
log: {level: info, formatter: text}
storage:
  filesystem: {rootdirectory: $WORK/data-$1}
  minfree: 0
http:
  addr: $MIRROR
  debug:
    addr: $MIRROR_DEBUG
    prometheus: {enabled: true}
  shutdowndelay: 0s
proxy:
  # Stands for Docker Hub: that is the name by which containerd asks for it (?ns=docker.io).
  remoteurl: https://$HUB
  aliases: [docker.io]
  username: $UPSTREAM_USER
  password: $UPSTREAM_PASSWORD
  ca: $CA
  # Both upstreams have accounts: only so may they share the blobs that both have.
  trust: e2e
  ttl: 168h
  tags: {ttl: ${2:-60s}}
  ${PROXY_MORE:-}
  upstreams:
    - name: $SECOND_NAME
      remoteurl: https://$SECOND
      username: $SECOND_USER
      password: $SECOND_PASSWORD
      ca: $CA
      trust: e2e
      aliases: ["$SECOND"]
YAML
}

millpond_is_up() {
  wait_until 20 "millpond to listen" mirror_answers
}

mirror_answers() {
  [ "$(curl -s -m 2 -o /dev/null -w '%{http_code}' "http://$MIRROR/v2/")" = 200 ]
}

# Having to be killed is a failure of its own.
millpond_stop() {
  stop millpond || check "millpond ends within 10 s of TERM" false
}

# upstream_gets: how many times millpond says it asked upstream for a manifest or a blob. The only
# place that knows the names of metrics.
upstream_gets() {
  metric millpond_upstream_requests_total 'kind="(manifest|blob)"' 'method="GET"'
}

stale_answers() {
  metric millpond_requests_total 'result="stale"'
}

# metric NAME LABEL...: the sum over the lines that carry all these labels.
metric() {
  local name=$1 label lines
  shift
  lines=$(curl -sf -m 5 "http://$MIRROR_DEBUG/metrics" | grep -E "^$name(\{| )") || lines=
  for label in "$@"; do
    lines=$(grep -E "$label" <<<"$lines" || true)
  done
  awk '{ sum += $NF } END { printf "%d\n", sum }' <<<"$lines"
}

# The repository's path as a plain client asks the mirror for it: other upstreams by their name.
mirror_path() {
  local repository
  repository=$(image "$1" .repository)
  case $(image "$1" .upstream) in
    hub) printf '%s\n' "$repository" ;;
    second) printf '%s/%s\n' "$SECOND_NAME" "$repository" ;;
  esac
}
