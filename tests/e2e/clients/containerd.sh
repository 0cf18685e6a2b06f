# shellcheck shell=bash
# containerd, its own daemon, with the hosts.toml files of millpond client-config: docker.io by name (?ns=docker.io),
# any other registry through _default (?ns=127.0.0.1:PORT).

containerd_needs() { echo containerd ctr; }
containerd_images() { echo gzip zstd index list pinned second; }

containerd_start() {
  local home=$WORK/containerd
  mkdir -p "$home"
  client_config containerd "http://$MIRROR" --upstream docker.io --upstream all
  # No Kubernetes here, and nothing outside of $WORK (the opt plugin makes /opt/containerd).
  cat >"$home/config.toml" <<TOML
version = 2
root = "$home/root"
state = "$home/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt"]
[grpc]
  address = "$home/containerd.sock"
TOML
  spawn containerd containerd --config "$home/config.toml"
  wait_until 20 "containerd's socket" timeout 5 ctr --address "$home/containerd.sock" version
}

containerd_stop() {
  stop containerd
  rm -rf "$WORK/containerd"
}

containerd_wipe() {
  containerd_stop
  containerd_start
}

CERTS_D=$CLIENT_ROOT/etc/containerd/certs.d

ctr_run() { timeout 120 ctr --address "$WORK/containerd/containerd.sock" "$@"; }

containerd_reference() {
  local registry=docker.io
  [ "$(image "$1" .upstream)" = hub ] || registry=$SECOND
  printf '%s/%s%s\n' "$registry" "$(image "$1" .repository)" "$(image "$1" .suffix)"
}

containerd_pull() {
  ctr_run images pull --hosts-dir "$CERTS_D" "$(containerd_reference "$1")"
}

# The image's target, and the bytes of every manifest, config and layer in the content store.
containerd_verify() {
  local reference digest
  reference=$(containerd_reference "$1")
  same "target of $reference" "$(image "$1" .digest)" \
    "$(ctr_run images ls "name==$reference" | awk 'NR == 2 { print $3 }')"
  for digest in $(host_manifests "$1") $(host_blobs "$1"); do
    same "sha256 of $digest" "${digest#sha256:}" "$(ctr_run content get "$digest" | sha256sum | cut -d' ' -f1)"
  done
}
