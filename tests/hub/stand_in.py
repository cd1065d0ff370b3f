"""A server that answers `huggingface_hub` like the Hub, as far as push and pull need it; repositories are in memory."""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class StandIn(ThreadingHTTPServer):
    """The server. `repositories` holds the content of each file by repository and name; `private` who is private."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.asked: list[str] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, value, status=200, headers=None, body=None):
        content = json.dumps(value).encode() if body is None else body
        self.send_response(status)
        for name, text in {
            "Content-Length": str(len(content)),
            "Content-Type": "application/json",
            **(headers or {}),
        }.items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def missing(self):
        self.answer({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = unquote(self.path)
        self.server.asked.append(f"POST {path}")
        if self.headers.get("Authorization") != "Bearer hf_test":
            self.answer({"error": "Invalid credentials"}, 401)
        elif path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            if name not in self.server.repositories:
                self.server.repositories[name] = {}
                self.server.private[name] = asked.get("private", asked.get("visibility") == "private")
            self.answer({"url": f"{self.server.url}/{name}"})
        elif path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif found := re.fullmatch(r"/api/models/(.+?)/preupload/main", path):
            files = [{**file, "uploadMode": "regular", "shouldIgnore": False} for file in json.loads(body)["files"]]
            self.answer({"files": files})
        elif found := re.fullmatch(r"/api/models/(.+?)/commit/main", path):
            for line in body.decode().splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    content = base64.b64decode(entry["value"]["content"])
                    self.server.repositories[found[1]][entry["value"]["path"]] = content
            self.answer(
                {"commitUrl": f"{self.server.url}/{found[1]}/commit/{COMMIT}", "commitOid": COMMIT, "success": True}
            )
        else:
            self.answer({"error": f"unknown: {path}"}, 400)

    def do_GET(self):
        path = unquote(self.path.partition("?")[0])
        self.server.asked.append(f"{self.command} {path}")
        if found := re.fullmatch(r"/api/models/(.+?)/revision/(.+)", path):
            files = self.server.repositories.get(found[1])
            if files is None:
                return self.missing()
            siblings = [{"rfilename": name, "size": len(content)} for name, content in files.items()]
            return self.answer({"id": found[1], "sha": COMMIT, "siblings": siblings, "private": False, "tags": []})
        if found := re.fullmatch(r"/api/models/(.+?)/tree/(.+?)", path):
            files = self.server.repositories.get(found[1])
            if files is None:
                return self.missing()
            return self.answer(
                [
                    {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                    for name, content in files.items()
                ]
            )
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
            content = self.server.repositories.get(found[1], {}).get(found[2])
            if content is None:
                return self.missing()
            headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
            return self.answer(None, headers=headers, body=content)
        return self.missing()

    do_HEAD = do_GET
