"""A stand-in for the Hugging Face Hub on this machine: `python -m tests.hub_server --port 8765`.

It answers what the installed huggingface_hub asks to create, write, list and read model repositories, with what the
Hub itself does besides: accounts, atomic commits upon a stated parent, branches and pull requests, large files behind
addresses of another host. Everything is kept in memory. Tests make it fail where they choose, and read its log.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import dataclasses
import functools
import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlencode, urlsplit

from huggingface_hub import ModelCard

# Bytes that are read or sent at once; small ones where something is to go wrong in the middle.
CHUNK, FAULTY_CHUNK = 1 << 20, 1 << 14
# What a new repository consists of: on the Hub this file is longer.
ATTRIBUTES = {'.gitattributes': b'*.safetensors filter=lfs diff=lfs merge=lfs -text\n'}
TOKEN = 'hf_thisTokenMayWriteAndMustNeverBeSeen'


@dataclass(frozen=True)
class Account:
    """Whom a token belongs to."""

    name: str
    namespaces: tuple[str, ...]
    can_write: bool = True


@dataclass(frozen=True)
class Commit:
    """A state of all files of a repository."""

    oid: str
    parent: str | None
    title: str
    date: str
    files: dict[str, bytes]


@dataclass
class Repo:
    """A model repository."""

    name: str
    is_private: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    """Names of branches, and refs/pr/N, and the last commit of each."""

    def find(self, revision: str) -> Commit:
        oid = self.refs.get(revision, revision)
        if oid not in self.commits:
            raise Refusal(404, 'RevisionNotFound', f'Invalid rev id: {revision}')
        return self.commits[oid]

    def history(self, revision: str) -> Iterator[Commit]:
        """All commits of a revision, last one first."""
        oid: str | None = self.find(revision).oid
        while oid is not None:
            yield self.commits[oid]
            oid = self.commits[oid].parent

    def add(self, ref: str, parent: Commit | None, title: str, files: dict[str, bytes]) -> Commit:
        date = datetime.now(timezone.utc).strftime('%Y-%m-%dT%H:%M:%S.%fZ')
        oid = hashlib.sha1(f'{self.name} {len(self.commits)} {date} {title}'.encode()).hexdigest()
        self.commits[oid] = Commit(oid, parent.oid if parent else None, title, date, files)
        self.refs[ref] = oid
        return self.commits[oid]


@dataclass
class Fault:
    """What shall go wrong with requests, and how often."""

    method: str
    path: str
    """Regular expression, found anywhere in a path."""
    times: int
    skip: int = 0
    """How many of these requests go well before."""
    status: int | None = None
    message: str = 'as the test wishes'
    headers: dict[str, str] = field(default_factory=dict)
    cut_upload: int | None = None
    """Hang up after having read so many bytes of what is sent."""
    cut_download: int | None = None
    """Hang up after having sent so many bytes of the file."""
    delay_s: float = 0.0
    """Wait so long before each piece of what is read or sent."""
    is_lost: bool = False
    """Do what is asked, and hang up instead of answering."""
    barrier: threading.Barrier | None = None
    """Go on when as many of these requests have come as it wants."""
    is_corrupt: bool = False
    """Send the file with one bit changed."""


@dataclass
class Entry:
    """A request in the log."""

    method: str
    path: str
    span: str | None
    """The header Range."""
    received: int = 0
    """Bytes of the request's body."""
    sent: int = 0
    """Bytes of the answer's body."""
    status: int | None = None


class Refusal(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, code: str | None, message: str, headers: dict[str, str] | None = None):
        super().__init__(message)
        self.status, self.message = status, message
        self.headers = {**({'X-Error-Code': code} if code else {}), 'X-Error-Message': message, **(headers or {})}


class HangUp(Exception):
    """The connection is closed in the middle."""


def git_oid(content: bytes) -> str:
    """What git calls this content."""
    return hashlib.sha1(b'blob %d\0' % len(content) + content).hexdigest()


def listed_oid(path: str, content: bytes) -> str:
    """What git calls what is in git: for a large file that is a note of where it is."""
    if not is_large(path, content):
        return git_oid(content)
    note = f'version https://git-lfs.github.com/spec/v1\noid sha256:{sha256(content)}\nsize {len(content)}\n'
    return git_oid(note.encode())


