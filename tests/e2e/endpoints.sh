# shellcheck shell=bash
# An upstream with two endpoints: a relay (relay.py) that fails, and the registry behind it.

# relay_starts BEHAVIOUR
relay_starts() {
  relay_behaves "$1"
  spawn relay /usr/bin/python3 "$E2E/relay.py" --port "$RELAY_PORT" --upstream "$HUB" --ca "$CA" \
    --behaviour "$WORK/relay-behaviour"
  wait_until 20 "the relay" answers "http://127.0.0.1:$RELAY_PORT/v2/" 401
}

relay_behaves() { printf '%s\n' "$1" >"$WORK/relay-behaviour"; }

endpoints_story() {
  local PROXY_MORE
  PROXY_MORE="endpoints: [{url: 'http://127.0.0.1:$RELAY_PORT', username: $UPSTREAM_USER, password: $UPSTREAM_PASSWORD, ca: $CA}, {}]"
  relay_starts "die 9000000"
  mirror_is_fresh endpoints 1ms || return 0
  check "endpoints: the first one dies in the middle of a blob: the client gets the image" dying_endpoint_is_not_noticed
  check "endpoints: no more than 1.02 times the image's bytes were received" received_once gzip
  stop relay || true
  relay_starts well
  check "endpoints: the first one is slow, but alive: a manifest is there within 2 s" slow_endpoint_is_hedged
  stop relay || true
  millpond_stop
}

dying_endpoint_is_not_noticed() {
  skopeo_wipe
  skopeo_pull gzip
  skopeo_verify gzip
  ! answers "http://127.0.0.1:$RELAY_PORT/v2/" 401 || die "the relay is still alive"
  [ "$(metric millpond_endpoint_failures_total "endpoint=\"127.0.0.1:$RELAY_PORT\"")" -ge 1 ] || die "no failure was counted"
}

# received_once IMAGE
received_once() {
  local size=0 blob received
  while read -r blob; do
    size=$((size + $(blob_bytes "$blob")))
  done < <(host_blobs "$1")
  received=$(metric millpond_upstream_received_bytes_total 'kind="blob"')
  note "received $received bytes of $size"
  [ "$received" -ge "$size" ] && [ $((received * 100)) -le $((size * 102)) ] || die "$received bytes of $size"
}

# first_endpoint_is_asked COMMAND...: after one more request.
first_endpoint_is_asked() {
  "$@" && [ "$(metric millpond_endpoint_circuit "endpoint=\"127.0.0.1:$RELAY_PORT\"")" = 0 ]
}

# Hedges need to know how long an answer usually takes, and are 2 % of the requests.
slow_endpoint_is_hedged() {
  local seconds url ask
  url="http://$MIRROR/v2/$(image gzip .repository)/manifests/$(image gzip .suffix | tr -d :)"
  ask=(curl -sf -m 30 -o /dev/null -H "Accept: application/vnd.docker.distribution.manifest.v2+json" "$url")
  # It has died before, and isn't asked before its circuit is closed again.
  wait_until 90 "the first endpoint to be asked again" first_endpoint_is_asked "${ask[@]}"
  for _ in $(seq 110); do "${ask[@]}" || die "a manifest isn't served"; done
  relay_behaves "slow 8"
  seconds=$("${ask[@]}" -w '%{time_total}')
  note "a manifest took $seconds s"
  awk -v time="$seconds" 'BEGIN { exit !(time < 2) }' || die "it took $seconds s"
  [ "$(metric millpond_endpoint_hedges_total)" -ge 1 ] || die "nothing was hedged"
}
