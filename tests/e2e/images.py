"""Makes the test's images: images.py ROOT_FILE_SYSTEM OUTPUT

    gzip      Docker schema 2, three gzip layers: a Debian root file system, 40 MiB that don't
              compress, a small layer with a whiteout
    zstd      OCI, the same file systems in zstd layers
    index     OCI index of amd64 and arm64, in another repository that shares gzip's layers
    list      Docker manifest list of amd64 and arm64
    pinned    Docker schema 2 without a tag: pulled by digest
    second    OCI, for the second upstream
    artifact  OCI artifact manifest whose subject is gzip, with the index under the referrers tag

OUTPUT/blobs/<hex> holds every blob and manifest. OUTPUT/images.json says what a client must find,
OUTPUT/push.json what to upload, in order. Everything is made from fixed seeds and times, so a
digest only changes when the Debian packages do.
"""

import gzip
import hashlib
import io
import json
import pathlib
import platform
import random
import subprocess
import sys
import tarfile

PAYLOAD_BYTES = 40 << 20
DOCKER = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
OCI = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
LAYER_TYPES = {
    (OCI, "gzip"): "application/vnd.oci.image.layer.v1.tar+gzip",
    (OCI, "zstd"): "application/vnd.oci.image.layer.v1.tar+zstd",
    (DOCKER, "gzip"): "application/vnd.docker.image.rootfs.diff.tar.gzip",
}
NATIVE = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]
FOREIGN = "arm64" if NATIVE == "amd64" else "amd64"


