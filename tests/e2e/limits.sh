# shellcheck shell=bash
# Upstreams that don't give everything: one with a rate limit, and one that is still being filled. The relay
# (relay.py) stands before the registry, and is the mirror's only endpoint.

# behind_relay NAME BEHAVIOUR: millpond with nothing in its data directory, which asks the relay only. Tags are
# stale at once.
behind_relay() {
  local PROXY_MORE
  PROXY_MORE="endpoints: [{url: 'http://127.0.0.1:$RELAY_PORT', username: $UPSTREAM_USER, password: $UPSTREAM_PASSWORD, ca: $CA}]
  negativettl: 3s"
  relay_starts "$2"
  mirror_is_fresh "$1" 1ms
}

# manifest_status IMAGE: what the mirror says to a question about its tag; the body and the head are kept.
manifest_status() {
  curl -s -m 30 -o "$WORK/answer" -D "$WORK/answer.head" -w '%{http_code}' \
    -H "Accept: application/vnd.docker.distribution.manifest.v2+json" \
    "http://$MIRROR/v2/$(image "$1" .repository)/manifests/$(image "$1" .suffix | tr -d :)"
}

# The image `gzip` has one manifest: one pull.
limit_story() {
  behind_relay limit "limit 1" || return 0
  check "limit: a pull within the rate limit" limited_pull
  check "limit: what isn't cached gets the upstream's 429, with Retry-After" faithful_429
  check "limit: a cached tag is still pulled" limited_pull
  check "limit: the metrics say that nothing is left" \
    same "remaining" 0 "$(metric millpond_upstream_ratelimit_remaining)"
  stop relay || true
  millpond_stop
}

limited_pull() {
  skopeo_wipe
  skopeo_pull gzip
  skopeo_verify gzip
}

# The upstream's has no Retry-After, as at Docker Hub: the mirror says how long it asks no more.
faithful_429() {
  local time
  for time in first again; do
    same "status, $time" 429 "$(manifest_status zstd)"
    same "code, $time" TOOMANYREQUESTS "$(jq -r '.errors[0].code' "$WORK/answer")"
    grep -qi '^retry-after: [0-9]' "$WORK/answer.head" || die "no Retry-After: $(cat "$WORK/answer.head")"
  done
}

filling_story() {
  behind_relay filling empty || return 0
  check "filling: what isn't there yet is a 404" same "status" 404 "$(manifest_status gzip)"
  check "filling: it is remembered" is_remembered
  relay_behaves well
  check "filling: what has appeared is there within negativettl" wait_until 5 "the manifest" appears
  check "filling: and is pulled" limited_pull
  stop relay || true
  millpond_stop
}

is_remembered() {
  same "status" 404 "$(manifest_status gzip)"
  grep -q 'hit; detail=negative' "$WORK/answer.head" || die "it isn't: $(cat "$WORK/answer.head")"
}

appears() { [ "$(manifest_status gzip)" = 200 ]; }
