"""Cells as they run: killed and taken up again, failing, beside each other."""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

import reproduce
from experiments.cells import Pool, locked
from experiments.grids import Cell
from reproduce import Request
from training.config import Config
from training.interruption import EXIT_INTERRUPTED

ROOT = Path(__file__).parent.parent.parent
TIMEOUT_S = 240  # a loaded machine takes minutes to import torch


@pytest.fixture
def request_of_three(image_folder: Path, tmp_path: Path) -> Request:
    """Ask for three cells of a tiny network, two at a time."""
    weights = tmp_path / 'base.safetensors'
    torch.manual_seed(1)
    save_file(timm.create_model('test_efficientnet').state_dict(), weights)
    return Request(
        'table1',
        data_dirs=(str(image_folder),),
        model='test_efficientnet',
        pretrained_path=str(weights),
        methods=('ft', 'norm', 'wa'),
        regimes=('All',),
        seeds=1,
        epochs=3,
        img_size=32,
        batch_size=4,
        processes=2,  # one thread each
        output=str(tmp_path / 'broken'),
    )


def flags_of(request: Request) -> list[str]:
    flags: list[str] = [request.table]
    for field in dataclasses.fields(Request)[1:]:
        value = getattr(request, field.name)
        if value != field.default:
            flags += [
                f'--{field.name.replace("_", "-")}',
                *(map(str, value) if isinstance(value, tuple) else [str(value)]),
            ]
    return flags


@contextlib.contextmanager
def started(request: Request, *wanted: str) -> Iterator[subprocess.Popen[str]]:
    """Start reproduce.py in a process of its own, and wait until there is something in the table's folder."""
    command = [sys.executable, str(ROOT / 'reproduce.py'), *flags_of(request)]
    environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            end = time.monotonic() + TIMEOUT_S
            while not all([*request.folder.glob(pattern)] for pattern in wanted):
                assert process.poll() is None and time.monotonic() < end
                time.sleep(0.005)
            yield process
        finally:
            process.kill()


def outcome(folder: Path) -> tuple[list[dict], dict[str, torch.Tensor]]:
    """Read what a table has come to, but for times and memory, and the last cell's weights."""
    cells = json.loads((folder / 'table.json').read_text())['cells']
    clocked = ('seconds', 'peak_memory_bytes', 'command')  # the command has the folder in it
    weights = load_file(folder / 'wa_all_seed0' / 'best' / 'model.safetensors')
    return [{name: value for name, value in cell.items() if name not in clocked} for cell in cells], weights


def test_a_killed_table_goes_on_bit_for_bit(request_of_three: Request, tmp_path: Path) -> None:
    unbroken = dataclasses.replace(request_of_three, output=str(tmp_path / 'unbroken'))
    assert reproduce.main(unbroken) == 0
    # The first cell is finished, the last inside its run.
    with started(request_of_three, 'ft_all_seed0/usage.json', 'wa_all_seed0/state/epoch-*') as process:
        process.send_signal(signal.SIGKILL)
        process.wait(TIMEOUT_S)
    first = request_of_three.folder / 'ft_all_seed0' / 'run.json'
    written = first.stat().st_mtime_ns
    assert reproduce.main(request_of_three) == 0
    assert first.stat().st_mtime_ns == written  # a finished cell is not run again
    (cells, weights), (whole_cells, whole_weights) = outcome(request_of_three.folder), outcome(unbroken.folder)
    assert cells == whole_cells
    assert len(cells) == 3
    assert weights.keys() == whole_weights.keys()
    assert all(torch.equal(tensor, whole_weights[name]) for name, tensor in weights.items())


def test_a_signal_saves_what_is_under_way(request_of_three: Request) -> None:
    request = dataclasses.replace(request_of_three, epochs=500)
    with started(request, 'ft_all_seed0/state/epoch-*', 'norm_all_seed0/state/epoch-*') as process:
        process.send_signal(signal.SIGTERM)
        told, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == EXIT_INTERRUPTED
    assert 'stopping: 2 cells are saved' in told
    assert 'stopped and saved' in (request.folder / 'ft_all_seed0.log').read_text()


def test_a_failing_cell_does_not_stop_the_others(config: Config, tmp_path: Path) -> None:
    def cell(name: str, start: str = '', **changes: object) -> Cell:
        changes = {'experiment': name, 'resume': 'auto', 'report': False, 'epochs': 1, 'eval_every': 1, **changes}
        return Cell(name, 'All', dataclasses.replace(config, **changes), start)

    cells = [
        cell('bad', pretrained=True, pretrained_path=str(tmp_path / 'none.safetensors')),
        cell('after-bad', 'bad'),
        cell('good'),
    ]
    said: list[str] = []
    failed = Pool(cells, 1, None, keeps_weights=False, say=said.append, note=lambda: None).run()
    log = Path(config.output) / 'bad.log'
    assert failed == {
        'bad': f'--pretrained-path {tmp_path / "none.safetensors"} is not a file (see {log})',
        'after-bad': 'it begins with the weights of bad, which failed',
    }
    assert 'Traceback' in log.read_text()
    assert said[-1].startswith('3/3 good: top-1')
    assert {path.name for path in Path(config.output, 'good').iterdir()} == {
        *('run.json', 'metrics.csv', 'curves.png', 'usage.json')  # neither weights nor checkpoints
    }


def test_two_cannot_work_in_one_folder(tmp_path: Path) -> None:
    with (
        locked(tmp_path),
        pytest.raises(ValueError, match=f'another reproduce.py works in {tmp_path}'),
        locked(tmp_path),
    ):
        pass