class Output:
    """The blobs, by digest, and the lists of what was made."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        (folder / "blobs").mkdir(parents=True, exist_ok=True)
        self.images: dict[str, dict] = {}
        self.push: list[dict] = []

    def put(self, raw: bytes, media_type: str) -> dict:
        hexed = hashlib.sha256(raw).hexdigest()
        (self.folder / "blobs" / hexed).write_bytes(raw)
        return {"mediaType": media_type, "digest": f"sha256:{hexed}", "size": len(raw)}

    def put_json(self, value: dict, media_type: str) -> dict:
        return self.put(json.dumps(value, indent=2).encode(), media_type)

    def upload(self, upstream: str, repository: str, reference: str, made: dict) -> None:
        manifest = made["descriptor"]
        entry = {"upstream": upstream, "repository": repository, "reference": reference}
        self.push.append(entry | {"manifest": manifest, "blobs": made["blobs"]})

    def save(self) -> None:
        for name in ("images", "push"):
            text = json.dumps(getattr(self, name), indent=2)
            (self.folder / f"{name}.json").write_text(text)


def tar_of_folder(folder: pathlib.Path) -> bytes:
    """A layer's tar: sorted, owned by root, no times."""

    def anonymous(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        entry.uid = entry.gid = entry.mtime = 0
        entry.uname = entry.gname = ""
        return entry

    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        for path in sorted(folder.rglob("*")):
            tar.add(path, str(path.relative_to(folder)), recursive=False, filter=anonymous)
    return raw.getvalue()


def tar_of_files(files: dict[str, bytes]) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o644
            tar.addfile(entry, io.BytesIO(content))
    return raw.getvalue()


def compressed(tar: bytes, compression: str) -> bytes:
    if compression == "gzip":
        return gzip.compress(tar, 1, mtime=0)
    command = ["zstd", "-q", "-3", "-c"]
    return subprocess.run(command, input=tar, capture_output=True, check=True, timeout=60).stdout


def image(output: Output, layers: list[dict], kind: str, architecture: str = NATIVE) -> dict:
    """Config and manifest over layers made by `layer`."""
    diff_ids = [layer["diff_id"] for layer in layers]
    config = {
        "architecture": architecture,
        "os": "linux",
        "created": "2025-01-01T00:00:00Z",
        "config": {"Cmd": ["/bin/sh"], "Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "history": [{"created": "2025-01-01T00:00:00Z", "created_by": "e2e"} for _ in layers],
    }
    config_type = OCI_CONFIG if kind == OCI else DOCKER_CONFIG
    config_descriptor = output.put_json(config, config_type)
    descriptors = [
        layer["descriptor"] | {"mediaType": LAYER_TYPES[kind, layer["compression"]]}
        for layer in layers
    ]
    manifest = {
        "schemaVersion": 2,
        "mediaType": kind,
        "config": config_descriptor,
        "layers": descriptors,
    }
    descriptor = output.put_json(manifest, kind)
    layer_digests = [layer["digest"] for layer in descriptors]
    return {
        "descriptor": descriptor,
        "architecture": architecture,
        "blobs": [config_descriptor["digest"], *layer_digests],
        "host": {
            "digest": descriptor["digest"],
            "config": config_descriptor["digest"],
            "layers": layer_digests,
            "diff_ids": diff_ids,
        },
    }


def layer(output: Output, tar: bytes, compression: str) -> dict:
    return {
        "descriptor": output.put(compressed(tar, compression), "application/octet-stream"),
        "compression": compression,
        "diff_id": f"sha256:{hashlib.sha256(tar).hexdigest()}",
    }


def index(output: Output, children: list[dict], kind: str, extra: dict | None = None) -> dict:
    entries = []
    for child in children:
        entry = dict(child["descriptor"])
        if "architecture" in child:
            entry["platform"] = {"architecture": child["architecture"], "os": "linux"}
        entries.append(entry | (extra or {}))
    value = {"schemaVersion": 2, "mediaType": kind, "manifests": entries}
    return {"descriptor": output.put_json(value, kind), "blobs": []}


def publish(output: Output, name: str, where: str, top: dict, children: list[dict]) -> None:
    """`where` is upstream/repository:tag, or without a tag for one that is only known by its digest
    (its `suffix` is what follows the repository in a reference). What a client that pulls for this machine must find is
    the native child's (`host`), or the manifest's own; `all` is for one that copies everything."""
    upstream, _, rest = where.partition("/")
    repository, _, tag = rest.partition(":")
    digest = top["descriptor"]["digest"]
    for child in children:
        output.upload(upstream, repository, child["descriptor"]["digest"], child)
    output.upload(upstream, repository, tag or digest, top)
    parts = [top, *children]
    output.images[name] = {
        "upstream": upstream,
        "repository": repository,
        "suffix": f":{tag}" if tag else f"@{digest}",
        "digest": digest,
        "host": (children[0] if children else top).get("host"),
        "all": {
            "manifests": sorted({part["descriptor"]["digest"] for part in parts}),
            "blobs": sorted({blob for part in parts for blob in part["blobs"]}),
        },
    }


def artifact_of(output: Output, subject: dict) -> dict:
    empty = output.put(b"{}", "application/vnd.oci.empty.v1+json")
    content = output.put(b'{"spdxVersion": "SPDX-2.3"}', "application/spdx+json")
    value = {
        "schemaVersion": 2,
        "mediaType": OCI,
        "artifactType": "application/spdx+json",
        "config": empty,
        "layers": [content],
        "subject": subject["descriptor"],
    }
    return {
        "descriptor": output.put_json(value, OCI),
        "blobs": [empty["digest"], content["digest"]],
    }


def main(root: pathlib.Path, folder: pathlib.Path) -> None:
    output = Output(folder)
    payload = random.Random(2602).randbytes(PAYLOAD_BYTES)
    debian_tar = tar_of_folder(root)
    payload_tar = tar_of_files({"payload.bin": payload})
    notes_tar = tar_of_files({"etc/notes": b"end-to-end\n", "etc/.wh.issue": b""})
    (folder / "payload.sha256").write_text(hashlib.sha256(payload).hexdigest())

    debian, big, notes = (layer(output, t, "gzip") for t in (debian_tar, payload_tar, notes_tar))
    # More zeros at the end make the same files another tar: with the same diffIDs, podman and docker
    # would take this image for the gzip one and pull nothing.
    zstd = [layer(output, tar + bytes(10240), "zstd") for tar in (debian_tar, payload_tar, notes_tar)]
    foreign = layer(output, tar_of_files({"etc/architecture": FOREIGN.encode()}), "gzip")
    own = layer(output, tar_of_files({"app/main": b"#!/bin/sh\necho second\n"}), "gzip")

    plain = image(output, [debian, big, notes], DOCKER)
    publish(output, "gzip", "hub/library/debian-test:gzip", plain, [])
    publish(output, "zstd", "hub/library/debian-test:zstd", image(output, zstd, OCI), [])
    children = [image(output, [debian, notes], OCI), image(output, [foreign], OCI, FOREIGN)]
    top = index(output, children, OCI_INDEX)
    publish(output, "index", "hub/library/debian-multi:1.0", top, children)
    children = [plain, image(output, [foreign], DOCKER, FOREIGN)]
    top = index(output, children, DOCKER_LIST)
    publish(output, "list", "hub/library/debian-test:list", top, children)
    pinned = image(output, [debian, own], DOCKER)
    publish(output, "pinned", "hub/library/debian-pinned", pinned, [])
    publish(output, "second", "second/team/app:1.0", image(output, [debian, own], OCI), [])
    artifact = artifact_of(output, plain)
    publish(output, "artifact", "hub/library/debian-test:sbom", artifact, [])
    # What clients read where the registry has no referrers API, as 2.8 hasn't.
    referrers = index(output, [artifact], OCI_INDEX, {"artifactType": "application/spdx+json"})
    tag = plain["descriptor"]["digest"].replace(":", "-")
    publish(output, "referrers", f"hub/library/debian-test:{tag}", referrers, [artifact])
    output.save()


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))
