"""A Hub on this machine: enough of the Hub's HTTP interface for huggingface_hub 2 to create, push, commit and load.

It proves the client side only: that our code sends what it should, in one commit, and finds it again; and what a user
reads when the connection, the token or a permission fails. What the real Hub makes of it, it cannot prove.

    python loopback_hub.py [--token hf_fake] [--chunk_size BYTES]

prints its address and serves until its standard input ends. Clients need HF_ENDPOINT=address, HF_HUB_DISABLE_XET=1
and, to write or to see what is private, HF_TOKEN=hf_fake. Nothing is written to disk. The user is called `me`;
repositories of others cannot be written. For tests there are also

    POST /__fail  {"method", "path" (regular expression), "how" ("drop" or an HTTP status), "times"}: fail so often
    POST /__heal  no more failures
    GET  /__log   ["POST /api/repos/create", …], every request
    GET  /__repos {"models/me/x": {"private": false, "commits": [[sha, title, [path, …]], …]}, …}, of the main branch

A pull request is acknowledged and forgotten. Large files arrive by LFS; by Xet a client gets as far as the storage
server's address, which is this one's /cas and stores nothing.
"""

import argparse
import base64
import hashlib
import json
import re
import sys
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlparse

STORED_AS_LFS = (".safetensors", ".parquet", ".bin", ".png", ".wav", ".mp4")
WHOAMI = {"name": "me", "type": "user", "orgs": [], "auth": {"accessToken": {"role": "write", "displayName": "test"}}}


@dataclass
class Commit:
    sha: str
    title: str
    files: dict[str, tuple[bool, bytes]]  # path -> (stored as LFS, content)


@dataclass
class Repository:
    private: bool = False
    branches: dict[str, list[Commit]] = field(
        default_factory=lambda: {"main": [Commit("0" * 39 + "1", "initial commit", {})]}
    )

    def at(self, revision: str) -> Commit | None:
        if revision in self.branches:
            return self.branches[revision][-1]
        commits = (commit for branch in self.branches.values() for commit in branch)
        return next((commit for commit in commits if commit.sha == revision), None)


