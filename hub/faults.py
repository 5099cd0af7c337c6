"""What goes wrong between here and the Hub, each said in one line that tells what to do."""

from __future__ import annotations

import contextlib
import errno
import re
import time
import unicodedata
from collections.abc import Callable, Iterator
from typing import TypeVar

import httpx2
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import parse_ratelimit_headers, validate_repo_id

Say = Callable[[str], None]
Result = TypeVar('Result')

LOG_IN = 'log in with `hf auth login`, or set HF_TOKEN'
# The Hub counts requests in windows of five minutes: whoever is asked to wait much longer had better know.
LONGEST_WAIT_S = 900
MOST_WAITS = 5


def printable(text: str, length: int = 200) -> str:
    """Make a text of someone else's safe to print: one line, bounded, without what a terminal would obey.

    Example:
        >>> printable('wa\\x1b[31m512' + chr(10) + 'ok')
        'wa[31m512 ok'
    """
    words = ' '.join(text[: 10 * length].split())
    # Cc: controls, escape among them; Cf: marks that turn the direction of writing; Cs: halves of characters.
    clean = ''.join(letter for letter in words if unicodedata.category(letter) not in ('Cc', 'Cf', 'Cs', 'Co', 'Cn'))
    return clean if len(clean) <= length else f'{clean[: length - 3]}...'


def check_repo_id(repo_id: str) -> None:
    """Refuse what is no name of a repository.

    Raises:
        ValueError: It is not ORG/NAME.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError:
        is_named = False
    else:
        is_named = repo_id.count('/') == 1
    if not is_named:
        raise ValueError(
            f'{printable(repr(repo_id))} is no repository: give ORG/NAME, each of letters, digits, ".", "_" and "-"'
        )


@contextlib.contextmanager
def explained(repo_id: str) -> Iterator[None]:
    """Turn whatever huggingface_hub raises within into a `ValueError` of one line, which never holds a token.

    Args:
        repo_id: The repository spoken of, or the organisation.

    Raises:
        ValueError: Says what happened and what to do.
    """
    try:
        yield
    except (httpx2.LocalProtocolError, UnicodeEncodeError):
        # These are about a header that cannot be sent, and quote it.
        raise ValueError(f'the token holds letters that no token has: {LOG_IN}') from None
    except (RuntimeError, LocalEntryNotFoundError) as error:
        # "Error while uploading ..." and "Cannot find the requested files ...": the cause is what tells something.
        if isinstance(error.__cause__, (HfHubHTTPError, httpx2.HTTPError, OSError)):
            raise ValueError(explain(error.__cause__, repo_id)) from error
        if isinstance(error, RuntimeError):
            raise
        raise ValueError(explain(error, repo_id)) from error
    except (HfHubHTTPError, httpx2.HTTPError, OSError) as error:
        raise ValueError(explain(error, repo_id)) from error


def explain(error: BaseException, repo_id: str) -> str:
    """Say in one line what an error means for a repository."""
    if isinstance(error, HfHubHTTPError):
        return explain_refusal(error, repo_id)
    if isinstance(error, OfflineModeIsEnabled):
        return f'{repo_id} cannot be reached: HF_HUB_OFFLINE is set; unset it'
    if isinstance(error, LocalTokenNotFoundError):
        return f'there is no token: {LOG_IN}'
    if isinstance(error, httpx2.HTTPError):
        what = printable(str(error)) or type(error).__name__
        return f'the connection to the Hub broke ({what}): start again, what has arrived is not sent again'
    assert isinstance(error, OSError)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f'no space is left on the disk{place(error)}: make room, or choose another folder'
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return f'nothing can be written{place(error)}: choose another folder, by HF_HUB_CACHE for the cache'
    return printable(str(error), 400)


def place(error: OSError) -> str:
    return f' at {error.filename}' if error.filename else ''


def explain_refusal(error: HfHubHTTPError, repo_id: str) -> str:
    """Say in one line what the Hub's refusal means for a repository."""
    status = error.response.status_code
    message = printable(error.server_message or '')
    reason = f' ("{message}")' if message else ''
    if isinstance(error, GatedRepoError):
        return f'{repo_id} is given out on request only: ask for it on its page on the Hub, and {LOG_IN}'
    if isinstance(error, RepositoryNotFoundError):
        return f'there is no repository {repo_id}, or it is private and you may not see it: check the name, or {LOG_IN}'
    if isinstance(error, RevisionNotFoundError):
        return f'{repo_id} has no such revision{reason}: give a branch, tag or commit of it'
    if status == 401:
        return f'the Hub does not know who you are{reason}: {LOG_IN}'
    if status == 403:
        return f'you may not do this with {repo_id}{reason}: {LOG_IN}, with a token that may write there'
    if status == 404:
        return f'the Hub does not have what was asked of {repo_id}{reason}'
    if status in (409, 412):
        return (
            f'somebody else has written to {repo_id} meanwhile{reason}: nothing was changed; look at what is there '
            'now, and start again'
        )
    if status == 429:
        return f'the Hub asks to wait {asked_wait_s(error)} s before more is asked{reason}: start again after that'
    if status >= 500:
        return (
            f'the Hub has trouble of its own ({status}){reason}: start again later; what has arrived is not sent '
            'again, and a commit that did happen is recognised'
        )
    return f'the Hub refuses this for {repo_id} ({status}){reason}'


def asked_wait_s(error: HfHubHTTPError) -> int:
    """Tell how many seconds the Hub asks to wait: by its own headers, else by Retry-After, else a minute."""
    limit = parse_ratelimit_headers(error.response.headers)
    if limit is not None and limit.remaining == 0:
        return limit.reset_in_seconds
    told = error.response.headers.get('Retry-After', '')
    return int(told) if re.fullmatch(r'[0-9]{1,9}', told) else 60


def patiently(ask: Callable[[], Result], say: Say) -> Result:
    """Ask the Hub, and where it says that it was asked too often, wait as long as it says and ask again.

    huggingface_hub does so itself for uploads and downloads, but neither for commits nor for what it asks before.
    """
    for _ in range(MOST_WAITS):
        try:
            return ask()
        except HfHubHTTPError as error:
            if error.response.status_code != 429 or asked_wait_s(error) > LONGEST_WAIT_S:
                raise
            wait_s = asked_wait_s(error) + 1  # it tells whole seconds
            say(f'the Hub asks to wait: going on in {wait_s} s')
            time.sleep(wait_s)
    return ask()
