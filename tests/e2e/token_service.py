"""The upstream's token service, as Docker Hub has one: GET /token with Basic credentials answers a
JWT that the registry accepts. Signed by openssl (RS256, certificate in the x5c header).

A client without credentials gets a token that grants nothing; wrong ones are refused. Every request
is one JSON line on standard output, so that a test can say who asked for what.
"""

import argparse
import base64
import http.server
import json
import ssl
import subprocess
import sys
import time
import urllib.parse
import uuid


def b64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def access_of(scopes: list[str]) -> list[dict]:
    """`repository:library/debian:pull,push` -> what the registry reads from the token."""
    access = []
    for scope in (one for joined in scopes for one in joined.split()):
        kind, _, rest = scope.partition(":")
        name, _, actions = rest.rpartition(":")
        access.append({"type": kind, "name": name, "actions": actions.split(",")})
    return access


class Signer:
    def __init__(self, key: str, certificate: str):
        self.key = key
        with open(certificate) as pem:
            self.x5c = base64.b64encode(ssl.PEM_cert_to_DER_cert(pem.read())).decode()

    def token(self, issuer: str, user: str, service: str, access: list[dict], lifetime: int) -> str:
        now = int(time.time())
        header = {"typ": "JWT", "alg": "RS256", "x5c": [self.x5c]}
        claims = {
            "iss": issuer,
            "sub": user,
            "aud": service,
            "iat": now,
            "nbf": now - 10,
            "exp": now + lifetime,
            "jti": str(uuid.uuid4()),
            "access": access,
        }
        signed = ".".join(b64url(json.dumps(part).encode()) for part in (header, claims))
        signature = subprocess.run(
            ["openssl", "dgst", "-sha256", "-sign", self.key],
            input=signed.encode(),
            capture_output=True,
            check=True,
            timeout=10,
        ).stdout
        return f"{signed}.{b64url(signature)}"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 30
    options: argparse.Namespace
    signer: Signer

    def do_GET(self) -> None:
        url = urllib.parse.urlsplit(self.path)
        query = urllib.parse.parse_qs(url.query)
        scopes = query.get("scope", [])
        user, password = self.credentials()
        if url.path != "/token":
            return self.answer(404, {}, user, scopes)
        if user and (user, password) != (self.options.user, self.options.password):
            return self.answer(401, {"details": "incorrect username or password"}, user, scopes)
        access = access_of(scopes) if user else []
        service = query.get("service", [""])[0]
        lifetime = self.options.lifetime
        token = self.signer.token(self.options.issuer, user, service, access, lifetime)
        self.answer(200, {"token": token, "expires_in": lifetime}, user, scopes)

    def credentials(self) -> tuple[str, str]:
        scheme, _, encoded = self.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "basic":
            return "", ""
        user, _, password = base64.b64decode(encoded).decode().partition(":")
        return user, password

    def answer(self, status: int, body: dict, user: str, scopes: list[str]) -> None:
        raw = json.dumps(body).encode()
        line = {"status": status, "user": user, "scopes": scopes}
        line["agent"] = self.headers.get("User-Agent", "")
        print(json.dumps(line), flush=True)
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_: object) -> None:
        """Our own line above says it."""


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("port", "certificate", "key", "signing-certificate", "signing-key"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("issuer", "user", "password"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--lifetime", type=int, required=True, help="seconds")
    Handler.options = parser.parse_args()
    options = Handler.options
    Handler.signer = Signer(options.signing_key, options.signing_certificate)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", int(options.port)), Handler)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(options.certificate, options.key)
    # The handshake belongs to the connection's own thread: a client that connects and says
    # nothing must not keep the others out.
    server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    server.serve_forever()


if __name__ == "__main__":
    sys.exit(main())
