"""The counting application of the tests: POST /add?id=X leaves one row each time it is carried out.

Rows are not unique on purpose: a request that was carried out twice must show. Standard library and psycopg2.
  POST /add?id=X   201 when the row is committed
  GET  /get?id=X   how many rows X has
  GET  /count      how many rows there are
  GET  /ready      "ready" when the database answers
"""
import os
import socketserver
import threading
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs, urlsplit

import psycopg2

DATABASE = dict(
    host=os.environ.get("DATABASE_HOST", "127.0.0.1"),
    port=os.environ.get("DATABASE_PORT", "5432"),
    dbname=os.environ.get("DATABASE_NAME", "yado"),
    user=os.environ.get("DATABASE_USER", "yado"),
    connect_timeout=30,  # thirty of these ask one database at once in a test, on two busy processors
)
kept = threading.local()


def query(sql, *values):
    """Runs one statement on this thread's connection; a connection found dead before anything ran is replaced."""
    for attempt in (1, 2):
        fresh = getattr(kept, "connection", None) is None
        if fresh:
            kept.connection = psycopg2.connect(**DATABASE)
            kept.connection.autocommit = True
        try:
            with kept.connection.cursor() as cursor:
                if not fresh:
                    cursor.execute("select 1")  # separate from the statement, so that a retry never repeats that one
                    cursor.fetchall()
        except psycopg2.Error:
            kept.connection = None
            if attempt == 2:
                raise
            continue
        with kept.connection.cursor() as cursor:
            cursor.execute(sql, values)
            return cursor.fetchone()[0]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, status, text):
        body = f"{text}\n".encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def serve(self, get, post):
        url = urlsplit(self.path)
        name = parse_qs(url.query).get("id", [""])[0]
        self.rfile.read(int(self.headers.get("Content-Length") or 0))  # or its bytes would be the next request
        try:
            if post and url.path == "/add":
                if not name:
                    return self.answer(400, "add needs ?id=")
                query("insert into counted (id) values (%s) returning 1", name)
                return self.answer(201, "added")
            if get and url.path == "/get":
                return self.answer(200, query("select count(*) from counted where id = %s", name))
            if get and url.path == "/count":
                return self.answer(200, query("select count(*) from counted"))
            if get and url.path == "/ready":
                query("select count(*) from visits")
                return self.answer(200, "ready")
        except psycopg2.Error as error:
            kept.connection = None
            return self.answer(503, f"database: {error}".strip())
        return self.answer(404, "not here")

    def do_GET(self):
        self.serve(get=True, post=False)

    do_HEAD = do_GET

    def do_POST(self):
        self.serve(get=False, post=True)

    def log_message(self, *_):
        pass


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 512


if __name__ == "__main__":
    Server(("0.0.0.0", int(os.environ.get("PORT", "8000"))), Handler).serve_forever()
