"""An endpoint before the upstream: passes requests on to it, over TLS, until it fails as it is told to.

A file says how, anew for each request: `well`; `die N` ends the whole process after N bytes of a blob's
body; `slow N` answers questions about manifests after N seconds.
"""

import argparse
import http.client
import http.server
import os
import ssl
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
        upstream = http.client.HTTPSConnection(self.server.upstream, context=self.server.tls, timeout=30)
        upstream.request(self.command, self.path, headers=self.passed_on(self.headers.items()))
        response = upstream.getresponse()
        self.send_response(response.status)
        for name, value in self.passed_on(response.getheaders()).items():
            self.send_header(name, value)
        self.end_headers()
        left = int(number) if how == "die" and "/blobs/" in self.path else None
        while self.command == "GET" and (piece := response.read(PIECE)):
            if left is not None and len(piece) >= left:
                self.wfile.write(piece[:left])
                self.wfile.flush()
                # The kernel sends what it has, and closes.
                os._exit(0)
            if left is not None:
                left -= len(piece)
            self.wfile.write(piece)
        upstream.close()

    do_HEAD = do_GET

    @staticmethod
    def passed_on(headers):
        return {name: value for name, value in headers if name.lower() not in OF_ONE_CONNECTION | {"host"}}

    def log_message(self, format, *args):
        print(self.command, self.path, *args[1:2], flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--upstream", required=True, help="host:port")
    parser.add_argument("--ca", required=True)
    parser.add_argument("--behaviour", required=True, help="the file")
    options = parser.parse_args()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", options.port), Relay)
    server.daemon_threads = True
    server.upstream = options.upstream
    server.behaviour = options.behaviour
    server.tls = ssl.create_default_context(cafile=options.ca)
    server.serve_forever()


main()