class Hub(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, token: str, chunk_size: int | None):
        super().__init__(("127.0.0.1", 0), Handler)
        self.token, self.chunk_size = token, chunk_size
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.repositories: dict[tuple[str, str], Repository] = {}  # ("models", "me/x") -> …
        self.blobs: dict[str, bytes] = {}  # SHA-256 -> content, of LFS
        self.parts: dict[str, dict[int, bytes]] = {}  # of uploads in several parts
        self.log: list[str] = []
        self.failures: list[dict] = []
        self.lock = threading.RLock()

    def failure(self, method: str, path: str) -> str | int | None:
        """How this request is to fail, None if it is not."""
        for failure in self.failures:
            if failure["times"] > 0 and failure["method"] == method and re.search(failure["path"], path):
                failure["times"] -= 1
                return failure["how"]
        return None


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # it holds the end of an answer back for 40 ms
    server: Hub

    def log_message(self, *arguments) -> None:
        pass

    def handle_request(self) -> None:
        url = urlparse(self.path)
        self.query, path = parse_qs(url.query), unquote(url.path)
        with self.server.lock:
            how = self.server.failure(self.command, path)
            if not path.startswith("/__") or path.startswith("/__lfs"):
                self.server.log.append(f"{self.command} {path}")
        if how == "drop":
            self.rfile.read(min(1000, int(self.headers.get("Content-Length") or 0)))  # in the middle of the body
            self.close_connection = True
            self.connection.shutdown(2)
            return None
        self.body = self.read_body()
        if how is not None:
            return self.refuse(int(how), "")
        given = self.headers.get("Authorization")
        self.trusted = given == f"Bearer {self.server.token}"
        if given is not None and not self.trusted and not path.startswith("/__"):
            return self.refuse(401, "", "Invalid credentials in Authorization header")
        for pattern, answer in ROUTES:
            found = re.fullmatch(pattern, path)
            if found:
                with self.server.lock:
                    return answer(self, *found.groups())
        return self.refuse(404, "RepoNotFound")

    do_GET = do_POST = do_PUT = do_HEAD = do_DELETE = handle_request

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while length := int(self.rfile.readline(), 16):
            body += self.rfile.read(length)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def reply(self, content, status: int = 200, type: str = "application/json", **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Type": type, "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status: int, code: str, message: str = "", **headers: str) -> None:
        headers |= {"X_Error_Code": code} if code else {}
        message = message or code or f"status {status}"
        self.reply({"error": message}, status, X_Error_Message=message, **headers)

    def find(self, kind: str, name: str, revision: str = "main") -> Commit | None:
        """The commit, or an answer that says why not; private repositories do not exist for strangers."""
        repository = self.server.repositories.get((kind, name))
        if repository is None or (repository.private and not self.trusted):
            return self.refuse(404 if self.trusted else 401, "RepoNotFound")
        commit = repository.at(revision)
        return commit or self.refuse(404, "RevisionNotFound")

    def may_write(self, name: str) -> bool:
        if not self.trusted:
            self.refuse(401, "", "Invalid username or password.")
        elif not name.startswith("me/"):
            self.refuse(403, "", f"You don't have the rights to write to {name}.")
        return self.trusted and name.startswith("me/")

    # For the tests

    def fail(self) -> None:
        self.server.failures.append({"times": 10**9} | json.loads(self.body))
        self.reply({})

    def heal(self) -> None:
        self.server.failures.clear()
        self.reply({})

    def show_log(self) -> None:
        self.reply(self.server.log)

    def show_repositories(self) -> None:
        self.reply(
            {
                f"{kind}/{name}": {
                    "private": repository.private,
                    "commits": [
                        [commit.sha, commit.title, sorted(commit.files)] for commit in repository.branches["main"]
                    ],
                }
                for (kind, name), repository in self.server.repositories.items()
            }
        )

    # The Hub's interface

    def whoami(self) -> None:
        self.reply(WHOAMI) if self.trusted else self.refuse(401, "", "Invalid username or password.")

    def create(self) -> None:
        asked = json.loads(self.body)
        kind, name = asked.get("type", "model") + "s", f"{asked.get('organization') or 'me'}/{asked['name']}"
        if not self.may_write(name):
            return
        known = (kind, name) in self.server.repositories
        private = asked.get("private") or asked.get("visibility") == "private"
        self.server.repositories.setdefault((kind, name), Repository(bool(private)))
        prefix = "" if kind == "models" else f"{kind}/"
        self.reply({"url": f"{self.server.address}/{prefix}{name}", "name": name, "id": name}, 409 if known else 200)

    def validate_yaml(self) -> None:
        self.reply({"errors": [], "warnings": []})

    def preupload(self, kind: str, name: str, revision: str) -> None:
        commit = self.may_write(name) and self.find(kind, name, revision)
        if commit:
            files = []
            for file in json.loads(self.body)["files"]:
                lfs = file["size"] > 10_000_000 or file["path"].endswith(STORED_AS_LFS)
                known = commit.files.get(file["path"])
                files.append({"path": file["path"], "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False})
                files[-1]["oid"] = identifier(*known) if known else None
            self.reply({"files": files})

    def lfs_batch(self, prefix: str | None, name: str) -> None:
        if not self.may_write(name):
            return
        objects = []
        for asked in json.loads(self.body)["objects"]:
            oid, size = asked["oid"], asked["size"]
            objects.append({"oid": oid, "size": size})
            if oid in self.server.blobs:
                continue  # known: nothing to upload
            upload = {"href": f"{self.server.address}/__lfs/{oid}"}
            if self.server.chunk_size and size > self.server.chunk_size:
                count = -(-size // self.server.chunk_size)
                parts = {str(part): f"{upload['href']}/{part}" for part in range(1, count + 1)}
                upload["header"] = {"chunk_size": str(self.server.chunk_size)} | parts
            objects[-1]["actions"] = {"upload": upload, "verify": {"href": f"{self.server.address}/__verify"}}
        transfer = "multipart" if any("header" in o.get("actions", {}).get("upload", {}) for o in objects) else "basic"
        self.reply({"transfer": transfer, "objects": objects}, type="application/vnd.git-lfs+json")

    def lfs_upload(self, oid: str, part: str | None) -> None:
        if part is not None:
            self.server.parts.setdefault(oid, {})[int(part)] = self.body
            return self.reply({}, ETag=f'"{part}"')
        if self.command == "POST":  # all parts have arrived
            parts = self.server.parts.pop(oid)
            self.body = b"".join(parts[int(number["partNumber"])] for number in json.loads(self.body)["parts"])
        if hashlib.sha256(self.body).hexdigest() != oid:
            return self.refuse(400, "", "The content is not what was announced.")
        self.server.blobs[oid] = self.body
        self.reply({})

    def lfs_verify(self) -> None:
        self.reply({})

    def commit(self, kind: str, name: str, revision: str) -> None:
        parent = self.may_write(name) and self.find(kind, name, revision)
        if not parent:
            return
        files, title = dict(parent.files), ""
        for line in self.body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            match entry["key"]:
                case "header":
                    title = value["summary"]
                case "file":
                    files[value["path"]] = (False, base64.b64decode(value["content"]))
                case "lfsFile":
                    files[value["path"]] = (True, self.server.blobs[value["oid"]])
                case "deletedFile":
                    files.pop(value["path"], None)
                case "deletedFolder":
                    files = {path: file for path, file in files.items() if not path.startswith(value["path"])}
        commits = self.server.repositories[kind, name].branches[revision]
        commit = Commit(hashlib.sha1(self.body + b"%d" % len(commits)).hexdigest(), title, files)
        url = f"{self.server.address}/{name}/commit/{commit.sha}"
        answer = {"success": True, "commitOid": commit.sha, "commitUrl": url, "hookOutput": ""}
        if "create_pr" in self.query:
            answer["pullRequestUrl"] = f"{self.server.address}/{name}/discussions/1"
        else:
            commits.append(commit)
        self.reply(answer)

    def create_branch(self, kind: str, name: str, branch: str) -> None:
        commit = self.may_write(name) and self.find(kind, name)
        if commit:
            branches = self.server.repositories[kind, name].branches
            known = branch in branches
            branches.setdefault(branch, [commit])
            self.reply({}, 409 if known else 200)

    def xet_token(self, kind: str, name: str, revision: str) -> None:
        if self.may_write(name):
            access = {"casUrl": f"{self.server.address}/cas", "accessToken": "xet", "exp": 2**32}
            headers = {"X_Xet_Cas_Url": access["casUrl"], "X_Xet_Access_Token": "xet"}
            self.reply(access, X_Xet_Token_Expiration=str(2**32), **headers)

    def info(self, kind: str, name: str, revision: str | None) -> None:
        commit = self.find(kind, name, revision or "main")
        if commit:
            dates = dict.fromkeys(("lastModified", "createdAt"), "2026-01-01T00:00:00.000Z")
            flags = {"private": self.server.repositories[kind, name].private, "gated": False, "disabled": False}
            siblings = [{"rfilename": path} for path in sorted(commit.files)]
            about = {"id": name, "_id": "1", "sha": commit.sha, "author": "me", "siblings": siblings}
            self.reply(about | dates | flags | {"tags": [], "downloads": 0, "likes": 0})

    def refs(self, kind: str, name: str) -> None:
        commit = self.find(kind, name)
        if commit:
            main = {"name": "main", "ref": "refs/heads/main", "targetCommit": commit.sha}
            self.reply({"branches": [main], "tags": [], "converts": []})

    def tree(self, kind: str, name: str, revision: str, folder: str | None) -> None:
        commit = self.find(kind, name, revision)
        if not commit:
            return
        prefix = f"{folder}/" if folder else ""
        recursive = self.query.get("recursive", [""])[0].lower() == "true"
        entries, folders = [], set()
        for path in sorted(commit.files):
            if path.startswith(prefix):
                *parents, _ = path.removeprefix(prefix).split("/")
                folders |= {prefix + "/".join(parents[:depth]) for depth in range(1, len(parents) + 1)}
                if recursive or not parents:
                    entries.append(describe(commit, path))
        entries += [
            {"type": "directory", "path": path, "size": 0, "oid": "0" * 40}
            for path in sorted(folders)
            if recursive or "/" not in path.removeprefix(prefix)
        ]
        self.reply(entries) if entries or not prefix else self.refuse(404, "EntryNotFound")

    def paths_info(self, kind: str, name: str, revision: str) -> None:
        commit = self.find(kind, name, revision)
        if commit:
            is_json = self.body.startswith(b"{")
            paths = json.loads(self.body)["paths"] if is_json else parse_qs(self.body.decode()).get("paths", [])
            self.reply([describe(commit, path) for path in paths if path in commit.files])

    def resolve(self, prefix: str | None, name: str, revision: str, path: str) -> None:
        commit = self.find("datasets" if prefix == "datasets/" else "models", name, revision)
        if not commit:
            return
        if path not in commit.files:
            return self.refuse(404, "EntryNotFound", X_Repo_Commit=commit.sha)
        lfs, content = commit.files[path]
        headers = {"ETag": f'"{identifier(lfs, content)}"', "X_Repo_Commit": commit.sha, "Accept_Ranges": "bytes"}
        if lfs:
            headers |= {"X_Linked_Etag": headers["ETag"], "X_Linked_Size": str(len(content))}
        status = 200
        asked = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if asked:
            status, start, end = 206, int(asked[1]), min(int(asked[2] or len(content) - 1), len(content) - 1)
            headers["Content_Range"] = f"bytes {start}-{end}/{len(content)}"
            content = content[start : end + 1]
        self.reply(content, status, "application/octet-stream", **headers)


def identifier(lfs: bool, content: bytes) -> str:
    """The SHA-256 of LFS, or git's SHA-1 of a blob."""
    if lfs:
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def describe(commit: Commit, path: str) -> dict:
    lfs, content = commit.files[path]
    entry = {"type": "file", "path": path, "size": len(content), "oid": identifier(False, content)}
    if lfs:
        entry["lfs"] = {"oid": identifier(True, content), "size": len(content), "pointerSize": 130}
    return entry


REPOSITORY = r"/api/(models|datasets|spaces)/([^/]+/[^/]+)"
ROUTES = [
    (r"/__fail", Handler.fail),
    (r"/__heal", Handler.heal),
    (r"/__log", Handler.show_log),
    (r"/__repos", Handler.show_repositories),
    (r"/__verify", Handler.lfs_verify),
    (r"/__lfs/([0-9a-f]{64})(?:/(\d+))?", Handler.lfs_upload),
    (r"/api/whoami-v2", Handler.whoami),
    (r"/api/repos/create", Handler.create),
    (r"/api/validate-yaml", Handler.validate_yaml),
    (REPOSITORY + r"/preupload/([^/]+)", Handler.preupload),
    (REPOSITORY + r"/commit/([^/]+)", Handler.commit),
    (REPOSITORY + r"(?:/revision/([^/]+))?", Handler.info),
    (REPOSITORY + r"/refs", Handler.refs),
    (REPOSITORY + r"/branch/([^/]+)", Handler.create_branch),
    (REPOSITORY + r"/xet-write-token/([^/]+)", Handler.xet_token),
    (REPOSITORY + r"/tree/([^/]+)(?:/(.+))?", Handler.tree),
    (REPOSITORY + r"/paths-info/([^/]+)", Handler.paths_info),
    (r"/(datasets/|spaces/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch", Handler.lfs_batch),
    (r"/(datasets/|spaces/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", Handler.resolve),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--token", default="hf_fake", help="the one that may write")
    parser.add_argument("--chunk_size", type=int, help="larger files are uploaded in parts of so many bytes")
    arguments = parser.parse_args()
    hub = Hub(arguments.token, arguments.chunk_size)
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    print(hub.address, flush=True)
    sys.stdin.read()  # ends with the process that started it


if __name__ == "__main__":
    main()
