"""A staged folder goes to the Hub as one commit, or not at all."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, GitCommitInfo, HfApi
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils.sha import git_hash

from .faults import Say, check_repo_id, explained, patiently, printable
from .layout import CARD, FILES, MAX_BYTES, REQUIRED, WEIGHTS, format_bytes

MESSAGE = 'Publish a grown network with timm_devnet'
MAIN = 'main'
# Belongs to every repository: which files are kept outside git.
ATTRIBUTES = '.gitattributes'
# Open pull requests that are compared with what is to be pushed, newest first.
MOST_PROPOSALS = 20


@dataclass(frozen=True)
class Pushed:
    """Where a network is on the Hub."""

    url: str
    """Page to look at: of the repository, of its branch, or of the pull request."""
    commit: str
    repo_id: str


@dataclass(frozen=True)
class Plan:
    """What a push does to a repository; sizes of files are in bytes."""

    repo_id: str
    branch: str
    commits: Sequence[GitCommitInfo]
    """All commits of the branch, last one first; none if there is no repository or no branch."""
    root: str | None
    """First commit of the repository; None if there is no repository."""
    added: dict[str, int]
    replaced: dict[str, int]
    unchanged: dict[str, int]
    deleted: dict[str, int]

    @property
    def is_done(self) -> bool:
        """Whether the last commit already holds exactly these files."""
        return bool(self.commits) and not (self.added or self.replaced or self.deleted)

    @property
    def overwrites(self) -> bool:
        """Whether somebody has put something into the branch before."""
        return len(self.commits) > 1 or bool(self.replaced or self.unchanged or self.deleted)

    @property
    def place(self) -> str:
        return self.repo_id if self.branch == MAIN else f'{self.repo_id}, branch {printable(self.branch)}'

    def describe(self) -> list[str]:
        """Say line by line what happens to the repository and to each file."""
        if self.root is None:
            lines = [f'{self.repo_id}: a new repository']
        elif not self.commits:
            lines = [f'{self.place}: a new branch']
        else:
            lines = [f'{self.place}: {describe_commit(self.commits[0])}']
        kinds = {'new': self.added, 'replaced': self.replaced, 'unchanged': self.unchanged, 'deleted': self.deleted}
        for kind, files in kinds.items():
            lines += [f'  {kind:9} {printable(name)} ({format_bytes(size)})' for name, size in files.items()]
        return lines

    def check_replaces(self, replaces: str | None, create_pr: bool) -> None:
        """Refuse to overwrite what was not named, or what is not there as it was named.

        Raises:
            ValueError: Tells the last commit, and how to go on.
        """
        if not self.commits:
            if replaces is not None:
                raise ValueError(f'{self.place} does not exist, so nothing of it is replaced: leave out --replaces')
            return
        last = self.commits[0]
        if replaces is not None and not last.commit_id.startswith(replaces.lower()):
            raise ValueError(
                f'--replaces {replaces}: {self.place} has another last commit by now, {describe_commit(last)}; look '
                f'at it, and to replace it give --replaces {last.commit_id[:12]}'
            )
        if replaces is None and self.overwrites and not create_pr:
            raise ValueError(
                f'{self.place} holds something already, {describe_commit(last)}: to replace it, start again with '
                f'--replaces {last.commit_id[:12]}; to propose the change, with --create-pr'
            )


def push_folder(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    message: str | None = None,
    replaces: str | None = None,
    say: Say = print,
    token: str | None = None,
) -> Pushed:
    """Put a staged folder on the Hub, as one commit that makes a repository hold exactly its files.

    The commit is made upon the state that was looked at, or refused: of two pushes at once one wins. Broken off, it
    leaves the Hub as it was; started again, it sends only what has not arrived. Files that the folder does not have
    are deleted by the same commit, so that no old weights stay beside new ones.

    Args:
        folder: Made by `hub.staging`.
        repo_id: ORG/NAME; made if it does not exist.
        private: Make it visible to its owners only.
        revision: Branch, the main one by default; made if it does not exist.
        create_pr: Propose the commit as a pull request instead of making it.
        message: Title of the commit.
        replaces: The last commit of what is overwritten, at least 7 digits of it.
        say: Told what happens, line by line.
        token: Instead of that of huggingface_hub's login or environment.

    Raises:
        ValueError: The folder is not a staged one, the repository holds something that `replaces` does not name, or
            the Hub refuses or cannot be reached.
    """
    check_arguments(repo_id, revision, create_pr, replaces)
    additions = list_additions(Path(folder))
    api, branch = HfApi(token=token), revision or MAIN
    with explained(repo_id):
        plan = make_plan(api, additions, repo_id, branch, say)
        if plan.is_done:
            say(f'{plan.place} holds exactly these files already: {describe_commit(plan.commits[0])}')
            return Pushed(page(api, repo_id, branch), plan.commits[0].commit_id, repo_id)
        if create_pr and plan.root and (proposed := find_proposal(api, additions, repo_id, say)):
            return proposed
        check_plan(api, plan, private, replaces, create_pr, say)
        for line in plan.describe():
            say(line)
        if not plan.commits:
            make_place(api, plan, private, say)
            plan = make_plan(api, additions, repo_id, branch, say)
            plan.check_replaces(None, create_pr)  # somebody else may have made it meanwhile
        commit = patiently(
            lambda: api.create_commit(
                repo_id,
                [*additions, *(CommitOperationDelete(name, is_folder=False) for name in plan.deleted)],
                commit_message=message or MESSAGE,
                revision=branch,
                create_pr=create_pr,
                parent_commit=plan.commits[0].commit_id,
            ),
            say,
        )
    return Pushed(commit.pr_url or page(api, repo_id, branch), commit.oid, repo_id)


def plan_push(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    replaces: str | None = None,
    say: Say = print,
    token: str | None = None,
) -> Plan:
    """Tell what `push_folder` would do, file by file, and show the card; nothing on the Hub is changed.

    Args:
        folder: As for `push_folder`, and so are the others.

    Raises:
        ValueError: The folder is not a staged one, or the Hub cannot be looked at.
    """
    check_arguments(repo_id, revision, create_pr, replaces)
    additions = list_additions(Path(folder))
    api = HfApi(token=token)
    with explained(repo_id):
        plan = make_plan(api, additions, repo_id, revision or MAIN, say)
        for line in plan.describe():
            say(line)
        if (Path(folder) / CARD).exists():
            say(f'{CARD}:')
            for line in (Path(folder) / CARD).read_text(encoding='utf-8').splitlines():
                say(f'  {printable(line, 1000)}' if line else '')
        if plan.is_done:
            say('nothing to do: the repository holds exactly these files already')
        else:
            try:
                check_plan(api, plan, private, replaces, create_pr, say)
            except ValueError as error:
                say(f'this push would be refused: {error}')
    return plan


def check_arguments(repo_id: str, revision: str | None, create_pr: bool, replaces: str | None) -> None:
    """Refuse what no push can do.

    Raises:
        ValueError: Says what was given and what is allowed.
    """
    check_repo_id(repo_id)
    if revision is not None and re.fullmatch('[0-9a-f]{40}', revision):
        raise ValueError(f'--revision {revision} is a commit, which cannot be written to: give the name of a branch')
    if create_pr and revision not in (None, MAIN):
        raise ValueError(f'--create-pr proposes a change to {MAIN}: leave out --revision {printable(revision or "")}')
    if replaces is not None and not re.fullmatch('[0-9a-fA-F]{7,40}', replaces):
        raise ValueError(f'--replaces {printable(repr(replaces))} is no commit: give 7 to 40 of its hex digits')


def list_additions(folder: Path) -> list[CommitOperationAdd]:
    """List the files of a staged folder for a commit.

    Raises:
        ValueError: Something is missing, or does not belong there.
    """
    if not folder.is_dir():
        raise ValueError(f'{folder} is not a folder: give one that `stage` has made')
    names = sorted(path.name for path in folder.iterdir())
    if missing := [name for name in REQUIRED if name not in names]:
        raise ValueError(f'{folder} is not a staged folder: it has no {" and no ".join(missing)}')
    for name in names:
        path = folder / name
        if name not in FILES or path.is_symlink() or not path.is_file():
            raise ValueError(f'{path} does not belong in a staged folder: only files are published, {", ".join(FILES)}')
        if name != WEIGHTS and path.stat().st_size > MAX_BYTES:
            raise ValueError(f'{path} has over {format_bytes(MAX_BYTES)}, more than anyone would pull')
    return [CommitOperationAdd(name, folder / name) for name in names]


def make_plan(api: HfApi, additions: list[CommitOperationAdd], repo_id: str, branch: str, say: Say) -> Plan:
    """Look at a repository and compare it with what is to be there."""
    commits: list[GitCommitInfo] = []
    root = None
    try:
        commits = patiently(lambda: api.list_repo_commits(repo_id, revision=branch), say)
        root = commits[-1].commit_id
    except RevisionNotFoundError:
        root = patiently(lambda: api.list_repo_commits(repo_id), say)[-1].commit_id
    except RepositoryNotFoundError as error:
        if error.response.status_code != 404:  # 401 and 403: it may well exist
            raise
    there = list_files(api, repo_id, commits[0].commit_id) if commits else {}
    here = {addition.path_in_repo: addition for addition in additions}
    sizes = {name: addition.upload_info.size for name, addition in here.items()}
    same = {name for name in here if name in there and is_same(here[name], there[name])}
    return Plan(
        repo_id,
        branch,
        commits,
        root,
        added={name: size for name, size in sizes.items() if name not in there},
        replaced={name: size for name, size in sizes.items() if name in there and name not in same},
        unchanged={name: size for name, size in sizes.items() if name in same},
        deleted={name: file.size for name, file in there.items() if name not in here and name != ATTRIBUTES},
    )


def list_files(api: HfApi, repo_id: str, commit: str) -> dict[str, RepoFile]:
    """List all files of a commit."""
    tree = api.list_repo_tree(repo_id, recursive=True, revision=commit)
    return {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}


def is_same(addition: CommitOperationAdd, file: RepoFile) -> bool:
    """Tell whether a file is on the Hub as it is here; huggingface_hub keeps the checksum for its own use."""
    if file.size != addition.upload_info.size:
        return False
    if file.lfs is not None:
        return file.lfs.sha256 == addition.upload_info.sha256.hex()
    with addition.as_file() as content:
        return file.blob_id == git_hash(content.read())


def check_plan(api: HfApi, plan: Plan, private: bool, replaces: str | None, create_pr: bool, say: Say) -> None:
    """Refuse to overwrite what was not named, to show what shall be private, and to be held up by ignored names.

    Raises:
        ValueError: Says what to do.
    """
    plan.check_replaces(replaces, create_pr)
    if private and plan.root and not patiently(lambda: api.model_info(plan.repo_id), say).private:
        raise ValueError(f'--private: {plan.repo_id} exists and is public; change that in its settings, or rename')
    if '.gitignore' in plan.deleted:
        raise ValueError(
            f'{plan.place} has a .gitignore, by which the Hub may leave out files without a word: delete it there first'
        )


def make_place(api: HfApi, plan: Plan, private: bool, say: Say) -> None:
    """Make the repository and the branch where they do not exist.

    A branch begins at the first commit, which holds nothing of anyone's; so a push that was broken off after this
    finds it empty.
    """
    root = plan.root
    if root is None:
        # None leaves it to the organisation whether new repositories are private.
        patiently(lambda: api.create_repo(plan.repo_id, private=private or None, exist_ok=True), say)
        root = patiently(lambda: api.list_repo_commits(plan.repo_id), say)[-1].commit_id
    if plan.branch != MAIN:
        patiently(lambda: api.create_branch(plan.repo_id, branch=plan.branch, revision=root, exist_ok=True), say)


def find_proposal(api: HfApi, additions: list[CommitOperationAdd], repo_id: str, say: Say) -> Pushed | None:
    """Find an open pull request that proposes exactly these files: the answer to it may have been lost."""
    proposals = api.get_repo_discussions(repo_id, discussion_type='pull_request', discussion_status='open')
    for proposal in itertools.islice(proposals, MOST_PROPOSALS):
        plan = make_plan(api, additions, repo_id, f'refs/pr/{proposal.num}', say)
        if plan.is_done:
            say(f'pull request {proposal.num} of {repo_id} proposes exactly these files already')
            return Pushed(proposal.url, plan.commits[0].commit_id, repo_id)
    return None


def describe_commit(commit: GitCommitInfo) -> str:
    """Name a commit."""
    date = commit.created_at.strftime('%Y-%m-%d %H:%M')
    return f'commit {commit.commit_id[:12]} "{printable(commit.title, 80)}" of {date}'


def page(api: HfApi, repo_id: str, branch: str) -> str:
    """The address of a repository or branch, for people."""
    return f'{api.endpoint}/{repo_id}' if branch == MAIN else f'{api.endpoint}/{repo_id}/tree/{branch}'
