"""From the Hub into its cache, looked at before it is fetched and checked after; and from there into a folder."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

import httpx2
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HfHubHTTPError, RevisionResolutionError
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.hf_api import RepoSibling

from training.files import made_whole, refuse_taken

from .faults import Say, check_repo_id, explained, patiently, printable
from .layout import FILES, MAX_BYTES, REQUIRED, WEIGHTS, format_bytes

MAX_WEIGHTS_BYTES = 20_000_000_000
CHUNK_BYTES = 1 << 20


def download(
    repo_id: str,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    max_bytes: int = MAX_WEIGHTS_BYTES,
    say: Say = print,
    token: str | None = None,
) -> Path:
    """Fetch a published network into huggingface_hub's cache, or find it there if the Hub cannot be reached.

    Only the files of a staged folder are fetched, never a pickle, and only after their sizes were looked at; each is
    compared with the checksum that the Hub states. If the connection breaks, huggingface_hub goes on where it broke
    off; if the process is killed, the next one fetches again what was under way, but no file that had arrived whole.

    Args:
        repo_id: ORG/NAME.
        revision: Branch, tag or commit; the main branch by default.
        cache_dir: Instead of huggingface_hub's own.
        max_bytes: Largest file of weights that is fetched.
        say: Told what there is to wait for.
        token: Instead of that of huggingface_hub's login or environment.

    Returns:
        Path: Folder of the snapshot, whose files are links into the cache.

    Raises:
        ValueError: The repository holds no network that can be published from here, or something else than it says;
            the Hub refuses, or cannot be reached and the cache holds no such snapshot; the cache cannot be written.
    """
    check_repo_id(repo_id)
    cache = Path(constants.HF_HUB_CACHE if cache_dir is None else cache_dir).expanduser()
    api = HfApi(token=token)
    with explained(repo_id):
        if constants.is_offline_mode():
            return find_cached(repo_id, revision, cache, 'HF_HUB_OFFLINE is set', 'unset it', say)
        try:
            # The cache learns what the revision is now; all that follows is about this one commit.
            pinned = patiently(lambda: api.resolve_revision(repo_id, revision=revision, cache_dir=cache), say)
            info = patiently(lambda: api.model_info(repo_id, revision=pinned.resolved, files_metadata=True), say)
        except (httpx2.TransportError, RevisionResolutionError, HfHubHTTPError) as error:
            if isinstance(error, HfHubHTTPError) and error.response.status_code < 500:
                raise  # it was reached
            reason = f'the Hub cannot be reached ({printable(str(error.__cause__ or error))})'
            return find_cached(repo_id, revision, cache, reason, 'see to the connection', say)
        files = choose_files(repo_id, info.siblings or [], max_bytes)
        check_room(repo_id, files.values(), cache)
        folder = Path(api.snapshot_download(repo_id, revision=pinned, allow_patterns=list(files), cache_dir=cache))
        for name, file in files.items():
            check_file(repo_id, folder / name, file.lfs.sha256 if file.lfs else str(file.blob_id))
    return folder


def find_cached(repo_id: str, revision: str | None, cache: Path, reason: str, advice: str, say: Say) -> Path:
    """Find a snapshot in the cache.

    Raises:
        ValueError: Tells what is missing, and why the Hub was not asked for it.
    """
    what = f'{repo_id}, revision {printable(revision)}' if revision else repo_id
    try:
        folder = HfApi().snapshot_download(
            repo_id, revision=revision, allow_patterns=list(FILES), cache_dir=cache, local_files_only=True
        )
    except FileNotFoundError as error:  # huggingface_hub's own is one of these
        missing = re.search(r'file\(s\) are missing \((.*?)\)', str(error))
        lacks = f'lacks {printable(missing[1])} of it' if missing else 'does not have it'
        raise ValueError(f'{what}: {reason}, and the cache at {cache} {lacks}: {advice}, and pull once') from error
    if missing_files := [name for name in REQUIRED if not Path(folder, name).exists()]:
        raise ValueError(f'{what}: {reason}, and the cache at {cache} lacks {", ".join(missing_files)} of it: {advice}')
    for path in Path(folder).iterdir():
        # Each is a link to a file that is named after its checksum, except where there are no links.
        if path.name in FILES and path.is_symlink():
            check_file(repo_id, path, os.path.basename(os.readlink(path)))
    say(f'{what}: {reason}; taken from the cache')
    return Path(folder)


def choose_files(repo_id: str, files: Iterable[RepoSibling], max_bytes: int) -> dict[str, RepoSibling]:
    """Choose what to fetch, by name and size.

    Raises:
        ValueError: A file's name is made to leave the folder, a file is too large, or what makes a network is missing.
    """
    listed = {file.rfilename: file for file in files}
    for name in listed:
        if is_trick(name):
            raise ValueError(f'{repo_id} has a file with a name that leads elsewhere, {printable(repr(name))}: refused')
    if missing := [name for name in REQUIRED if name not in listed]:
        pickles = [name for name in listed if name.endswith(('.bin', '.pt', '.pth', '.pkl', '.ckpt', '.tar'))]
        remark = f'; {printable(pickles[0])} may run code when it is opened, and is not fetched' if pickles else ''
        raise ValueError(
            f'{repo_id} is no network of timm with safetensors: it has no {" and no ".join(missing)}{remark}'
        )
    chosen = {name: listed[name] for name in FILES if name in listed}
    for name, file in chosen.items():
        limit = max_bytes if name == WEIGHTS else MAX_BYTES
        if file.size is None or not 0 <= file.size <= limit:
            size = 'an unknown size' if file.size is None else format_bytes(file.size)
            advice = '; allow more by max_bytes' if name == WEIGHTS else ''
            raise ValueError(f'{name} of {repo_id} has {size}, and {format_bytes(limit)} are allowed{advice}')
    return chosen


def is_trick(name: str) -> bool:
    """Tell whether a file's name could leave its folder, on any system, or is not printable."""
    parts = name.split('/')
    return (
        any(part in ('', '.', '..') for part in parts)
        or '\\' in name
        or re.match('[A-Za-z]:', name) is not None
        or not name.isprintable()
    )


