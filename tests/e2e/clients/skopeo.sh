# shellcheck shell=bash
# skopeo, straight from the mirror's address into folders: what it stores is compared byte for byte.

skopeo_needs() { echo skopeo; }
skopeo_images() { echo gzip zstd index list pinned second artifact; }
skopeo_start() { skopeo_wipe; }
skopeo_stop() { :; }

skopeo_wipe() {
  rm -rf "$WORK/skopeo"
  mkdir -p "$WORK/skopeo"
}

skopeo_pull() {
  skopeo_copy "$1" "$WORK/skopeo/$1"
}

# skopeo_copy IMAGE FOLDER: all platforms of an index.
skopeo_copy() {
  timeout 120 skopeo --insecure-policy copy --quiet --all --src-tls-verify=false \
    "docker://$MIRROR/$(mirror_path "$1")$(image "$1" .suffix)" "dir:$2"
}

skopeo_verify() { skopeo_folder_is "$1" "$WORK/skopeo/$1"; }

# skopeo_folder_is IMAGE FOLDER: the top manifest, every child manifest and every blob is there and
# has the bytes that its digest names.
skopeo_folder_is() {
  local digest hex
  right_bytes "$2/manifest.json" "$(image "$1" .digest)"
  for digest in $(image "$1" .all.manifests); do
    [ "$digest" != "$(image "$1" .digest)" ] || continue
    right_bytes "$2/${digest#sha256:}.manifest.json" "$digest"
  done
  for digest in $(image "$1" '.all.blobs'); do
    hex=${digest#sha256:}
    right_bytes "$2/$hex" "$digest"
  done
}
