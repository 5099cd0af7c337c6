"""JSON that a stranger wrote: read within bounds of size, depth and number, and only where it has one meaning."""

from __future__ import annotations

import json
import re
from itertools import accumulate
from typing import Any, NoReturn

__all__ = ['MAX_BYTES', 'MAX_DEPTH', 'escaped', 'parse', 'shown']

MAX_BYTES = 5_000_000  # config.json of 20,000 classes has two million; parsed, it takes up to thirty times as much
MAX_DEPTH = 16  # config.json has four
_MAX_DIGITS = 40  # of a number, as it is written
_MAX_INTEGER = 2**63
_STRING = re.compile(rb'"[^"]*"?')
_NO_BRACKETS = bytes(set(range(256)) - set(b'[]{}'))
_STEPS = {**dict.fromkeys(b'[{', 1), **dict.fromkeys(b']}', -1)}
_PAIR = re.compile(rb'\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}')
_SURROGATE = re.compile(rb'\\u[dD][89a-fA-F]')


def parse(content: bytes, name: str) -> Any:
    """Parse JSON.

    Refused, besides what is no JSON: a key twice in one object, of which programs read one or the other; NaN and
    infinity, which JSON does not have; and half characters, which cannot be printed.

    Args:
        content: What is to be parsed.
        name: What it is, for the errors.

    Returns:
        Plain data.

    Raises:
        ValueError: It is too long, too deep, no JSON, or can be read in two ways.

    Example:
        >>> parse(b'{"growth": "wa2048"}', 'config.json')
        {'growth': 'wa2048'}
    """
    if len(content) > MAX_BYTES:
        raise ValueError(f'{name} is at most {MAX_BYTES:,} bytes long; found {len(content):,}')
    # Backslashes stand only inside strings, so without escapes every string ends at the next quotation mark.
    unescaped = content.replace(b'\\\\', b'').replace(b'\\"', b'')
    brackets = _STRING.sub(b'', unescaped).translate(None, _NO_BRACKETS)
    if max(accumulate(map(_STEPS.__getitem__, brackets)), default=0) > MAX_DEPTH:
        raise ValueError(f'{name} is nested at most {MAX_DEPTH} deep; found more')
    if _SURROGATE.search(_PAIR.sub(b'', unescaped)):
        raise ValueError(f'{name} has half a character (a lone surrogate) in a string')
    try:
        return json.loads(
            content.decode('utf-8'),
            object_pairs_hook=_refuse_duplicates,
            parse_int=_parse_integer,
            parse_float=_parse_float,
            parse_constant=_refuse_constant,
        )
    except UnicodeDecodeError as error:
        raise ValueError(f'{name} is text in UTF-8; byte {error.start} is not') from error
    except json.JSONDecodeError as error:
        raise ValueError(f'{name} is no JSON: {error}') from error
    except ValueError as error:
        raise ValueError(f'{name} {error}') from error


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f'has the key {shown(twice)} twice in one object')
    return found


def _parse_integer(digits: str) -> int:
    if len(digits) > _MAX_DIGITS or abs(int(digits)) >= _MAX_INTEGER:
        raise ValueError(f'has a number beyond 64 bits, {shown(digits)}')
    return int(digits)


def _parse_float(digits: str) -> float:
    if len(digits) > _MAX_DIGITS or float(digits) in (float('inf'), float('-inf')):
        raise ValueError(f'has a number that is too large or has too many digits, {shown(digits)}')
    return float(digits)


def _refuse_constant(word: str) -> NoReturn:
    raise ValueError(f'has {word}, which is no number in JSON')


def shown(value: Any, length: int = 80) -> str:
    """A stranger's value for an error message: short, and without characters that a terminal acts upon.

    Example:
        >>> shown('wa' + chr(27) + '[31m'), shown('a' * 1000, 3)
        ("'wa\\\\x1b[31m'", "'aaa ...")
    """
    if isinstance(value, str):
        text = repr(value[: length + 1])
    elif isinstance(value, list | dict):
        kind = 'a list' if isinstance(value, list) else 'an object'
        return f'{kind} of {len(value)}'
    else:
        text = json.dumps(value)
    return text if len(text) <= length + 2 else text[: length + 1] + ' ...'


def escaped(text: str, length: int = 2000) -> str:
    """A message that may quote a stranger, as one printable line.

    Example:
        >>> escaped('no' + chr(27) + '[31m growth')
        'no\\\\x1b[31m growth'
    """
    return ''.join(c if c.isprintable() else repr(c)[1:-1] for c in text[:length])
