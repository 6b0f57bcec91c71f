"""A stand-in for the Hugging Face Hub on 127.0.0.1: model repositories, what goes wrong with them, and a record."""

import hashlib
import json
import re
import sys
from dataclasses import dataclass, field
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from huggingface_hub import close_session, constants

LARGE = ("*.safetensors", "*.bin")  # stored apart from git: known by their sha256, served from another host


def point_client_at(hub: "Hub", monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process's Hub client ask the stand-in, as HF_ENDPOINT does when a process starts."""
    template = hub.address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", hub.address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    close_session()  # one made before would keep to the proxy there was


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    headers: dict[str, str]


@dataclass(frozen=True)
class File:
    content: bytes
    large: bool

    @property
    def blob_id(self) -> str:
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    def listed(self, name: str) -> dict:
        entry = {"rfilename": name, "size": len(self.content), "blobId": self.blob_id}
        lfs = {"sha256": self.sha256, "size": len(self.content), "pointerSize": 134}
        return entry | {"lfs": lfs} if self.large else entry


@dataclass
class Hub:
    """Serve repositories until closed; `damaged`, `gated`, `portal` and `cut_off` make things go wrong."""

    revisions: dict[tuple[str, str], str] = field(default_factory=dict)  # of a repository: branch or commit -> commit
    commits: dict[str, dict[str, File]] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    damaged: set[str] = field(default_factory=set)  # names of files that are served with a byte changed
    gated: set[str] = field(default_factory=set)  # repositories whose files are refused
    portal: bool = False  # a network's login page answers in place of the Hub
    cuts: dict[str, int] = field(default_factory=dict)  # file -> bytes after which the connection breaks, for good

    def __enter__(self) -> "Hub":
        self.server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.port = self.server.server_address[1]
        self.address = f"http://127.0.0.1:{self.port}"
        self.thread = Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02})
        self.thread.start()
        return self

    def __exit__(self, *exception) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()
        assert not self.server.mistakes, self.server.mistakes  # or a refusal could be the stand-in's own fault

    def push(self, repo: str, folder: Path, revision: str = "main") -> str:
        """Let a branch of a repository hold what a folder holds, and return the commit."""
        paths = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
        files = {
            name: File(path.read_bytes(), any(fnmatch(name, like) for like in LARGE)) for name, path in paths.items()
        }
        commit = hashlib.sha1(repr([(name, file.blob_id) for name, file in files.items()]).encode()).hexdigest()
        self.commits[commit] = files
        self.revisions[repo, revision] = self.revisions[repo, commit] = commit
        return commit

    def requests_for(self, end: str) -> list[Request]:
        return [request for request in self.requests if request.path.endswith(end)]


def _card(files: dict[str, File]) -> dict:
    """What the Hub reads from the front matter of a README.md."""
    readme = files["README.md"].content.decode() if "README.md" in files else ""
    front = re.match(r"---\n(.*?)\n---", readme, re.DOTALL)
    card = yaml.safe_load(front[1]) if front else {}
    return {"tags": [f"license:{card['license']}"] if "license" in card else [], "cardData": card or None}


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, *args):
        self.mistakes: list[BaseException] = []
        super().__init__(*args)

    def handle_error(self, request, client_address) -> None:
        if not isinstance(error := sys.exc_info()[1], ConnectionError):  # a client may hang up
            self.mistakes.append(error)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_GET(self):
        path = urlsplit(self.path).path
        self.hub.requests.append(Request(self.command, unquote(path), dict(self.headers.items())))
        place, *parts = words = path.strip("/").split("/")
        if self.hub.portal:
            self._answer(200, b"<html>Log in to this network</html>", {"Content-Type": "text/html"})
        elif place == "api":
            repo, _, revision = "/".join(parts[1:]).partition("/revision/")
            self._info(repo, unquote(revision) or "main")
        elif place == "stored":
            self._send(*self._find(lambda name, file: file.sha256 == parts[0]))
        else:
            end = words.index("resolve")  # of a repository's name, which may be of one word
            self._resolve("/".join(words[:end]), unquote(words[end + 1]), unquote("/".join(words[end + 2 :])))

    do_HEAD = do_GET  # _answer leaves the body out

    def _info(self, repo: str, revision: str) -> None:
        if commit := self._commit(repo, revision):
            files = self.hub.commits[commit]
            content = {"id": repo, "sha": commit, "gated": repo in self.hub.gated and "auto", **_card(files)}
            content["siblings"] = [file.listed(name) for name, file in files.items()]
            self._answer(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _resolve(self, repo: str, revision: str, name: str) -> None:
        """Serve a small file; send the client on to another host for a large one, as the Hub does."""
        if repo in self.hub.gated:
            return self._refuse(401, "GatedRepo", f"Access to model {repo} is restricted.")
        if not (commit := self._commit(repo, revision)):
            return None
        if not (file := self.hub.commits[commit].get(name)):
            return self._refuse(404, "EntryNotFound", "Entry not found")
        headers = {"X-Repo-Commit": commit, "ETag": f'"{file.blob_id}"'}
        if not file.large:
            return self._send(name, file, headers)
        headers |= {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(len(file.content))}
        headers |= {"Location": f"http://localhost:{self.hub.port}/stored/{file.sha256}"}
        return self._answer(302, b"", headers)

    def _commit(self, repo: str, revision: str) -> str | None:
        """Return the commit, or answer as the Hub does where there is none."""
        if commit := self.hub.revisions.get((repo, revision)):
            return commit
        if any(known == repo for known, _ in self.hub.revisions):
            return self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return self._refuse(401, "RepoNotFound", "Invalid username or password.")  # whether private or not there

    def _find(self, wanted) -> tuple[str, File]:
        return next(item for files in self.hub.commits.values() for item in files.items() if wanted(*item))

    def _send(self, name: str, file: File, headers: dict[str, str] | None = None) -> None:
        content, headers, start = file.content, headers or {}, 0
        if name in self.hub.damaged:
            content = content[:-1] + bytes([content[-1] ^ 1])
        if asked := self.headers.get("Range"):
            start = int(asked.removeprefix("bytes=").split("-")[0])
            headers = headers | {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
        end = self.hub.cuts.get(name, len(content))
        if name in self.hub.cuts and start >= end:
            return self._answer(503, b"")
        return self._answer(206 if asked else 200, content[start:], headers, end - start)

    def _refuse(self, status: int, code: str, message: str) -> None:
        self._answer(status, message.encode(), {"X-Error-Code": code, "X-Error-Message": message})

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None, cut: int | None = None) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:cut])
            self.close_connection = cut is not None and cut < len(body)

    def log_message(self, *args) -> None:
        """Keep quiet: what was asked is in `hub.requests`."""
