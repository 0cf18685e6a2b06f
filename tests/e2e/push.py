"""Uploads what images.py made to one upstream, byte for byte, whatever the media type:

    push.py IMAGES UPSTREAM ADDRESS CA USER PASSWORD             all of that upstream's images
    push.py IMAGES UPSTREAM ADDRESS CA USER PASSWORD IMAGE TAG   the tag, moved to that image

Follows the Bearer challenge of the upstream, or sends Basic credentials where it asks for them.
"""

import base64
import http.client
import json
import pathlib
import re
import ssl
import sys
import urllib.parse

AGENT = "e2e-push"


class Registry:
    def __init__(self, address: str, ca: str, user: str, password: str):
        self.address = address
        self.tls = ssl.create_default_context(cafile=ca)
        self.connection = self.connect(address)
        self.basic = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
        self.tokens: dict[str, str] = {}

    def connect(self, address: str) -> http.client.HTTPSConnection:
        return http.client.HTTPSConnection(address, context=self.tls, timeout=60)

    def token(self, challenge: str, repository: str) -> str:
        """The Authorization header that answers this challenge."""
        if not challenge.startswith("Bearer"):
            return self.basic
        fields = dict(re.findall(r'(\w+)="([^"]*)"', challenge))
        realm = urllib.parse.urlsplit(fields["realm"])
        scope = f"repository:{repository}:pull,push"
        query = urllib.parse.urlencode({"service": fields["service"], "scope": scope})
        service = self.connect(realm.netloc)
        service.request("GET", f"{realm.path}?{query}", headers={"Authorization": self.basic})
        return "Bearer " + json.load(service.getresponse())["token"]

    def call(self, repository: str, method: str, path: str, body=b"", kind="") -> tuple:
        for _ in range(2):
            headers = {"User-Agent": AGENT, "Content-Length": str(len(body))}
            if kind:
                headers["Content-Type"] = kind
            if repository in self.tokens:
                headers["Authorization"] = self.tokens[repository]
            self.connection.request(method, path, body=body, headers=headers)
            response = self.connection.getresponse()
            answer = response.read()
            if response.status != 401:
                break
            challenge = response.headers["WWW-Authenticate"]
            self.tokens[repository] = self.token(challenge, repository)
        if response.status >= 400 and method != "HEAD":
            raise SystemExit(f"{method} {path}: {response.status} {answer.decode()}")
        return response.status, response.headers

    def push_blob(self, repository: str, digest: str, raw: bytes) -> None:
        base = f"/v2/{repository}/blobs"
        if self.call(repository, "HEAD", f"{base}/{digest}")[0] == 200:
            return
        _, headers = self.call(repository, "POST", f"{base}/uploads/")
        url = urllib.parse.urlsplit(headers["Location"])
        path = f"{url.path}?{url.query}&digest={digest}"
        self.call(repository, "PUT", path, raw, "application/octet-stream")


def main() -> None:
    images, upstream, *where = sys.argv[1:7]
    folder = pathlib.Path(images)
    registry = Registry(*where)
    entries = json.loads((folder / "push.json").read_text())
    if moved := sys.argv[7:]:
        digest = json.loads((folder / "images.json").read_text())[moved[0]]["digest"]
        entries = [entry for entry in entries if entry["manifest"]["digest"] == digest][:1]
        entries[0]["reference"] = moved[1]

    def blob(digest: str) -> bytes:
        return (folder / "blobs" / digest.removeprefix("sha256:")).read_bytes()

    for entry in entries:
        if entry["upstream"] != upstream:
            continue
        repository = entry["repository"]
        for digest in entry["blobs"]:
            registry.push_blob(repository, digest, blob(digest))
        manifest = entry["manifest"]
        path = f"/v2/{repository}/manifests/{entry['reference']}"
        registry.call(repository, "PUT", path, blob(manifest["digest"]), manifest["mediaType"])


if __name__ == "__main__":
    main()
