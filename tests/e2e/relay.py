"""An endpoint before the upstream: passes requests on to it, over TLS, until it fails as it is told to.

A file says how, anew for each request: `well`; `die N` ends the whole process after N bytes of a blob's
body; `slow N` answers questions about manifests after N seconds; `limit N` permits N pulls, and answers like
Docker Hub: GET requests for manifests count, and one too many gets a 429; `empty` has no manifests and no blobs.
"""

import argparse
import http.client
import http.server
import json
import os
import ssl
import threading
import time

# Neither is passed on: http.server and http.client write them.
OF_ONE_CONNECTION = {"connection", "transfer-encoding", "date", "server"}
PIECE = 64 * 1024


class Relay(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        with open(self.server.behaviour) as file:
            how, _, number = file.read().strip().partition(" ")
        if how == "slow" and "/manifests/" in self.path:
            time.sleep(float(number))
        # Without a token, the upstream's challenge comes first.
        has_token = "Authorization" in self.headers
        if how == "empty" and has_token and ("/manifests/" in self.path or "/blobs/" in self.path):
            return self.refuse(404, "MANIFEST_UNKNOWN", "manifest unknown")
        left = None
        if how == "limit" and has_token and "/manifests/" in self.path:
            left = self.server.left(int(number), self.command == "GET")
            if left < 0:
                return self.refuse(429, "TOOMANYREQUESTS", "You have reached your pull rate limit.", number, 0)
        upstream = http.client.HTTPSConnection(self.server.upstream, context=self.server.tls, timeout=30)
        upstream.request(self.command, self.path, headers=self.passed_on(self.headers.items()))
        response = upstream.getresponse()
        self.send_response(response.status)
        for name, value in self.passed_on(response.getheaders()).items():
            self.send_header(name, value)
        if left is not None:
            self.send_limit(number, left)
        self.end_headers()
        to_live = int(number) if how == "die" and "/blobs/" in self.path else None
        while self.command == "GET" and (piece := response.read(PIECE)):
            if to_live is not None and len(piece) >= to_live:
                self.wfile.write(piece[:to_live])
                self.wfile.flush()
                # The kernel sends what it has, and closes.
                os._exit(0)
            if to_live is not None:
                to_live -= len(piece)
            self.wfile.write(piece)
        upstream.close()

    do_HEAD = do_GET

    def refuse(self, status, code, message, limit=None, left=None):
        body = json.dumps({"errors": [{"code": code, "message": message}]}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if limit is not None:
            self.send_limit(limit, left)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def send_limit(self, limit, left):
        self.send_header("ratelimit-limit", f"{limit};w=21600")
        self.send_header("ratelimit-remaining", f"{left};w=21600")

    @staticmethod
    def passed_on(headers):
        return {name: value for name, value in headers if name.lower() not in OF_ONE_CONNECTION | {"host"}}

    def log_message(self, format, *args):
        print(self.command, self.path, *args[1:2], flush=True)


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    pulls = 0
    lock = threading.Lock()

    def left(self, limit, is_pull):
        """The pulls that are left of a limit, with this one; -1 when it is one too many."""
        with self.lock:
            if is_pull and self.pulls >= limit:
                return -1
            self.pulls += is_pull
            return limit - self.pulls


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--upstream", required=True, help="host:port")
    parser.add_argument("--ca", required=True)
    parser.add_argument("--behaviour", required=True, help="the file")
    options = parser.parse_args()
    server = Server(("127.0.0.1", options.port), Relay)
    server.upstream = options.upstream
    server.behaviour = options.behaviour
    server.tls = ssl.create_default_context(cafile=options.ca)
    server.serve_forever()


main()
