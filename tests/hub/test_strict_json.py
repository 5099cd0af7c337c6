"""JSON from strangers: read within bounds, and only where it has one meaning."""

import json
import time
from typing import Any

import pytest

from hub.strict_json import MAX_BYTES, MAX_DEPTH, parse, shown


@pytest.mark.parametrize(
    'value', [{}, [], {'a': [1, -2.5, 'é', None, True, {'b': '[[[["\\'}]}, '[' * 100, 2**63 - 1, '😀']
)
@pytest.mark.parametrize('ascii_only', [True, False])
def test_what_python_writes_is_read(value: Any, ascii_only: bool) -> None:
    assert parse(json.dumps(value, ensure_ascii=ascii_only).encode(), 'it') == value


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "it has the key 'c' twice in one object"),
        (b'[NaN]', 'it has NaN, which is no number in JSON'),
        (b'[-Infinity]', 'it has -Infinity, which is no number in JSON'),
        (b'[1e999]', "it has a number that is too large or has too many digits, '1e999'"),
        (b'[0.' + b'1' * 100_000 + b']', 'it has a number that is too large or has too many digits'),
        (b'[9223372036854775808]', "it has a number beyond 64 bits, '9223372036854775808'"),
        (b'[' + b'9' * 100_000 + b']', 'it has a number beyond 64 bits'),
        (b'["\\ud800"]', 'it has half a character'),
        (b'["\\udc00\\ud800"]', 'it has half a character'),
        (b'["\xff"]', 'it is text in UTF-8; byte 2 is not'),
        (b'{"a": 1', 'it is no JSON: '),
        (b'', 'it is no JSON: '),
        (b'["a\nb"]', 'it is no JSON: Invalid control character'),
        (b'[' * (MAX_DEPTH + 1) + b']' * (MAX_DEPTH + 1), f'it is nested at most {MAX_DEPTH} deep'),
        (b'{"a":' * 200_000, f'it is nested at most {MAX_DEPTH} deep'),
        (b'["\\\\", ' + b'[' * 200_000, f'it is nested at most {MAX_DEPTH} deep'),
        (b' ' * (MAX_BYTES + 1), 'it is at most 5,000,000 bytes long; found 5,000,001'),
    ],
)
def test_what_is_no_plain_data_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(content, 'it')


def test_brackets_in_strings_do_not_count() -> None:
    assert parse(b'["\\"' + b'[' * 1_000 + b'\\\\"]', 'it') == ['"' + '[' * 1_000 + '\\']


@pytest.mark.parametrize('part', [b'[],', b'"",', b'"\\n', b'"\\\\', b'{"', b'1,', b'\\"', b']', b'"\\ud800'])
def test_what_is_as_long_as_may_be_is_read_or_refused_at_once(part: bytes) -> None:
    content = (b'[' + part * (MAX_BYTES // len(part)))[:MAX_BYTES]
    started = time.process_time()
    with pytest.raises(ValueError, match='it '):
        parse(content, 'it')
    assert time.process_time() - started < 5


def test_a_strangers_text_is_shown_short_and_without_what_a_terminal_acts_upon() -> None:
    text = shown('\x1b[31m\u202e' + 'a' * 10_000_000)
    assert text.isprintable() and len(text) < 120
