"""A server and a client of Python's standard library, for tests/proxy/real.rs.

python3 peer.py serve        prints its port
python3 peer.py ask HOST PORT    prints `asked N`
"""
import http.client
import http.server
import sys

BODY = bytes(range(256)) * 400


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()

    def do_GET(self):
        self.send_response(200)
        if self.path == "/chunked":
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for at in range(0, len(BODY), 10_000):
                part = BODY[at : at + 10_000]
                self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
            self.wfile.write(b"0\r\n\r\n")
        elif self.path == "/until-close":
            self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(BODY)
        else:
            self.send_header("Content-Length", str(len(BODY)))
            self.end_headers()
            self.wfile.write(BODY)

    def do_POST(self):
        body = b""
        if self.headers["Transfer-Encoding"] == "chunked":
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def serve():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_address[1], flush=True)
    server.serve_forever()


def ask(host, port):
    connection = http.client.HTTPConnection(host, port, timeout=30)
    asked = 0
    for method, path, body in [
        ("GET", "/counted", None),
        ("GET", "/chunked", None),
        ("HEAD", "/counted", None),
        ("POST", "/echo", BODY),
        ("POST", "/echo", iter([BODY[:1000], BODY[1000:]])),
        ("GET", "/until-close", None),
        ("GET", "/counted", None),
    ]:
        connection.request(method, path, body, encode_chunked=False)
        answer = connection.getresponse()
        assert answer.status == 200, (method, path, answer.status)
        got = answer.read()
        assert got == (b"" if method == "HEAD" else BODY), (method, path, len(got))
        asked += 1
    print("asked", asked)


serve() if sys.argv[1] == "serve" else ask(sys.argv[2], int(sys.argv[3]))
