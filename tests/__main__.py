"""All checks, one after the other: `python -m tests`; each can be run by hand as it is printed."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
CHECKS = ('ruff check', 'ruff format --check', 'mypy', 'pytest -n auto', 'tests.timm_suite -n auto')
NOT_RUN = 77  # exit code of a check that could not be run, as automake has it


def main() -> int:
    """Run every check, also after one has failed.

    Returns:
        Exit code: 0 if none failed.
    """
    outcomes = []
    for check in CHECKS:
        command = [sys.executable, '-m', *check.split()]
        print(f'\n$ python {shlex.join(command[1:])}', flush=True)
        start = time.monotonic()
        # One thread for each of pytest's processes: together they use every core.
        code = subprocess.run(command, cwd=ROOT, env={**os.environ, 'OMP_NUM_THREADS': '1'}).returncode
        outcome = {0: 'passed', NOT_RUN: 'NOT RUN, see above'}.get(code, f'FAILED, exit code {code}')
        outcomes.append(f'{check:24} {outcome} ({time.monotonic() - start:.0f} s)')
    print('', *outcomes, sep='\n', flush=True)
    return int(any('FAILED' in outcome for outcome in outcomes))


if __name__ == '__main__':
    sys.exit(main())
