"""
As much of the Hub's HTTP interface as uploads and `from_pretrained` use, on loopback: repositories with branches,
commits, files kept by git and by LFS, private and gated ones, and faults on demand.
"""

import base64
import hashlib
import json
import re
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

# Faults that name no status. The connection ends instead of an answer; it ends after what was asked for is done; it
# stays open, with no answer or half of one's body; the body comes in eight parts, a fifth of a second apart.
RESET, LOST, SILENT, HALF, TRICKLE = range(5)
# Seconds, after which a silent server lets go a client that still waits.
_PATIENCE = 3.0
_ERROR_CODES = {"gated": "GatedRepo", "repository": "RepoNotFound", "revision": "RevisionNotFound"}


@dataclass
class Repository:
    """`branches`: name -> commits, newest last; a commit is its files, path -> content."""

    private: bool = False
    gated: bool = False
    branches: dict[str, list[dict[str, bytes]]] = field(default_factory=lambda: {"main": [{}]})

    def files(self, revision: str) -> dict[str, bytes] | None:
        if revision in self.branches:
            return self.branches[revision][-1]
        return next((c for commits in self.branches.values() for c in commits if oid(c) == revision), None)


def oid(files: dict[str, bytes]) -> str:
    listing = sorted((name, hashlib.sha1(content).hexdigest()) for name, content in files.items())
    return hashlib.sha1(json.dumps(listing).encode()).hexdigest()


