# shellcheck shell=bash
# Who may pull what, over TLS: users and anonymous clients at one address, client certificates, and
# private images that the upstream itself permits or refuses.

ALICE_PASSWORD=alice-secret
# bcrypt of "alice-secret", cost 4.
# shellcheck disable=SC2016
ALICE_HTPASSWD='alice:$2y$04$78CcEpZCFwvnqDGIiSszjOXW.v4UBKLyVrMUM//owOqxzCdxop2IC'

# --- millpond ---------------------------------------------------------------------

# trusted_millpond DATA: millpond over TLS with an empty data directory. The rest of the sections
# http and proxy, and further sections, come on standard input, as "http:", "proxy:" and others.
trusted_millpond() {
  local rest
  rest=$(cat)
  rm -rf "$WORK"/data-*
  cat >"$WORK/millpond.yml" <<YAML
version: 0.1
log: {level: info, formatter: text, audit: {file: $LOGS/audit.out}}
storage:
  filesystem: {rootdirectory: $WORK/data-$1}
  minfree: 0
$rest
YAML
  spawn millpond "$MILLPOND" serve "$WORK/millpond.yml"
  wait_until 20 "millpond to listen over TLS" trusted_mirror_answers
}

# Whatever the status: with certificates required, only the handshake is what it takes.
trusted_mirror_answers() {
  curl -s -m 2 -o /dev/null --cacert "$CA" --cert "$WORK/pki/client.pem" \
    --key "$WORK/pki/client.key" "https://$MIRROR/v2/"
}

make_client_certificate() {
  local pki=$WORK/pki
  [ ! -e "$pki/client.pem" ] || return 0
  openssl req -newkey rsa:2048 -nodes -subj '/CN=node-1' \
    -keyout "$pki/client.key" -out "$pki/client.csr" 2>>"$LOGS/openssl.txt"
  openssl x509 -req -in "$pki/client.csr" -CA "$pki/ca.pem" -CAkey "$pki/ca.key" -CAcreateserial \
    -days 2 -out "$pki/client.pem" -extfile <(printf 'extendedKeyUsage=clientAuth') 2>>"$LOGS/openssl.txt"
}

trusted_tls() {
  printf '  addr: %s\n  tls:\n    certificate: %s\n    key: %s\n' \
    "$MIRROR" "$WORK/pki/server.pem" "$WORK/pki/server.key"
}

trusted_proxy() {
  cat <<YAML
proxy:
  remoteurl: https://$HUB
  aliases: [docker.io]
  username: $UPSTREAM_USER
  password: $UPSTREAM_PASSWORD
  ca: $CA
  upstreams:
    - name: $SECOND_NAME
      remoteurl: https://$SECOND
      username: $SECOND_USER
      password: $SECOND_PASSWORD
      ca: $CA
      aliases: ["$SECOND"]
YAML
}

# --- Users and anonymous clients at one address -------------------------------------

login_story() {
  make_client_certificate
  printf '%s\n' "$ALICE_HTPASSWD" >"$WORK/mirror.htpasswd"
  check "login: millpond starts with users, rules and TLS" login_millpond
  [ "$last" = ok ] || return 0
  check "login: docker: starts with the mirror" trusted_dockerd_start
  check "login: docker: an anonymous mirror: gzip" pull_and_verify dockerd gzip
  check "login: docker: the second registry is refused without a login" docker_pull_is_refused
  check "login: docker login with a wrong password is refused" docker_login_is_refused
  check "login: docker login" docker_login "$ALICE_PASSWORD"
  check "login: docker: the second registry, logged in" docker_run pull --quiet "$(trusted_reference second)"
  check "login: docker: the mirror still works for docker.io: index" pull_and_verify dockerd index
  quietly dockerd_stop
  check "login: podman: the second registry is refused without a login" podman_pull_is_refused
  check "login: podman login, and the second registry" podman_login_and_pull
  check "login: skopeo: anonymous from docker.io" trusted_skopeo gzip
  check "login: skopeo: the second registry with --src-creds" trusted_skopeo second --src-creds "alice:$ALICE_PASSWORD"
  check "login: the audit log has the refusals, and no password" audit_is_right
  millpond_stop
}

