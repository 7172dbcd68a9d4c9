# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""A Hub on localhost: enough of its HTTP interface for model repositories to be made, committed to and read.

Repositories live in memory. `HF_ENDPOINT` is read when huggingface_hub is imported, so clients run in a process of
their own with `client_environment(server)`, or here while `known_here` has put the server into its constants. Xet
uploads know no server but the real one and are off.
"""

import base64
import hashlib
import json
import os
import re
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Fault:
    """What goes wrong at requests whose method and path hold `where`, so often (`times`).

    `status` is the answer's, with `headers`; 0 cuts the connection instead of answering. `after`: the request is done
    all the same. `meanwhile` is called first.
    """

    where: str
    status: int = 0
    times: int = 1
    headers: dict = field(default_factory=dict)
    after: bool = False
    meanwhile: Callable[[], None] = lambda: None


class HubServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.blobs: dict[str, bytes] = {}
        self.repos: dict[str, dict] = {}  # {id: {"private": bool, "commits": [{oid, title, branch, files, lfs}]}}
        self.faults: list[Fault] = []
        self.requests: list[str] = []

    def handle_error(self, request, client_address):
        pass  # clients that were cut off go without a word


@contextmanager
def hub_server():
    server = HubServer()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def client_environment(server: HubServer, home) -> dict[str, str]:
    """Environment of a client process that knows this server only."""
    return {
        **os.environ,
        "HF_ENDPOINT": server.url,
        "HF_HOME": str(home),
        "HF_TOKEN": "hf_of_the_test",
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "no_proxy": "127.0.0.1",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }


def known_here(server: HubServer, monkeypatch):
    """Let the Hub's client of this process know this server only (downloads of transformers do not)."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_test")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, value=None, code=200, headers=None, body=None):
        content = json.dumps(value).encode() if body is None else body
        self.send_response(code)
        for key, text in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(key, text)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def missing(self, what):
        self.answer({"error": f"{what} not found"}, 404, {"X-Error-Code": f"{what}NotFound"})

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def head(self, repo: str, revision: str) -> dict | None:
        """The latest commit of a branch, or the commit of that name."""
        commits = self.server.repos[repo]["commits"]
        known = [commit for commit in commits if revision in (commit["branch"], commit["oid"])]
        return known[-1] if known else None

    def fails(self) -> bool:
        """Whether a fault has answered this request, or cut it off."""
        name = f"{self.command} {self.path}"
        self.server.requests.append(name)
        fault = next((one for one in self.server.faults if one.where in name and one.times > 0), None)
        if fault is None:
            return False
        fault.times -= 1
        fault.meanwhile()
        if fault.after:
            self.fault = fault
            return False
        self.fail(fault)
        return True

    def fail(self, fault: Fault):
        if fault.status:
            self.answer({"error": f"a fault of the test ({fault.status})"}, fault.status, fault.headers)
        else:
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True

    def do_POST(self):
        server, body, self.fault = self.server, self.body(), None
        if self.fails():
            return None
        if self.path == "/api/repos/create":
            wish = json.loads(body)
            name = f"{wish.get('organization') or 'tester'}/{wish['name']}"
            if name in server.repos:
                return self.answer({"error": "exists", "url": f"{server.url}/{name}"}, 409)
            server.repos[name] = {"private": wish.get("visibility") == "private", "commits": []}
            return self.answer({"url": f"{server.url}/{name}"})
        if self.path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if match := re.fullmatch(r"/(.+)\.git/info/lfs/objects/batch", self.path):
            objects = [{"oid": wish["oid"], "size": wish["size"]} for wish in json.loads(body)["objects"]]
            for item in objects:
                if item["oid"] not in server.blobs:
                    item["actions"] = {"upload": {"href": f"{server.url}/blob/{item['oid']}"}}
            return self.answer({"transfer": "basic", "objects": objects})
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit|branch)/([^/?]+)", self.path):
            repo, action, revision = match.groups()
            if repo not in server.repos:
                return self.missing("Repo")
            return getattr(self, action)(repo, revision, body)
        self.missing("Entry")

    def preupload(self, repo, revision, body):
        modes, head = [], self.head(repo, revision)
        for file in json.loads(body)["files"]:
            mode = "lfs" if file["path"].endswith((".safetensors", ".bin")) else "regular"
            modes.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False})
            if head and file["path"] in head["files"]:
                entry = self.entry(head, file["path"])
                modes[-1]["oid"] = entry.get("lfs", entry)["oid"]
        self.answer({"files": modes})

    def branch(self, repo, revision, body):
        head = self.head(repo, "main") or {"oid": "0" * 40, "title": "", "files": {}, "lfs": set()}
        self.server.repos[repo]["commits"].append({**head, "branch": revision, "title": "new branch"})
        self.answer({})

    def commit(self, repo, revision, body):
        head = self.head(repo, revision)
        files, lfs = (dict(head["files"]), set(head["lfs"])) if head else ({}, set())
        title = ""
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                title = value["summary"]
                if head and value.get("parentCommit") not in (None, head["oid"]):
                    return self.answer({"error": "a commit has happened since"}, 412)
            elif entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "deletedFile":
                del files[value["path"]]
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.server.blobs[value["oid"]]
                lfs.add(value["path"])
        oid = hashlib.sha1(body + (head or {"oid": ""})["oid"].encode()).hexdigest()
        record = {"oid": oid, "title": title, "branch": revision, "files": files, "lfs": lfs}
        self.server.repos[repo]["commits"].append(record)
        if self.fault is not None:
            return self.fail(self.fault)
        self.answer({"commitUrl": f"{self.server.url}/{repo}/commit/{oid}", "commitOid": oid})

    def do_PUT(self):
        content = self.body()
        if self.fails():
            return None
        oid = self.path.rsplit("/", 1)[-1]
        if hashlib.sha256(content).hexdigest() != oid:
            return self.answer({"error": "hash mismatch"}, 400)
        self.server.blobs[oid] = content
        self.answer({})

    def do_GET(self):
        if self.fails():
            return None
        path = self.path.split("?")[0]
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+?)(?:/(revision|tree)/([^/]+))?", path):
            repo, view, revision = match.groups()
            if repo not in self.server.repos:
                return self.missing("Repo")
            commit = self.head(repo, revision or "main")
            if commit is None and view == "tree":
                return self.answer([])  # made and never committed to; the Hub makes an empty first commit
            if commit is None:
                return self.missing("Revision")
            if view == "tree":
                return self.answer([self.entry(commit, name) for name in sorted(commit["files"])])
            siblings = [{"rfilename": name} for name in sorted(commit["files"])]
            private = self.server.repos[repo]["private"]
            return self.answer(
                {"id": repo, "sha": commit["oid"], "private": private, "tags": [], "siblings": siblings}
            )
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            repo, revision, name = match.groups()
            if repo not in self.server.repos:
                return self.missing("Repo")
            commit = self.head(repo, revision)
            if commit is None or name not in commit["files"]:
                return self.missing("Revision" if commit is None else "Entry")
            entry = self.entry(commit, name)
            headers = {"X-Repo-Commit": commit["oid"], "ETag": f'"{entry["oid"]}"'}
            if "lfs" in entry:
                headers |= {"X-Linked-Etag": f'"{entry["lfs"]["oid"]}"', "X-Linked-Size": str(entry["size"])}
            return self.answer(headers=headers, body=commit["files"][name])
        self.missing("Entry")

    do_HEAD = do_GET

    def entry(self, commit, name) -> dict:
        content = commit["files"][name]
        oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        entry = {"type": "file", "path": name, "size": len(content), "oid": oid}
        if name in commit["lfs"]:
            sha = hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"oid": sha, "size": len(content), "pointerSize": 130}
        return entry