def check_room(repo_id: str, files: Iterable[RepoSibling], cache: Path) -> None:
    """Refuse to begin what the disk cannot hold.

    Raises:
        ValueError: Tells how much is missing.
    """
    blobs = cache / repo_folder_name(repo_id=repo_id, repo_type='model') / 'blobs'
    wanted = sum(
        file.size or 0 for file in files if not (blobs / (file.lfs.sha256 if file.lfs else str(file.blob_id))).exists()
    )
    disk = next(path for path in (cache, *cache.absolute().parents) if path.exists())
    free = shutil.disk_usage(disk).free
    if wanted > free:
        raise ValueError(
            f'{repo_id} needs {format_bytes(wanted)}, and the disk of {cache} has {format_bytes(free)} left: make '
            'room, or choose another folder for the cache'
        )


def check_file(repo_id: str, path: Path, checksum: str) -> None:
    """Compare a file in the cache with what the Hub says of it, which huggingface_hub does for its size only.

    Args:
        repo_id: Told in errors.
        path: The file in the snapshot, or the link that it is.
        checksum: SHA-256 of a large file, or what git calls a small one: SHA-1 with its size.

    Raises:
        ValueError: The file is another one; it is then removed from the cache.
    """
    repo = path.parents[2].resolve()
    target = path.resolve()
    # huggingface_hub may keep one copy for several repositories in blobs/ of the cache.
    if not (target.is_relative_to(repo) or target.is_relative_to(repo.parent / 'blobs')):
        raise ValueError(f'{path} leads out of the cache, to {target}: remove {repo}, and pull again')
    digest = hash_file(target, in_git=len(checksum) == 40)
    if digest != checksum:
        blob = path.parent / os.readlink(path) if path.is_symlink() else path
        for entry in {path, blob, target}:
            entry.unlink(missing_ok=True)
        raise ValueError(
            f'{path.name} of {repo_id} is not what the Hub says it is: its checksum is {digest}, not {checksum}. It '
            'was removed from the cache; pull again'
        )


def hash_file(path: Path, in_git: bool) -> str:
    """Compute a file's SHA-256 or, for one that is in git, what git calls it; a piece at a time."""
    digest = hashlib.sha1(b'blob %d\0' % path.stat().st_size) if in_git else hashlib.sha256()
    with open(path, 'rb') as file:
        while piece := file.read(CHUNK_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def copy_to(snapshot: str | Path, local_dir: str | Path) -> Path:
    """Copy a snapshot out of the cache, as plain files; the folder appears when it is whole.

    Args:
        snapshot: Made by `download`.
        local_dir: Folder to make; it may exist if it is empty.

    Raises:
        ValueError: The folder is not empty, is a file, or cannot be written.
    """
    folder = Path(local_dir)
    refuse_taken(folder)
    with explained(str(local_dir)), made_whole(folder) as place:
        for name in FILES:
            if (Path(snapshot) / name).exists():
                shutil.copyfile(Path(snapshot) / name, place / name)
    return folder
