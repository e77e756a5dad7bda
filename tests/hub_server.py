"""A server on loopback that speaks the Hugging Face Hub's protocol, as far as this package's weights need it.

Covered, for huggingface_hub's and timm's own clients: tokens and organizations, making a repository, checking a
card's YAML, preupload (which files have changed, which go to LFS), LFS batch, upload and verification in one part,
commits that are made whole or not at all, resolving a file at a branch or commit with the Hub's headers, LFS content
redirected to another host ("localhost") that takes no token, ranges of it, and information on a repository.

Not covered: Xet, over which the Hub itself stores large files if hf_xet is installed (clients need
HF_HUB_DISABLE_XET=1); uploads in several parts; pull requests, deletion, copies, other branches than main; private and
gated repositories; rate limits; TLS; what else the Hub checks in a card than that it begins with YAML. Its answers are
written after what the clients ask and accept, and have not been compared with those of huggingface.co.
"""

import base64
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from huggingface_hub import constants

Files = dict[str, bytes]


@dataclass
class Fault:
    """What goes wrong with requests whose method and path match a regular expression.

    Attributes:
        request: As in "PUT /lfs/.*"; the whole of it has to match.
        status: Answered in place of everything else.
        cut: So many bytes of the request's body are read, or of the content sent, before the connection is closed.
        flip: The last byte that is sent is another.
        times: How often it happens; then it is over.
    """

    request: str
    status: int | None = None
    cut: int | None = None
    flip: bool = False
    times: int = 1000


class HubServer(ThreadingHTTPServer):
    """The Hub, in memory.

    Attributes:
        writers: Tokens, and the organizations that they may write to.
        commits: The files of every commit of a repository, the newest last.
        requests: What was asked of what is covered, as "METHOD /path", in order. (Clients ask for more on their own
            account, and do without it.)
        faults: Of which the first that matches a request happens.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.endpoint = f"http://127.0.0.1:{self.server_port}"
        self.content_host = f"http://localhost:{self.server_port}"
        self.writers = {"hf_writer": {"adderzoo"}, "hf_reader": set()}
        self.commits: dict[str, list[Files]] = {}
        self.objects: dict[str, bytes] = {}  # of LFS, by SHA-256
        self.requests: list[str] = []
        self.faults: list[Fault] = []

    def fault(self, request: str) -> Fault:
        """The fault that happens to a request; one without consequences if there is none."""
        for fault in self.faults:
            if fault.times and re.fullmatch(fault.request, request):
                fault.times -= 1
                return fault
        return Fault(request)

    def files(self, repo: str, revision: str = "main") -> Files | None:
        """Those of a repository; None if there is no such revision."""
        commits = self.commits[repo]
        if revision == "main":
            return commits[-1] if commits else {}
        return next((files for n, files in enumerate(commits) if commit_id(repo, n) == revision), None)

    def commit(self, repo: str, changed: Files) -> str:
        """Add a commit; its id."""
        commits = self.commits.setdefault(repo, [])
        commits.append({**(commits[-1] if commits else {}), **changed})
        self.objects |= {hashlib.sha256(data).hexdigest(): data for path, data in changed.items() if is_lfs(path)}
        return commit_id(repo, len(commits) - 1)


@contextmanager
def run_hub() -> Iterator[HubServer]:
    """A Hub that answers as long as the context lasts."""
    with HubServer() as server:
        thread = Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def use_hub(server: HubServer, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make huggingface_hub in this process talk to a server: a cache of its own, no token, retries without pauses."""
    template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache / "no_token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)


