"""A load balancer before several replicas that sends each request, not each connection, to the next one.

Successive requests for one path never go to the same replica, so the requests of an upload don't either. A
replica that can't be reached is passed over. Each request is logged: METHOD PATH STATUS REPLICA.
"""

import argparse
import http.client
import http.server
import threading

# Neither is passed on: http.server and http.client write them.
OF_ONE_CONNECTION = {"connection", "transfer-encoding", "expect", "keep-alive", "date", "server"}
PIECE = 64 * 1024


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 120

    def answer(self):
        for _ in self.server.replicas:
            replica = self.server.next_replica(self.path.partition("?")[0])
            connection = http.client.HTTPConnection(replica, timeout=60)
            try:
                connection.connect()
            except OSError:
                continue
            return self.relay(connection, replica)
        self.close_connection = True
        self.send_error(502, "no replica can be reached")

    do_GET = do_HEAD = do_POST = do_PATCH = do_PUT = do_DELETE = answer

    def relay(self, connection, replica):
        headers = {}
        for name, value in self.passed_on(self.headers):
            # skopeo sends a line for each type that it accepts.
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        chunked = "chunked" in self.headers.get("Transfer-Encoding", "").lower()
        if chunked:
            headers["Transfer-Encoding"] = "chunked"
            body = self.chunks()
        else:
            body = self.pieces(int(self.headers.get("Content-Length", 0)))
        try:
            connection.request(self.command, self.path, body, headers, encode_chunked=chunked)
        except ConnectionError:
            # A refusal may come before the end of the body. What the client still sends isn't read.
            self.close_connection = True
        response = connection.getresponse()
        self.send_response(response.status)
        for name, value in self.passed_on(response.headers):
            self.send_header(name, value)
        if "Content-Length" not in response.headers and response.status != 204:
            self.close_connection = True
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        while piece := response.read(PIECE):
            self.wfile.write(piece)
        connection.close()
        print(self.command, self.path, response.status, replica, flush=True)

    def pieces(self, length):
        while length > 0 and (piece := self.rfile.read(min(length, PIECE))):
            length -= len(piece)
            yield piece

    def chunks(self):
        while length := int(self.rfile.readline().split(b";")[0], 16):
            yield from self.pieces(length)
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass

    @staticmethod
    def passed_on(headers):
        return [(name, value) for name, value in headers.items() if name.lower() not in OF_ONE_CONNECTION]

    def log_message(self, format, *args):
        pass


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    lock = threading.Lock()
    turn = 0

    def next_replica(self, path):
        with self.lock:
            self.turn += 1
            replica = self.replicas[self.turn % len(self.replicas)]
            if replica == self.last.get(path):
                self.turn += 1
                replica = self.replicas[self.turn % len(self.replicas)]
            self.last[path] = replica
            return replica


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--replica-port", type=int, required=True)
    parser.add_argument("hosts", nargs="+", help="of the replicas")
    options = parser.parse_args()
    server = Server(("127.0.0.1", options.port), Handler)
    server.replicas = [f"{host}:{options.replica_port}" for host in options.hosts]
    server.last = {}
    server.serve_forever()


main()
