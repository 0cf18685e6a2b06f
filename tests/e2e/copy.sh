# shellcheck shell=bash
# `millpond copy` between registries of its own (docker-registry), beside skopeo.
#
#   from, to   without accounts
#   guarded    behind a token service whose tokens live 5 s

# copy_registry NAME PORT: more of the configuration comes on standard input.
copy_registry() {
  {
    cat <<YAML
version: 0.1
log: {level: warn, formatter: text}
storage: {filesystem: {rootdirectory: $WORK/copy-$1}}
http: {addr: "127.0.0.1:$2", secret: e2e}
YAML
    cat
  } >"$WORK/copy-$1.yml"
  spawn "copy-$1" docker-registry serve "$WORK/copy-$1.yml"
}

copy_story() {
  local from to guarded token
  read -r from to guarded token < <(free_ports 4)
  FROM=127.0.0.1:$from TO=127.0.0.1:$to GUARDED=127.0.0.1:$guarded
  copy_registry from "$from" </dev/null
  copy_registry to "$to" </dev/null
  spawn copy-token /usr/bin/python3 "$E2E/token_service.py" --port "$token" \
    --certificate "$WORK/pki/server.pem" --key "$WORK/pki/server.key" \
    --signing-certificate "$WORK/pki/token.pem" --signing-key "$WORK/pki/token.key" \
    --issuer e2e-copy --user copier --password copier-secret --lifetime 5
  copy_registry guarded "$guarded" <<YAML
auth: {token: {realm: "https://127.0.0.1:$token/token", service: e2e-copy, issuer: e2e-copy, rootcertbundle: $WORK/pki/token.pem}}
YAML
  printf 'copier-secret\n' >"$WORK/copier-password"
  wait_until 20 "the registries" copy_registries_answer
  check "copy: an image of 40 layers is made" copy_makes_image
  check "copy: registry to registry: the same bytes as skopeo's" copy_as_skopeo
  check "copy: again: at most 42 requests, and no blobs of the source" copy_again
  check "copy: to a layout and back: the same bytes as skopeo's" copy_layout
  check "copy: archives of layouts: the same bytes as skopeo's, both ways" copy_archives
  check "copy: what skopeo saves as docker does" copy_docker_archive
  copy_hosted_story
  check "copy: kill -9 at random points: the next run completes it" copy_killed
  check "copy: a full spool disk" copy_full_spool
  check "copy: a destination whose tokens live 5 s" copy_guarded
  stop copy-from && stop copy-to && stop copy-guarded && stop copy-token
}

copy_registries_answer() {
  answers "http://$FROM/v2/" 200 && answers "http://$TO/v2/" 200 && answers "http://$GUARDED/v2/" 401
}

# copier ARGUMENTS...: the program, with a home of its own.
copier() {
  env -i HOME="$WORK/copier" PATH="$PATH" E2E_RUN_ID="$RUN_ID" "$MILLPOND" copy "$@"
}

# An index with one image of 40 layers, as an OCI layout, pushed with skopeo.
copy_makes_image() {
  /usr/bin/python3 - "$WORK/copy-image" <<'PYTHON'
import hashlib, json, os, random, sys
root = sys.argv[1]
os.makedirs(f"{root}/blobs/sha256")
def put(data):
    name = hashlib.sha256(data).hexdigest()
    open(f"{root}/blobs/sha256/{name}", "wb").write(data)
    return {"digest": f"sha256:{name}", "size": len(data)}
source = random.Random(7)
layers = [put(source.randbytes(200_000 + 60_000 * n)) for n in range(40)]
kind = "application/vnd.oci.image."
config = put(json.dumps({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers",
    "diff_ids": [layer["digest"] for layer in layers]}, "config": {}}).encode())
manifest = put(json.dumps({"schemaVersion": 2, "mediaType": kind + "manifest.v1+json",
    "config": {"mediaType": kind + "config.v1+json", **config},
    "layers": [{"mediaType": kind + "layer.v1.tar", **layer} for layer in layers]}).encode())
entry = {"mediaType": kind + "manifest.v1+json", **manifest,
    "annotations": {"org.opencontainers.image.ref.name": "1"}}
json.dump({"schemaVersion": 2, "manifests": [entry]}, open(f"{root}/index.json", "w"))
json.dump({"imageLayoutVersion": "1.0.0"}, open(f"{root}/oci-layout", "w"))
PYTHON
  copy_skopeo "oci:$WORK/copy-image:1" "docker://$FROM/image:1"
}

copy_skopeo() { skopeo copy -q --all --src-tls-verify=false --dest-tls-verify=false "$@"; }

# same_image REFERENCE...: all have the same bytes, as skopeo reads them.
same_image() {
  local reference n=0
  rm -rf "$WORK"/copy-read-*
  for reference in "$@"; do
    copy_skopeo "$reference" "dir:$WORK/copy-read-$n"
    diff -r "$WORK/copy-read-0" "$WORK/copy-read-$n"
    n=$((n + 1))
  done
}

copy_as_skopeo() {
  copier "$FROM/image:1" "$TO/millpond/image"
  copy_skopeo "docker://$FROM/image:1" "docker://$TO/skopeo/image:1"
  same_image "docker://$FROM/image:1" "docker://$TO/millpond/image:1" "docker://$TO/skopeo/image:1"
}

# copy_requests NAME PATTERN: lines of a registry's log.
copy_requests() { grep -cE "\"[A-Z]+ /v2/$2" "$LOGS/copy-$1.out" || true; }