def environment(server: HubServer, cache: Path, **more: str) -> dict[str, str]:
    """The same for another process."""
    variables = {"HF_ENDPOINT": server.endpoint, "HF_HOME": str(cache.parent), "HF_HUB_CACHE": str(cache)}
    return {**os.environ, **variables, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0", **more}


def is_lfs(path: str) -> bool:
    """As a new repository's .gitattributes says it of what is needed here."""
    return path.endswith((".safetensors", ".bin", ".pth", ".pt"))


def object_id(path: str, data: bytes) -> str:
    """The id by which clients know content: SHA-256 in LFS, git's own SHA-1 else."""
    if is_lfs(path):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def commit_id(repo: str, n: int) -> str:
    return hashlib.sha1(f"{repo} {n}".encode()).hexdigest()


class _Refused(Exception):  # noqa: N818 - an answer
    """An answer that is no success."""

    def __init__(self, status: int, message: str, code: str = "") -> None:
        self.status, self.message, self.code = status, message, code


class _Handler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""

    def _handle(self) -> None:
        self.path = unquote(urlsplit(self.path).path)
        request = f"{self.command} {self.path}"
        answer = self._find_answer()
        if answer:
            self.server.requests.append(request)
        self.fault = self.server.fault(request)
        # A client that has been cut off, or has gone, gets no answer.
        with suppress(ConnectionError):
            try:
                self.body = self._read_body()
                if self.fault.status is not None:
                    raise _Refused(self.fault.status, HTTPStatus(self.fault.status).phrase)
                if answer is None:
                    raise _Refused(501, f"{request} is not covered")
                answer()
            except _Refused as refused:
                headers = {"X-Error-Message": refused.message} | (
                    {"X-Error-Code": refused.code} if refused.code else {}
                )
                self._answer({"error": refused.message}, refused.status, headers)

    do_HEAD = do_GET = do_POST = do_PUT = _handle  # noqa: N815 - names of http.server

    def _read_body(self) -> bytes:
        cut = self.fault.cut if self.command == "PUT" else None
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
                if cut is not None and len(body) >= cut:
                    self._hang_up()
            self.rfile.readline()
            return body
        length = int(self.headers.get("Content-Length", 0))
        if cut is not None:
            self.rfile.read(min(cut, length))
            self._hang_up()
        return self.rfile.read(length)

    def _hang_up(self) -> None:
        self.close_connection = True
        raise ConnectionAbortedError

    def _find_answer(self) -> Callable[[], None] | None:
        repo = r"(?P<repo>[^/]+/[^/]+)"
        for method, pattern, answer in (
            ("POST", "/api/repos/create", self._create_repo),
            ("POST", "/api/validate-yaml", self._validate_yaml),
            ("POST", f"/api/models/{repo}/preupload/main", self._preupload),
            ("POST", f"/{repo}.git/info/lfs/objects/batch", self._lfs_batch),
            ("PUT", "/lfs/(?P<oid>[0-9a-f]{64})", self._lfs_upload),
            ("POST", "/lfs/(?P<oid>[0-9a-f]{64})/verify", self._lfs_verify),
            ("POST", f"/api/models/{repo}/commit/main", self._commit),
            ("GET", f"/api/models/{repo}(/revision/main)?", self._repo_info),
            ("GET HEAD", f"/{repo}/resolve/(?P<revision>[^/]+)/(?P<file>.+)", self._resolve),
            ("GET", "/content/(?P<oid>[0-9a-f]{64})", self._content),
        ):
            found = re.fullmatch(pattern, self.path)
            if found and self.command in method.split():
                return partial(answer, **found.groupdict())
        return None

    # ------------------------------------------------------------------------------------------------------ answering

    def _answer(self, value: Any = None, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for key, text in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(key, text)
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.fault.flip:
            data = data[:-1] + bytes([data[-1] ^ 1])
        if self.fault.cut is not None and self.command == "GET":
            self.wfile.write(data[: self.fault.cut])
            self._hang_up()
        self.wfile.write(data)

    def _organizations(self) -> set[str]:
        """Those that the token of this request may write to."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in self.server.writers:
            message = "Invalid credentials in Authorization header" if token else "Invalid username or password."
            raise _Refused(401, message)
        return self.server.writers[token]

    def _check_may_write(self, organization: str) -> None:
        if organization not in self._organizations():
            raise _Refused(403, f'You don\'t have the rights to write under the namespace "{organization}"')

    def _check_exists(self, repo: str) -> None:
        if repo not in self.server.commits:
            # The Hub does not tell strangers what there is.
            status = 404 if "Authorization" in self.headers else 401
            raise _Refused(status, "Repository not found", "RepoNotFound")

    # ----------------------------------------------------------------------------------------------------- publishing

    def _create_repo(self) -> None:
        wanted = json.loads(self.body)
        self._check_may_write(wanted["organization"])
        repo = f"{wanted['organization']}/{wanted['name']}"
        url = {"url": f"{self.server.endpoint}/{repo}"}
        if repo in self.server.commits:
            return self._answer(url, 409)
        self.server.commits[repo] = []
        self._answer(url)

    def _validate_yaml(self) -> None:
        card = re.match(r"---\n(.*?\n)---\n", json.loads(self.body)["content"], re.DOTALL)
        try:
            meta = yaml.safe_load(card[1]) if card else None
        except yaml.YAMLError as error:
            return self._answer({"errors": [{"message": str(error)}]}, 400)
        self._answer({"errors": [], "warnings": [] if meta else [{"message": "empty or missing yaml metadata"}]})

    def _preupload(self, repo: str) -> None:
        self._check_may_write(repo.partition("/")[0])
        self._check_exists(repo)
        there = self.server.files(repo) or {}
        answers = []
        for file in json.loads(self.body)["files"]:
            path = file["path"]
            oid = object_id(path, there[path]) if path in there else None
            mode = "lfs" if is_lfs(path) else "regular"
            answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self._answer({"files": answers})

    def _lfs_batch(self, repo: str) -> None:
        self._check_may_write(repo.partition("/")[0])
        self._check_exists(repo)
        answers = []
        for wanted in json.loads(self.body)["objects"]:
            url = f"{self.server.content_host}/lfs/{wanted['oid']}"
            verify = {"href": f"{self.server.endpoint}/lfs/{wanted['oid']}/verify"}
            missing = wanted["oid"] not in self.server.objects
            answers.append(wanted | ({"actions": {"upload": {"href": url}, "verify": verify}} if missing else {}))
        self._answer({"transfer": "basic", "objects": answers})

    def _lfs_upload(self, oid: str) -> None:
        self._check_no_token()
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise _Refused(400, "the content is not that of its SHA-256")
        self.server.objects[oid] = self.body
        self._answer()

    def _lfs_verify(self, oid: str) -> None:
        self._organizations()
        said = json.loads(self.body)
        if said["oid"] != oid or len(self.server.objects.get(oid, b"")) != said["size"]:
            raise _Refused(404, "no such object of this size")
        self._answer()

    def _commit(self, repo: str) -> None:
        self._check_may_write(repo.partition("/")[0])
        self._check_exists(repo)
        header, *operations = map(json.loads, self.body.splitlines())
        if header["key"] != "header" or not header["value"]["summary"]:
            raise _Refused(400, "a commit needs a message")
        files: Files = {}
        for operation in operations:
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"], validate=True)
            elif operation["key"] == "lfsFile" and value["oid"] in self.server.objects:
                files[value["path"]] = self.server.objects[value["oid"]]
            else:
                raise _Refused(400, f"{operation['key']} of {value['path']} cannot be done")
        made = self.server.commit(repo, files)
        self._answer({"success": True, "commitOid": made, "commitUrl": f"{self.server.endpoint}/{repo}/commit/{made}"})

    # -------------------------------------------------------------------------------------------------------- loading

    def _repo_info(self, repo: str) -> None:
        self._check_exists(repo)
        files = self.server.files(repo) or {}
        sha = commit_id(repo, len(self.server.commits[repo]) - 1)
        self._answer({"id": repo, "sha": sha, "siblings": [{"rfilename": path} for path in files]})

    def _resolve(self, repo: str, revision: str, file: str) -> None:
        self._check_exists(repo)
        files = self.server.files(repo, revision)
        if files is None:
            raise _Refused(404, "Invalid rev id", "RevisionNotFound")
        if file not in files:
            raise _Refused(404, "Entry not found", "EntryNotFound")
        data, oid = files[file], object_id(file, files[file])
        commit = commit_id(repo, len(self.server.commits[repo]) - 1) if revision == "main" else revision
        headers = {"X-Repo-Commit": commit, "ETag": f'"{oid}"'}
        if not is_lfs(file):
            return self._answer(data, headers=headers)
        linked = {"X-Linked-Etag": f'"{oid}"', "X-Linked-Size": str(len(data))}
        place = {"Location": f"{self.server.content_host}/content/{oid}"}
        self._answer(b"", 302, {**headers, **linked, **place})

    def _content(self, oid: str) -> None:
        self._check_no_token()
        data = self.server.objects[oid]
        if wanted := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            first = int(wanted[1])
            place = {"Content-Range": f"bytes {first}-{len(data) - 1}/{len(data)}"}
            return self._answer(data[first:], 206, place)
        self._answer(data)

    def _check_no_token(self) -> None:
        if "Authorization" in self.headers:
            raise _Refused(400, "only one authentication method is allowed")  # as signed URLs of a storage say