login_millpond() {
  trusted_millpond login <<YAML
http:
$(trusted_tls)
auth:
  htpasswd: {realm: millpond, path: $WORK/mirror.htpasswd}
access:
  - {repositories: [library/**], anyone: true, actions: [pull, list], effect: allow}
  - {users: [alice], effect: allow}
$(trusted_proxy)
YAML
}

trusted_reference() {
  printf '%s/%s%s\n' "$MIRROR" "$(mirror_path "$1")" "$(image "$1" .suffix)"
}

trusted_dockerd_start() {
  local home=$WORK/docker
  mkdir -p "$home/client"
  printf '{"registry-mirrors": ["https://%s"]}\n' "$MIRROR" >"$home/daemon.json"
  SSL_CERT_FILE=$CA spawn dockerd dockerd --config-file "$home/daemon.json" --data-root "$home/data" \
    --exec-root "$home/exec" --pidfile "$home/dockerd.pid" --host "unix://$home/docker.sock" \
    --iptables=false --ip6tables=false --bridge=none
  wait_until 30 "dockerd's socket" docker_run version
}

# docker_login PASSWORD
docker_login() {
  docker_run login --username alice --password-stdin "$MIRROR" <<<"$1"
}

docker_login_is_refused() {
  ! docker_login wrong || die "a wrong password was accepted"
}

docker_pull_is_refused() {
  ! docker_run pull --quiet "$(trusted_reference second)" || die "pulled without a login"
}

trusted_podman() {
  local command=$1 file=$WORK/podman/auth.json
  shift
  # podman refuses to pull when the file that it is told of is missing.
  [ -e "$file" ] || printf '{}\n' >"$file"
  SSL_CERT_FILE=$CA podman_run "$command" --authfile "$file" "$@"
}

podman_pull_is_refused() {
  podman_wipe
  : >"$WORK/registries.conf"
  ! trusted_podman pull --quiet "$(trusted_reference second)" || die "pulled without a login"
}

podman_login_and_pull() {
  trusted_podman login --username alice --password-stdin "$MIRROR" <<<"$ALICE_PASSWORD"
  trusted_podman pull --quiet "$(trusted_reference second)"
}

# trusted_skopeo IMAGE OPTION...
trusted_skopeo() {
  local name=$1
  shift
  skopeo_wipe
  SSL_CERT_FILE=$CA timeout 120 skopeo --insecure-policy copy --quiet --all "$@" \
    "docker://$(trusted_reference "$name")" "dir:$WORK/skopeo/$name"
  skopeo_verify "$name"
}

audit_is_right() {
  grep -q refused "$LOGS/audit.out"
  ! grep -rqF "$ALICE_PASSWORD" "$LOGS"/audit.out "$LOGS"/millpond.* || die "a password was logged"
}

# --- Client certificates --------------------------------------------------------------

certificates_story() {
  make_client_certificate
  check "certificates: millpond starts and requires a client's certificate" certificates_millpond
  [ "$last" = ok ] || return 0
  check "certificates: containerd starts" containerd_start
  check "certificates: containerd gets ca and client" certificates_client_config
  check "certificates: containerd with ca and client: gzip" pull_and_verify containerd gzip
  check "certificates: podman with ca and client: gzip" certificates_podman
  certificates_hosts_toml ""
  quietly containerd_wipe
  certificates_hosts_toml ""
  check "certificates: containerd without a certificate is refused" containerd_is_refused
  quietly containerd_stop
  millpond_stop
}

certificates_millpond() {
  trusted_millpond certificates <<YAML
http:
$(trusted_tls)
    clientcas: [$CA]
auth:
  certificates:
    - {subject: node-*, user: nodes}
$(trusted_proxy)
YAML
}

# The mirror alone, so that nothing can come from anywhere else.
certificates_client_config() {
  rm -rf "$CLIENT_ROOT"
  client_config containerd "https://$MIRROR" --ca "$CA" --cert "$WORK/pki/client.pem" \
    --key "$WORK/pki/client.key"
  sed -i "s#^server = .*#server = \"https://nowhere.invalid\"#" "$CERTS_D/docker.io/hosts.toml"
}

# podman looks below /etc/containers/certs.d, unless it is told of another folder for the host.
certificates_podman() {
  client_config podman "https://$MIRROR" --ca "$CA" --cert "$WORK/pki/client.pem" \
    --key "$WORK/pki/client.key"
  podman_wipe
  cp "$CLIENT_ROOT/etc/containers/registries.conf.d/millpond.conf" "$WORK/registries.conf"
  podman_run pull --quiet --cert-dir "$CLIENT_ROOT/etc/containers/certs.d/$MIRROR" \
    "$(podman_reference gzip)"
  podman_verify gzip
}

# certificates_hosts_toml LINE: the mirror alone, so that nothing can come from anywhere else.
certificates_hosts_toml() {
  cat >"$CERTS_D/docker.io/hosts.toml" <<TOML
server = "https://$MIRROR"
ca = "$CA"
$1
[host."https://$MIRROR"]
  capabilities = ["pull", "resolve"]
  ca = "$CA"
  $1
TOML
}

containerd_is_refused() {
  ! containerd_pull gzip || die "pulled without a certificate"
}

# --- Private images, permitted by the upstream ------------------------------------------

private_story() {
  local why
  if ! why=$(have containerd); then
    skip private "$why"
    return
  fi
  make_client_certificate
  check "private: millpond starts, and asks the upstream about each caller" private_millpond
  [ "$last" = ok ] || return 0
  check "private: containerd with the CRI starts" cri_start
  check "private: CRI: without the secret the pull is refused" cri_is_refused
  check "private: CRI: a wrong secret is refused" cri_is_refused "$UPSTREAM_USER" wrong
  check "private: CRI: with the imagePullSecret" cri_pull "$UPSTREAM_USER" "$UPSTREAM_PASSWORD"
  quietly cri_stop
  check "private: CRI: an empty containerd" cri_start
  mark private
  check "private: CRI: cached, and still refused without the secret" cri_is_refused
  check "private: CRI: cached, with the secret" cri_pull "$UPSTREAM_USER" "$UPSTREAM_PASSWORD"
  quietly cri_stop
  private_clients
  check "private: the cached content crossed the line once" no_gets_since private
  millpond_stop
}

# The other clients, whose credentials reach the mirror in different ways.
private_clients() {
  check "private: docker: starts with the mirror" trusted_dockerd_start
  check "private: docker: refused without Docker Hub's account" private_dockerd_is_refused
  private_hub_account >"$WORK/docker/client/config.json"
  check "private: docker: with Docker Hub's account" pull_and_verify dockerd gzip
  quietly dockerd_stop
  check "private: containerd starts" containerd_start
  certificates_hosts_toml ""
  check "private: containerd: refused without an account" containerd_is_refused
  check "private: containerd: with one" private_ctr
  quietly containerd_stop
  check "private: podman: refused without an account" private_podman_is_refused
  check "private: podman: with one" private_podman --creds "$UPSTREAM_USER:$UPSTREAM_PASSWORD"
  check "private: skopeo: refused without an account" private_skopeo_is_refused
  check "private: skopeo: with one" trusted_skopeo gzip --src-creds "$UPSTREAM_USER:$UPSTREAM_PASSWORD"
}

private_hub_account() {
  printf '{"auths": {"https://index.docker.io/v1/": {"auth": "%s"}}}\n' \
    "$(printf '%s' "$UPSTREAM_USER:$UPSTREAM_PASSWORD" | base64)"
}

private_dockerd_is_refused() {
  ! dockerd_pull gzip || die "pulled without an account"
}

private_ctr() {
  ctr_run images pull --user "$UPSTREAM_USER:$UPSTREAM_PASSWORD" --hosts-dir "$CERTS_D" \
    "$(containerd_reference gzip)"
  containerd_verify gzip
}

# private_podman OPTION...
private_podman() {
  podman_wipe
  : >"$WORK/registries.conf"
  trusted_podman pull --quiet "$@" "$(trusted_reference gzip)"
}

private_podman_is_refused() {
  ! private_podman || die "pulled without an account"
}

private_skopeo_is_refused() {
  ! trusted_skopeo gzip || die "pulled without an account"
}

private_millpond() {
  trusted_millpond private <<YAML
http:
$(trusted_tls)
proxy:
  remoteurl: https://$HUB
  aliases: [docker.io]
  authorize: caller
  ca: $CA
YAML
}

cri_start() {
  local home=$WORK/cri
  mkdir -p "$home/certs.d/docker.io"
  cat >"$home/certs.d/docker.io/hosts.toml" <<TOML
server = "https://$MIRROR"
ca = "$CA"
[host."https://$MIRROR"]
  capabilities = ["pull", "resolve"]
  ca = "$CA"
TOML
  cat >"$home/config.toml" <<TOML
version = 2
root = "$home/root"
state = "$home/state"
disabled_plugins = ["io.containerd.internal.v1.opt"]
[grpc]
  address = "$home/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  disable_cgroup = true
  disable_tcp_service = true
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "$home/certs.d"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "$home/cni/bin"
    conf_dir = "$home/cni/net.d"
TOML
  spawn cri containerd --config "$home/config.toml"
  wait_until 20 "containerd's socket" timeout 5 ctr --address "$home/containerd.sock" version
}

cri_stop() {
  stop cri
  umount_below "$WORK/cri"
  rm -rf "$WORK/cri"
}

# cri_pull [USER PASSWORD]
cri_pull() {
  timeout 150 /usr/bin/python3 "$E2E/cri_pull.py" "$WORK/cri/containerd.sock" \
    "docker.io/$(image gzip .repository)$(image gzip .suffix)" "$@"
}

cri_is_refused() {
  ! cri_pull "$@" || die "pulled without the right secret"
}

# --- What is renewed while millpond runs ----------------------------------------------------

# Tokens live 5 s here. skopeo asks the upstream about the tag each time, over new connections.
renewal_story() {
  make_client_certificate
  upstreams_stop
  TOKEN_LIFETIME=5 upstreams_start
  printf '%s' old >"$WORK/hub-password"
  check "renewal: millpond starts with a credential helper" renewal_millpond
  [ "$last" = ok ] || return 0
  check "renewal: the helper gives an old password: refused" renewal_is_refused
  printf '%s' "$UPSTREAM_PASSWORD" >"$WORK/hub-password"
  check "renewal: the helper gives the new one: pulled" wait_until 20 "the new password" trusted_skopeo pinned
  check "renewal: certificate and tokens are renewed, and no request fails" renewal_under_load
  millpond_stop
  upstreams_stop
  upstreams_start
}

renewal_millpond() {
  cp "$WORK/pki/server.pem" "$WORK/pki/mirror.pem"
  cp "$WORK/pki/server.key" "$WORK/pki/mirror.key"
  cat >"$WORK/docker-credential-e2e" <<SH
#!/bin/sh
read -r server
printf '{"ServerURL": "%s", "Username": "%s", "Secret": "%s"}' "\$server" "$UPSTREAM_USER" "\$(cat "$WORK/hub-password")"
SH
  chmod +x "$WORK/docker-credential-e2e"
  trusted_millpond renewal <<YAML
http:
  addr: $MIRROR
  tls: {certificate: $WORK/pki/mirror.pem, key: $WORK/pki/mirror.key}
proxy:
  remoteurl: https://$HUB
  aliases: [docker.io]
  exec: {command: $WORK/docker-credential-e2e, lifetime: 1h}
  tags: {ttl: 1ms}
  ca: $CA
YAML
}

renewal_is_refused() {
  ! trusted_skopeo pinned || die "pulled with the old password"
}

# The serial number of the certificate that millpond shows.
mirror_serial() {
  openssl s_client -connect "$MIRROR" -CAfile "$CA" </dev/null 2>/dev/null | openssl x509 -noout -serial
}

mirror_shows_new() { [ "$(mirror_serial)" = "$(openssl x509 -noout -serial -in "$WORK/pki/mirror.pem")" ]; }

renewal_under_load() {
  local pki=$WORK/pki before load
  before=$(mirror_serial)
  renewal_load "$WORK/renewed" &
  load=$!
  openssl x509 -req -in "$pki/server.csr" -CA "$pki/ca.pem" -CAkey "$pki/ca.key" -CAcreateserial \
    -days 2 -out "$pki/mirror.new" \
    -extfile <(printf 'subjectAltName=IP:127.0.0.1,DNS:localhost\nextendedKeyUsage=serverAuth') 2>/dev/null
  mv "$pki/mirror.new" "$pki/mirror.pem"
  wait_until 30 "the new certificate" mirror_shows_new
  [ "$before" != "$(mirror_serial)" ] || die "the certificate is the old one"
  touch "$WORK/renewed"
  wait "$load" || die "a request failed"
}

# renewal_load FILE: the tag again and again until the file exists.
renewal_load() {
  local deadline=$((SECONDS + 60)) url
  url=https://$MIRROR/v2/$(image gzip .repository)/manifests/$(image gzip .digest)
  until [ -e "$1" ] || [ "$SECONDS" -ge "$deadline" ]; do
    curl -sf -m 10 -o /dev/null --cacert "$CA" "$url" \
      -H "Accept: application/vnd.docker.distribution.manifest.v2+json"
    SSL_CERT_FILE=$CA timeout 10 skopeo inspect --raw "docker://$MIRROR/library/debian-test:gzip" >/dev/null
  done
}