class LoopbackHub:
    """The server's state: `repositories`, LFS objects, every request as (method, path), and the faults to come."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.tokens = {"write": "me"}
        # Clients that a silent server had to let go.
        self.let_go = 0
        # Whether weights are kept by LFS; else all files are parts of the commit, as small ones are.
        self.keeps_lfs = True
        self._faults: dict[str, list[int]] = defaultdict(list)
        self.url = ""

    def fail(self, pattern: str, *statuses: int) -> None:
        """The next requests whose `METHOD path` holds `pattern` get these statuses, one each."""
        self._faults[pattern] += statuses

    def fail_no_more(self) -> None:
        self._faults.clear()

    def next_fault(self, request: str) -> int | None:
        for pattern, statuses in self._faults.items():
            if pattern in request and statuses:
                return statuses.pop(0)
        return None

    def count(self, pattern: str) -> int:
        return sum(pattern in f"{method} {path}" for method, path in self.requests)


def _handler(hub: LoopbackHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def answer(self, status: int, body: object = b"", **headers: str) -> None:
            if self.fault == LOST:
                return self.hang_up()
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", headers.get("Length", str(len(content))))
            self.end_headers()
            if self.command == "HEAD":
                return
            size = -(-len(content) // {TRICKLE: 8, HALF: 2}.get(self.fault, 1)) or 1
            for start in range(0, len(content), size):
                self.wfile.write(content[start : start + size])
                if self.fault == HALF:
                    return self.say_nothing()
                if self.fault == TRICKLE:
                    # Not `time.sleep`, which tests take out of the client's tries, in this process.
                    threading.Event().wait(0.2)

        def say_nothing(self) -> None:
            """Until the client hangs up."""
            self.connection.settimeout(_PATIENCE)
            try:
                self.connection.recv(1)
            except TimeoutError:
                hub.let_go += 1
            except ConnectionError:
                pass
            self.close_connection = True

        def refuse(self, status: int, kind: str = "", message: str = "") -> None:
            code = {"X-Error-Code": _ERROR_CODES[kind]} if kind else {}
            self.answer(status, {"error": message or kind}, **code, **{"X-Error-Message": message or kind or "no"})

        def handle_any(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(length) if length else self.read_chunks()
            if len(body) < length:  # the client died: as the Hub, which knows each file's hash, keep nothing of it
                self.close_connection = True
                return
            path = unquote(urlsplit(self.path).path)
            hub.requests.append((self.command, path))
            self.fault = hub.next_fault(f"{self.command} {path}")
            if self.fault is not None and self.fault >= 100:
                self.refuse(self.fault, message=f"a {self.fault} on demand")
            elif self.fault == SILENT:
                self.say_nothing()
            elif self.fault == RESET:
                self.hang_up()
            else:
                self.route(path, body)

        def hang_up(self) -> None:
            self.close_connection = True
            self.connection.close()

        do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_any

        def read_chunks(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return b""
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        @property
        def user(self) -> str | None:
            return hub.tokens.get((self.headers.get("Authorization") or "").removeprefix("Bearer "))

        def route(self, path: str, body: bytes) -> None:
            if path == "/api/repos/create":
                return self.create(json.loads(body))
            if path == "/api/whoami-v2":
                if self.user is None:
                    return self.refuse(401, message="Invalid token")
                return self.answer(200, {"type": "user", "name": self.user, "auth": {"accessToken": {}}})
            if path == "/api/validate-yaml":
                return self.answer(200, {"errors": [], "warnings": []})
            if path.startswith("/lfs/"):
                hub.objects[path.removeprefix("/lfs/")] = body
                return self.answer(200)
            forms = (
                ("preupload", r"/api/models/(?P<repo>[^/]+/[^/]+)/preupload/(?P<revision>.+)"),
                ("commit", r"/api/models/(?P<repo>[^/]+/[^/]+)/commit/(?P<revision>.+)"),
                ("branch", r"/api/models/(?P<repo>[^/]+/[^/]+)/branch/(?P<revision>.+)"),
                ("tree", r"/api/models/(?P<repo>[^/]+/[^/]+)/tree/(?P<revision>[^/]+)(?P<file>/.*)?"),
                ("info", r"/api/models/(?P<repo>[^/]+/[^/]+)(?:/revision/(?P<revision>.+))?"),
                ("lfs", r"/(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch"),
                ("resolve", r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)"),
            )
            for name, form in forms:
                if found := re.fullmatch(form, path):
                    return self.of_repository(name, found.groupdict(), body)
            return self.refuse(404, message="Not found")

        def create(self, wanted: dict) -> None:
            if self.user is None:
                return self.refuse(401, message="Invalid username or password.")
            name = f"{wanted.get('organization') or self.user}/{wanted['name']}"
            if name in hub.repositories:
                return self.answer(409, {"url": f"{hub.url}/{name}", "error": "You already created this model repo"})
            hub.repositories[name] = Repository(private=wanted.get("visibility") == "private")
            return self.answer(200, {"url": f"{hub.url}/{name}", "name": name, "id": name})

        def of_repository(self, name: str, parts: dict[str, str], body: bytes) -> None:
            repository = hub.repositories.get(parts["repo"])
            reading = name in ("resolve", "info", "tree")
            if repository is None or (repository.private and self.user is None):
                return self.refuse(404 if self.user else 401, "repository")
            if repository.gated and name == "resolve" and self.user is None:
                return self.refuse(401, "gated")
            if not reading and self.user is None:
                return self.refuse(401, message="Invalid username or password.")
            revision = parts.get("revision") or "main"
            if name == "branch":
                if revision in repository.branches:
                    return self.answer(409, {"error": "Reference already exists"})
                repository.branches[revision] = list(repository.branches["main"])
                return self.answer(201, {})
            files = repository.files(revision)
            if files is None:
                return self.refuse(404, "revision")
            return getattr(self, name)(parts, repository, files, revision, body)

        def preupload(self, parts, repository, files, revision, body) -> None:
            modes = []
            for file in json.loads(body)["files"]:
                by_lfs = hub.keeps_lfs and file["path"].endswith((".safetensors", ".png"))
                mode = {"path": file["path"], "uploadMode": "lfs" if by_lfs else "regular", "shouldIgnore": False}
                if (content := files.get(file["path"])) is not None:
                    blob = b"blob %d\0" % len(content) + content
                    mode["oid"] = hashlib.sha256(content).hexdigest() if by_lfs else hashlib.sha1(blob).hexdigest()
                modes.append(mode)
            self.answer(200, {"files": modes})

        def lfs(self, parts, repository, files, revision, body) -> None:
            objects = []
            for wanted in json.loads(body)["objects"]:
                upload = {"actions": {"upload": {"href": f"{hub.url}/lfs/{wanted['oid']}"}}}
                objects.append({**wanted, "authenticated": True, **({} if wanted["oid"] in hub.objects else upload)})
            self.answer(200, {"transfer": "basic", "objects": objects})

        def commit(self, parts, repository, files, revision, body) -> None:
            changed = dict(files)
            for line in body.splitlines():
                entry = json.loads(line)
                value = entry["value"]
                if entry["key"] == "file":
                    changed[value["path"]] = base64.b64decode(value["content"])
                elif entry["key"] == "lfsFile":
                    if value["oid"] not in hub.objects:
                        return self.refuse(400, message=f"LFS object {value['oid']} is missing")
                    changed[value["path"]] = hub.objects[value["oid"]]
                elif entry["key"] == "deletedFile":
                    changed.pop(value["path"], None)
            repository.branches[revision].append(changed)
            address = f"{hub.url}/{parts['repo']}/commit/{oid(changed)}"
            self.answer(200, {"success": True, "commitOid": oid(changed), "commitUrl": address, "hookOutput": ""})

        def info(self, parts, repository, files, revision, body) -> None:
            siblings = [{"rfilename": name} for name in sorted(files)]
            about = {"id": parts["repo"], "sha": oid(files), "siblings": siblings, "tags": []}
            self.answer(200, {**about, "private": repository.private, "gated": repository.gated, "downloads": 0})

        def tree(self, parts, repository, files, revision, body) -> None:
            self.answer(
                200,
                [
                    {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                    for name, content in sorted(files.items())
                ],
            )

        def resolve(self, parts, repository, files, revision, body) -> None:
            if parts["file"] not in files:
                return self.answer(
                    404, {"error": "Entry not found"}, **{"X-Error-Code": "EntryNotFound", "X-Repo-Commit": oid(files)}
                )
            content = files[parts["file"]]
            etag = f'"{hashlib.sha256(content).hexdigest()}"'
            self.answer(200, content, ETag=etag, **{"X-Repo-Commit": oid(files)})

    return Handler


@contextmanager
def loopback_hub() -> Iterator[LoopbackHub]:
    """A running server on a free port of this machine; its `url` is what `HF_ENDPOINT` has to say."""
    hub = LoopbackHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
