# shellcheck shell=bash
# Two real upstreams: Debian's docker-registry (distribution 2.8), TLS on 127.0.0.1.
#
#   hub     stands for Docker Hub: Bearer tokens from its own token service (token_service.py)
#   second  any other registry: Basic credentials
#
# Their access logs are the witness: whatever a check says about upstream traffic is read there.

UPSTREAM_USER=hub-user
UPSTREAM_PASSWORD=hub-secret
SECOND_USER=second-user
SECOND_PASSWORD=second-secret
# bcrypt of "second-secret", as `htpasswd -B` writes it (docker-registry reads no other kind).
# shellcheck disable=SC2016
SECOND_HTPASSWD='second-user:$2y$04$SG9Uipch3RNpHWOXYD5ple2Q/muKPRoHbfqVD8EL/uuo0u/PLRysq'
SECOND_NAME=second.example

# --- Certificates -------------------------------------------------------------

# One CA signs the servers' certificate. The certificate that signs tokens is self-signed: that is
# what docker-registry's rootcertbundle wants.
make_certificates() {
  local pki=$WORK/pki
  mkdir -p "$pki"
  {
    openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj '/CN=end-to-end test CA' \
      -keyout "$pki/ca.key" -out "$pki/ca.pem"
    openssl req -newkey rsa:2048 -nodes -subj '/CN=127.0.0.1' \
      -keyout "$pki/server.key" -out "$pki/server.csr"
    openssl x509 -req -in "$pki/server.csr" -CA "$pki/ca.pem" -CAkey "$pki/ca.key" -CAcreateserial \
      -days 2 -out "$pki/server.pem" \
      -extfile <(printf 'subjectAltName=IP:127.0.0.1,DNS:localhost\nextendedKeyUsage=serverAuth')
    openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj '/CN=end-to-end token service' \
      -keyout "$pki/token.key" -out "$pki/token.pem"
  } 2>"$LOGS/openssl.txt"
  CA=$pki/ca.pem
}

# --- Start and stop -----------------------------------------------------------

write_upstream_configs() {
  local pki=$WORK/pki
  printf '%s\n' "$SECOND_HTPASSWD" >"$WORK/second.htpasswd"
  upstream_config hub "$HUB" >"$WORK/hub.yml" <<YAML
  token:
    realm: https://127.0.0.1:$TOKEN_PORT/token
    service: e2e-upstream
    issuer: e2e-token-service
    rootcertbundle: $pki/token.pem
YAML
  upstream_config second "$SECOND" >"$WORK/second.yml" <<YAML
  htpasswd:
    realm: second
    path: $WORK/second.htpasswd
YAML
}

# upstream_config NAME ADDRESS: the configuration; its auth section comes on standard input.
upstream_config() {
  cat <<YAML
version: 0.1
log: {level: warn, formatter: text}
storage:
  filesystem: {rootdirectory: $WORK/upstream-$1}
http:
  addr: $2
  secret: e2e
  tls: {certificate: $WORK/pki/server.pem, key: $WORK/pki/server.key}
auth:
YAML
  cat
}

# Also starts again after upstreams_stop, on the same ports with the same data.
upstreams_start() {
  spawn token-service /usr/bin/python3 "$E2E/token_service.py" --port "$TOKEN_PORT" \
    --certificate "$WORK/pki/server.pem" --key "$WORK/pki/server.key" \
    --signing-certificate "$WORK/pki/token.pem" --signing-key "$WORK/pki/token.key" \
    --issuer e2e-token-service --user "$UPSTREAM_USER" --password "$UPSTREAM_PASSWORD" \
    --lifetime "${TOKEN_LIFETIME:-300}"
  spawn hub docker-registry serve "$WORK/hub.yml"
  spawn second docker-registry serve "$WORK/second.yml"
  wait_until 20 "the token service" answers "https://127.0.0.1:$TOKEN_PORT/token" 200
  wait_until 20 "upstream hub" answers "https://$HUB/v2/" 401
  wait_until 20 "upstream second" answers "https://$SECOND/v2/" 401
}

upstreams_stop() {
  stop hub
  stop second
  stop token-service
}

# answers URL STATUS
answers() {
  [ "$(curl -s -m 2 -o /dev/null -w '%{http_code}' --cacert "$CA" "$1")" = "$2" ]
}

# --- The access logs as witness -------------------------------------------------

# mark NAME: from here on, `requests_since NAME` counts. The mark is itself a request in both logs,
# so it can't be misplaced by buffering.
mark() {
  local upstream
  for upstream in hub:"$HUB" second:"$SECOND"; do
    curl -s -m 5 -o /dev/null --cacert "$CA" "https://${upstream#*:}/mark-$1-$RUN_ID" || return
    wait_until 5 "mark $1 in the log of ${upstream%%:*}" \
      grep -q "/mark-$1-$RUN_ID" "$LOGS/${upstream%%:*}.out" || return
  done
}

# requests_since NAME: "METHOD PATH STATUS BYTES" of each request for a manifest or a blob since that mark,
# both upstreams together.
requests_since() {
  local log
  for log in "$LOGS/hub.out" "$LOGS/second.out"; do
    # 127.0.0.1 - - [date zone] "GET /v2/library/x/blobs/sha256:... HTTP/1.1" 200 123 "" "agent"
    awk -v mark="/mark-$1-$RUN_ID" '
      index($0, mark) { found = 1; next }
      found && $7 ~ "^/v2/.*/(manifests|blobs)/" { print substr($6, 2), $7, $9, $10 }
    ' "$log"
  done
}

# No byte of content came from upstream since that mark. HEADs are allowed: that is how a tag is
# revalidated.
no_gets_since() {
  local gets
  gets=$(requests_since "$1" | grep '^GET' || true)
  [ -z "$gets" ] || die "upstream was asked for content:
$gets"
}

no_requests_since() {
  same "requests to upstream" "" "$(requests_since "$1")"
}

# one_get_each MARK IMAGE...: every blob of these images was asked for, and no blob twice. (A GET that
# was answered 401 carried the challenge, not the blob.)
one_get_each() {
  local mark=$1 asked
  shift
  asked=$(requests_since "$mark" | awk '$1 == "GET" && $2 ~ "/blobs/" && $3 ~ "20[06]" { sub(".*/", "", $2); print $2 }' | sort)
  same "blobs asked for more than once" "" "$(uniq -c <<<"$asked" | awk '$1 > 1')"
  same "blobs never asked for" "" "$(host_blobs "$@" | comm -23 - <(printf '%s\n' "$asked"))"
}

# The mirror showed its credentials to the token service, and asked for no more than it needs.
tokens_for_pull_only() {
  local asked
  asked=$(grep '"agent": "millpond' "$LOGS/token-service.out")
  # For callers without a login, it asks without one.
  same "users" "$UPSTREAM_USER" "$(jq -r '.user | select(. != "")' <<<"$asked" | sort -u)"
  same "scopes beyond pull" "" "$(jq -r '.scopes[]' <<<"$asked" | grep -v '^repository:[^:]*:pull$' || true)"
}

# Clients have no credentials for the upstreams and must never need any: whoever asked for content
# was the mirror, or the harness itself (curl's marks; the pusher; the distribution proxy, whose
# agent is Go's own and no client's).
only_the_mirror_asked() {
  local others
  others=$(grep -hE '"(GET|HEAD) /v2/[^"]*(manifests|blobs)' "$LOGS/hub.out" "$LOGS/second.out" |
    grep -vE '"(millpond/[^"]*|Go-http-client/[^"]*|e2e-push)"$' || true)
  same "requests past the mirror" "" "$(head -n 5 <<<"$others")"
}