@functools.lru_cache(maxsize=64)
def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def is_large(path: str, content: bytes) -> bool:
    """Tell whether the Hub keeps a file outside git: by its name, if it is no text, or if it is long."""
    return path.endswith('.safetensors') or len(content) > 10_000_000 or not is_text(content[:512])


def is_text(sample: bytes) -> bool:
    try:
        sample.decode()
    except UnicodeDecodeError as error:
        return error.start > len(sample) - 4  # a character that the end of the sample cuts
    return b'\0' not in sample


def rate_limited(seconds: int) -> dict[str, str]:
    """The headers with which the Hub says that a client has asked too often."""
    return {'RateLimit': f'"api";r=0;t={seconds}', 'RateLimit-Policy': '"fixed window";"api";q=500;w=300'}


class HubServer:
    """The stand-in: state, faults and log. A context manager, inside of which it answers from a thread."""

    def __init__(self, port: int = 0) -> None:
        self.accounts = {
            TOKEN: Account('me', ('me', 'team')),
            'hf_thisTokenMayOnlyRead': Account('me', ('me', 'team'), can_write=False),
        }
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.log: list[Entry] = []
        self.leaks: list[str] = []
        """Requests that told a token where none belongs."""
        self.page_size = 1000
        self.tell: Callable[[Entry], object] = lambda entry: None
        """Told of every request when it is over."""
        self.lock = threading.RLock()
        self.server = ThreadingHTTPServer(('127.0.0.1', port), type('Answers', (Handler,), {'hub': self}))
        self.server.daemon_threads = True
        self.url = f'http://127.0.0.1:{self.server.server_address[1]}'
        # Where large files are, which must never see a token: another host to a client, if not to the machine.
        self.storage_url = self.url.replace('127.0.0.1', 'localhost')

    def __enter__(self) -> HubServer:
        threading.Thread(target=self.server.serve_forever, kwargs={'poll_interval': 0.01}, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def create(self, name: str, is_private: bool = False) -> Repo:
        """Make a repository as the Hub does."""
        repo = self.repos[name] = Repo(name, is_private)
        repo.add('main', None, 'initial commit', dict(ATTRIBUTES))
        return repo

    def commit(self, name: str, files: dict[str, bytes], title: str = 'by hand', ref: str = 'main') -> Commit:
        """Put files into a repository past all rules, as tests need them; it is made if there is none."""
        repo = self.repos.get(name) or self.create(name)
        parent = repo.find(ref)
        return repo.add(ref, parent, title, {**parent.files, **files})

    def fail(self, method: str, path: str, times: int = 1, **fault: Any) -> None:
        """Let the next requests fail; see `Fault`."""
        self.faults.append(Fault(method, path, times, **fault))

    def find_fault(self, method: str, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and fault.method == method and re.search(fault.path, path):
                    if fault.skip > 0:
                        fault.skip -= 1
                        return None
                    fault.times -= 1
                    return fault
        return None

    def requests(self, method: str, path: str) -> list[Entry]:
        """Find requests in the log, by a regular expression for the path."""
        return [entry for entry in list(self.log) if entry.method == method and re.search(path, entry.path)]


class Handler(BaseHTTPRequestHandler):
    """One connection. Routes are its methods with a `route`."""

    hub: HubServer
    protocol_version = 'HTTP/1.1'
    disable_nagle_algorithm = True  # or each answer waits 0.04 s for its second packet

    def log_message(self, *args: object) -> None:
        """Keep the terminal clean: there is the log."""

    def answer(self) -> None:
        parts = urlsplit(self.path)
        self.query = parse_qs(parts.query)
        path = unquote(parts.path)
        self.entry = Entry(self.command, path, self.headers.get('Range'))
        self.hub.log.append(self.entry)
        self.fault = self.hub.find_fault(self.command, path) or Fault(self.command, '', 0)
        self.note_leaks(path)
        try:
            self.body = self.read_body()
            if self.fault.barrier:
                self.fault.barrier.wait(timeout=60)
            if self.fault.status:
                raise Refusal(self.fault.status, None, self.fault.message, self.fault.headers)
            self.dispatch(path)
        except Refusal as refusal:
            self.reply({'error': refusal.message}, refusal.status, refusal.headers)
        except (HangUp, ConnectionError):
            self.close_connection = True
        finally:
            self.hub.tell(self.entry)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer

    @property
    def chunk(self) -> int:
        return FAULTY_CHUNK if self.fault.path else CHUNK

    def note_leaks(self, path: str) -> None:
        if any(token in unquote(self.path) for token in self.hub.accounts):
            self.hub.leaks.append(f'{self.command} {path}: a token in the address')
        if path.startswith(('/objects/', '/storage/')) and 'Authorization' in self.headers:
            self.hub.leaks.append(f'{self.command} {path}: a token told to the storage')

    def dispatch(self, path: str) -> None:
        for method, pattern, function in ROUTES:
            if method == self.command and (match := re.fullmatch(pattern, path)):
                return function(self, *match.groups())
        raise Refusal(404, None, f'no such route: {self.command} {path}')

    def read_body(self) -> bytes:
        pieces, self.digest = [], hashlib.sha256()
        for piece in self.body_pieces():
            time.sleep(self.fault.delay_s)
            pieces.append(piece)
            self.digest.update(piece)  # while the client sends more
            self.entry.received += len(piece)
            if self.fault.cut_upload is not None and self.entry.received >= self.fault.cut_upload:
                raise HangUp
        return b''.join(pieces)

    def body_pieces(self) -> Iterator[bytes]:
        if 'chunked' in self.headers.get('Transfer-Encoding', ''):
            while length := int(self.rfile.readline(), 16):
                yield self.rfile.read(length)
                self.rfile.readline()
            self.rfile.readline()
            return
        left = int(self.headers.get('Content-Length', 0))
        while left:
            piece = self.rfile.read1(min(left, self.chunk))
            if not piece:
                raise HangUp  # by the client
            left -= len(piece)
            yield piece

    def reply(self, body: Any = None, status: int = 200, headers: dict[str, str] | None = None) -> None:
        """Answer with JSON."""
        if self.fault.is_lost:
            raise HangUp
        content = b'' if body is None else json.dumps(body).encode()
        self.start(status, {'Content-Type': 'application/json', **(headers or {}), 'Content-Length': len(content)})
        if self.command != 'HEAD':
            self.wfile.write(content)

    def start(self, status: int, headers: dict[str, Any]) -> None:
        self.entry.status = status
        self.send_response(status)
        for name, text in headers.items():
            self.send_header(name, str(text))
        self.end_headers()

    def send_file(self, content: bytes, headers: dict[str, Any]) -> None:
        """Answer with a file, or with the range of it that is asked for."""
        if self.fault.is_corrupt:
            content = content[:-1] + bytes([content[-1] ^ 1])
        status, first = 200, 0
        if match := re.fullmatch(r'bytes=(\d+)-', self.entry.span or ''):
            status, first = 206, int(match[1])
            headers = {**headers, 'Content-Range': f'bytes {first}-{len(content) - 1}/{len(content)}'}
        content = content[first:]
        self.start(status, {**headers, 'Accept-Ranges': 'bytes', 'Content-Length': len(content)})
        if self.command == 'HEAD':
            return
        for index in range(0, len(content), self.chunk):
            time.sleep(self.fault.delay_s)
            piece = content[index : index + self.chunk]
            if self.fault.cut_download is not None:
                piece = piece[: self.fault.cut_download - self.entry.sent]
            self.wfile.write(piece)
            self.entry.sent += len(piece)
            if self.fault.cut_download is not None and self.entry.sent >= self.fault.cut_download:
                raise HangUp

    @property
    def json(self) -> dict[str, Any]:
        return json.loads(self.body or b'{}')

    @property
    def account(self) -> Account | None:
        scheme, _, token = self.headers.get('Authorization', '').partition(' ')
        if not token:
            return None
        if scheme != 'Bearer' or token not in self.hub.accounts:
            raise Refusal(401, None, 'Invalid credentials in Authorization header')
        return self.hub.accounts[token]

    def find_repo(self, name: str) -> Repo:
        """Find a repository that may be read."""
        account, repo = self.account, self.hub.repos.get(name)
        if repo is None or (repo.is_private and not (account and name.split('/')[0] in account.namespaces)):
            raise Refusal(404 if account else 401, 'RepoNotFound', 'Repository not found')
        return repo

    def check_may_write(self, namespace: str) -> None:
        if self.account is None:
            raise Refusal(401, None, 'Invalid username or password.')
        if not self.account.can_write or namespace not in self.account.namespaces:
            raise Refusal(403, None, f"You don't have the rights to write under the namespace {namespace!r}")

    def whoami(self) -> None:
        if self.account is None:
            raise Refusal(401, None, 'Invalid username or password.')
        self.reply({'type': 'user', 'name': self.account.name, 'orgs': [{'name': 'team'}]})

    def validate_yaml(self) -> None:
        try:
            data = ModelCard(self.json['content']).data.to_dict()
        except Exception as error:  # whatever a card makes huggingface_hub say
            self.reply({'errors': [{'message': str(error)}], 'warnings': []}, 400)
            return
        self.reply({'errors': [], 'warnings': [] if data else [{'message': 'empty or missing yaml metadata'}]})

    def create_repo(self) -> None:
        request = self.json
        namespace = request.get('organization') or (self.account.name if self.account else '')
        self.check_may_write(namespace)
        name = f'{namespace}/{request["name"]}'
        with self.hub.lock:
            if name in self.hub.repos:
                raise Refusal(409, None, 'You already created this model repo')
            self.hub.create(name, request.get('visibility') == 'private')
        self.reply({'url': f'{self.hub.url}/{name}', 'id': name, 'name': name})

    def create_branch(self, name: str, branch: str) -> None:
        repo = self.find_repo(name)
        self.check_may_write(name.split('/')[0])
        with self.hub.lock:
            if branch in repo.refs:
                raise Refusal(409, None, 'Reference already exists')
            repo.refs[branch] = repo.find(self.json.get('startingPoint', 'main')).oid
        self.reply({})

    def negotiate_objects(self, name: str) -> None:
        """Tell where large files are to be sent, unless they are here."""
        self.find_repo(name)
        objects = []
        for wanted in self.json['objects']:
            upload = {'href': f'{self.hub.storage_url}/objects/{wanted["oid"]}', 'header': {}}
            verify = {'href': f'{self.hub.url}/verify', 'header': {}}
            has_it = wanted['oid'] in self.hub.objects
            objects.append({**wanted, **({} if has_it else {'actions': {'upload': upload, 'verify': verify}})})
        self.reply({'transfer': 'basic', 'objects': objects})

    def receive_object(self, oid: str) -> None:
        if self.digest.hexdigest() != oid:
            raise Refusal(400, None, 'The sha256 of what was sent is another one')
        self.hub.objects[oid] = self.body
        self.reply()

    def verify_object(self) -> None:
        if len(self.hub.objects.get(self.json['oid'], b'')) != self.json['size']:
            raise Refusal(404, None, 'Not received')
        self.reply({})

    def prepare_commit(self, name: str, revision: str) -> None:
        """Tell how each file is to be sent, and what is there under its name."""
        commit = self.find_repo(name).find(revision)
        files = []
        for file in self.json['files']:
            path, sample = file['path'], base64.b64decode(file['sample'])
            large = is_large(path, sample) or file['size'] > 10_000_000
            old = commit.files.get(path)
            oid = None if old is None else sha256(old) if large else git_oid(old)
            mode = 'lfs' if large else 'regular'
            files.append({'path': path, 'uploadMode': mode, 'shouldIgnore': False, 'oid': oid})
        self.reply({'files': files, 'commitOid': commit.oid})

    def receive_commit(self, name: str, revision: str) -> None:
        """Make one commit, or none."""
        repo = self.find_repo(name)
        is_proposal = 'create_pr' in self.query
        if not is_proposal:
            self.check_may_write(name.split('/')[0])
        header, *operations = (json.loads(line) for line in self.body.splitlines())
        with self.hub.lock:
            if revision not in repo.refs:
                raise Refusal(404, 'RevisionNotFound', f'Invalid rev id: {revision}')
            parent, wanted = repo.find(revision), header['value'].get('parentCommit')
            if is_proposal and wanted:
                parent = repo.find(wanted)
            elif wanted not in (None, parent.oid):
                raise Refusal(412, None, 'A commit has happened since. Please refresh and try again.')
            files = dict(parent.files)
            for operation in operations:
                self.apply(operation['key'], operation['value'], files)
            number = 1 + sum(ref.startswith('refs/pr/') for ref in repo.refs)
            ref = f'refs/pr/{number}' if is_proposal else revision
            commit = repo.add(ref, parent, header['value']['summary'], files)
        reply = {'success': True, 'commitOid': commit.oid, 'commitUrl': f'{self.hub.url}/{name}/commit/{commit.oid}'}
        url = {'pullRequestUrl': f'{self.hub.url}/{name}/discussions/{number}'} if is_proposal else {}
        self.reply({**reply, **url})

    def apply(self, key: str, value: dict[str, Any], files: dict[str, bytes]) -> None:
        """Apply one operation of a commit."""
        if key == 'file':
            files[value['path']] = base64.b64decode(value['content'])
        elif key == 'lfsFile':
            if value['oid'] not in self.hub.objects:
                raise Refusal(400, None, f'No object {value["oid"]} was sent')
            files[value['path']] = self.hub.objects[value['oid']]
        elif key == 'deletedFile':
            if files.pop(value['path'], None) is None:
                raise Refusal(404, 'EntryNotFound', "A file with this name doesn't exist")
        else:
            raise Refusal(400, None, f'unknown operation {key}')

    def list_repos(self) -> None:
        """List the repositories of an account, newest first and a page at a time."""
        author, tags = self.query.get('author', [''])[0], self.query.get('filter', [])
        found = []
        for repo in sorted(self.hub.repos.values(), key=lambda repo: repo.find('main').date, reverse=True):
            is_visible = not repo.is_private or (self.account and repo.name.split('/')[0] in self.account.namespaces)
            if is_visible and repo.name.startswith(f'{author}/') and {*tags} <= {*card_tags(repo.find('main'))}:
                found.append(describe(repo, repo.find('main'), with_sizes=False))
        first = int(self.query.get('offset', ['0'])[0])
        last = first + min(self.hub.page_size, int(self.query.get('limit', ['1000'])[0]))
        query = {**self.query, 'offset': [str(last)]}
        link = {'Link': f'<{self.hub.url}/api/models?{urlencode(query, doseq=True)}>; rel="next"'}
        self.reply(found[first:last], headers=link if last < len(found) else {})

    def tell_repo(self, name: str, revision: str | None = None) -> None:
        repo = self.find_repo(name)
        self.reply(describe(repo, repo.find(revision or 'main'), with_sizes='blobs' in self.query))

    def list_tree(self, name: str, revision: str) -> None:
        commit = self.find_repo(name).find(revision)
        if self.query.get('recursive', [''])[0].lower() != 'true':
            raise Refusal(400, None, 'the stand-in lists all files at once only')
        entries = []
        for path, content in commit.files.items():
            size = len(content)
            lfs = {'oid': sha256(content), 'size': size, 'pointerSize': 134}
            entry = {'type': 'file', 'path': path, 'size': size, 'oid': listed_oid(path, content)}
            entries.append({**entry, **({'lfs': lfs} if is_large(path, content) else {})})
        self.reply(entries)

    def list_commits(self, name: str, revision: str) -> None:
        commits = self.find_repo(name).history(revision)
        self.reply(
            [
                {'id': commit.oid, 'title': commit.title, 'message': '', 'authors': [], 'date': commit.date}
                for commit in commits
            ]
        )

    def list_proposals(self, name: str) -> None:
        repo = self.find_repo(name)
        author = {'name': 'me', 'type': 'user'}
        shared = {'author': author, 'status': 'open', 'isPullRequest': True, 'repo': {'name': name, 'type': 'model'}}
        proposals = [
            {'num': int(ref.split('/')[-1]), 'title': repo.find(ref).title, 'createdAt': repo.find(ref).date, **shared}
            for ref in repo.refs
            if ref.startswith('refs/pr/')
        ]
        self.reply({'count': len(proposals), 'start': 0, 'discussions': proposals[::-1]})

    def resolve(self, name: str, revision: str, path: str) -> None:
        """Send a file, or for a large one the address where it is."""
        commit = self.find_repo(name).find(revision)
        headers = {'X-Repo-Commit': commit.oid}
        if path not in commit.files:
            raise Refusal(404, 'EntryNotFound', 'Entry not found', headers)
        content = commit.files[path]
        if not is_large(path, content):
            self.send_file(content, {**headers, 'ETag': f'"{git_oid(content)}"'})
            return
        oid = sha256(content)
        self.hub.objects[oid] = content
        linked = {'X-Linked-ETag': f'"{oid}"', 'X-Linked-Size': str(len(content))}
        self.reply(None, 302, {**headers, **linked, 'Location': f'{self.hub.storage_url}/storage/{oid}'})

    def send_object(self, oid: str) -> None:
        self.send_file(self.hub.objects[oid], {'ETag': f'"{oid}"'})


def describe(repo: Repo, commit: Commit, with_sizes: bool) -> dict[str, Any]:
    """What the Hub tells of a repository."""
    siblings: list[dict[str, Any]] = []
    for path, content in commit.files.items():
        lfs = {'size': len(content), 'sha256': sha256(content), 'pointerSize': 134}
        sizes = {
            'size': len(content),
            'blobId': listed_oid(path, content),
            **({'lfs': lfs} if is_large(path, content) else {}),
        }
        siblings.append({'rfilename': path, **(sizes if with_sizes else {})})
    return {
        'id': repo.name,
        'author': repo.name.split('/')[0],
        'sha': commit.oid,
        'private': repo.is_private,
        'lastModified': commit.date,
        'tags': card_tags(commit),
        'siblings': siblings,
    }


def card_tags(commit: Commit) -> list[str]:
    """The tags of a model card; none if it cannot be read."""
    try:
        return list(ModelCard(commit.files['README.md'].decode()).data.get('tags') or [])
    except Exception:  # no card, or whatever a card makes huggingface_hub say
        return []


NAME = '([^/]+/[^/]+)'
ROUTES: list[tuple[str, str, Callable[..., None]]] = [
    ('GET', '/api/whoami-v2', Handler.whoami),
    ('POST', '/api/validate-yaml', Handler.validate_yaml),
    ('POST', '/api/repos/create', Handler.create_repo),
    ('POST', f'/api/models/{NAME}/branch/(.+)', Handler.create_branch),
    ('POST', f'/{NAME}.git/info/lfs/objects/batch', Handler.negotiate_objects),
    ('PUT', '/objects/([0-9a-f]{64})', Handler.receive_object),
    ('POST', '/verify', Handler.verify_object),
    ('POST', f'/api/models/{NAME}/preupload/(.+)', Handler.prepare_commit),
    ('POST', f'/api/models/{NAME}/commit/(.+)', Handler.receive_commit),
    ('GET', '/api/models', Handler.list_repos),
    ('GET', f'/api/models/{NAME}', Handler.tell_repo),
    ('GET', f'/api/models/{NAME}/revision/(.+)', Handler.tell_repo),
    # A revision has slashes only in refs/pr/N.
    ('GET', f'/api/models/{NAME}/tree/(refs/pr/[0-9]+|[^/]+)', Handler.list_tree),
    ('GET', f'/api/models/{NAME}/commits/(.+)', Handler.list_commits),
    ('GET', f'/api/models/{NAME}/discussions', Handler.list_proposals),
    *(
        (method, f'/{NAME}/resolve/(refs/pr/[0-9]+|[^/]+)/(.+)', function)
        for method, function in (('HEAD', Handler.resolve), ('GET', Handler.resolve))
    ),
    ('GET', '/storage/([0-9a-f]{64})', Handler.send_object),
]


def environment(url: str, home: str) -> dict[str, str]:
    """What makes huggingface_hub in a new process talk to the stand-in and to nothing else."""
    return {
        'HF_ENDPOINT': url,
        'HF_HOME': home,
        'HF_HUB_CACHE': f'{home}/hub',
        'HF_TOKEN': TOKEN,
        'HF_HUB_DISABLE_XET': '1',  # the stand-in has no store of chunks
        'HF_HUB_DISABLE_TELEMETRY': '1',
        'HF_HUB_OFFLINE': '0',
    }


def main() -> None:
    """Serve until interrupted; print how to talk to it, and every request."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--port', type=int, default=8765, help='0: any free one')
    parser.add_argument('--home', default='/tmp/hub-home', help="huggingface_hub's folder in the lines to copy")
    arguments = parser.parse_args()
    with HubServer(arguments.port) as hub:
        for name, text in environment(hub.url, arguments.home).items():
            print(f'export {name}={text}', flush=True)
        hub.tell = lambda entry: print(json.dumps(dataclasses.asdict(entry)), flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()
        print(f'{len(hub.log)} requests, {len(hub.leaks)} of them told a token where none belongs')


if __name__ == '__main__':
    main()