copy_again() {
  local to from
  to=$(copy_requests to millpond/) from=$(copy_requests from image/blobs/)
  copier "$FROM/image:1" "$TO/millpond/image"
  to=$(($(copy_requests to millpond/) - to))
  note "$to requests to the destination"
  [ "$to" -le 42 ] || die "$to requests"
  same "requests for blobs of the source" "$from" "$(copy_requests from image/blobs/)"
}

copy_layout() {
  copier "$FROM/image:1" "oci:$WORK/copy-layout:1"
  copy_skopeo "docker://$FROM/image:1" "oci:$WORK/copy-layout-theirs:1"
  diff -r "$WORK/copy-layout-theirs/blobs/sha256" "$WORK/copy-layout/blobs/sha256"
  copier "oci:$WORK/copy-layout:1" "$TO/again:2"
  same_image "docker://$FROM/image:1" "oci:$WORK/copy-layout:1" "docker://$TO/again:2"
}

copy_archives() {
  copier "$FROM/image:1" "oci-archive:$WORK/copy-ours.tar:1"
  copy_skopeo "docker://$FROM/image:1" "oci-archive:$WORK/copy-theirs.tar:1"
  copier "oci-archive:$WORK/copy-theirs.tar:1" "$TO/archived:2"
  same_image "docker://$FROM/image:1" "oci-archive:$WORK/copy-ours.tar:1" "docker://$TO/archived:2"
}

# The manifest is made by each of them; the configuration and the layers are the archive's.
copy_docker_archive() {
  local archive=docker-archive:$WORK/copy-saved.tar
  skopeo copy -q --src-tls-verify=false "docker://$FROM/image:1" "$archive:saved/image:3"
  copier "$archive:saved/image:3" "$TO/saved:3"
  copier --all-tags "$archive" "$TO/below/"
  copy_skopeo "$archive:saved/image:3" "dir:$WORK/copy-saved-theirs"
  copy_skopeo "docker://$TO/saved:3" "dir:$WORK/copy-saved-ours"
  copy_skopeo "docker://$TO/below/saved/image:3" "dir:$WORK/copy-saved-below"
  diff -r -x manifest.json "$WORK/copy-saved-theirs" "$WORK/copy-saved-ours"
  diff -r "$WORK/copy-saved-ours" "$WORK/copy-saved-below"
}

# The mirror hosts repositories, and caches what is copied from its upstream.
copy_hosted_story() {
  rm -rf "$WORK"/data-*
  hosted_rules '- {anyone: true, effect: allow}'
  check "copy: millpond starts with hosted repositories, empty" millpond_with_hosted
  [ "$last" = ok ] || return 0
  check "copy: to a hosted repository and from it: the same bytes" copy_hosted
  mark copy-cold
  check "copy: an image of an upstream of the mirror" copy_mirrored cold
  mark copy-warm
  check "copy: again" copy_mirrored warm
  check "copy: again: no request for it to the upstream" no_gets_since copy-warm
  millpond_stop
}

copy_hosted() {
  copier --config "$WORK/hosted.yml" "$FROM/image:1" ci/image
  copier --config "$WORK/hosted.yml" ci/image:1 "$TO/hosted:2"
  same_image "docker://$FROM/image:1" "docker://$MIRROR/ci/image:1" "docker://$TO/hosted:2"
}

copy_mirrored() {
  copier --config "$WORK/hosted.yml" "docker.io/library/debian-test:gzip" "oci:$WORK/copy-mirrored-$1:gzip"
  # It has Docker's types, which this skopeo doesn't find in a layout.
  copier "oci:$WORK/copy-mirrored-$1:gzip" "$TO/mirrored-$1:2"
  same_image "docker://$MIRROR/library/debian-test:gzip" "docker://$TO/mirrored-$1:2"
}

copy_killed() {
  local delay
  for delay in 0.05 0.15 0.3 0.6; do
    # The status says that it was killed, or that it was faster.
    timeout -s KILL "$delay" env -i HOME="$WORK/copier" PATH="$PATH" \
      "$MILLPOND" copy "$FROM/image:1" "$TO/killed:1" || true
    # An incomplete image never shows.
    ! answers "http://$TO/v2/killed/manifests/1" 200 || same_image "docker://$FROM/image:1" "docker://$TO/killed:1"
  done
  copier "$FROM/image:1" "$TO/killed:1"
  same_image "docker://$FROM/image:1" "docker://$TO/killed:1"
}

copy_full_spool() {
  local spool=$WORK/copy-spool status=0
  mkdir -p "$spool"
  mount -t tmpfs -o size=64k tmpfs "$spool"
  dd if=/dev/zero of="$spool/full" bs=4k 2>/dev/null || true
  copier --spool "$spool" "$FROM/image:1" "$TO/full:1" || status=$?
  umount "$spool"
  same "exit code" 0 "$status"
  same_image "docker://$FROM/image:1" "docker://$TO/full:1"
}

copy_guarded() {
  local account=(--dst-username copier --dst-password-file "$WORK/copier-password")
  # The token service has TLS, and the registry hasn't.
  local guarded=(--dst-plain-http --dst-ca "$CA" --jobs 1 "$FROM/image:1" "$GUARDED/image:1") status=0
  copier "${guarded[@]}" || status=$?
  same "exit code without an account" 3 "$status"
  copier "${account[@]}" "${guarded[@]}"
  grep -q 'repository:image:pull,push' "$LOGS/copy-token.out" || die "the scope is another one"
}
