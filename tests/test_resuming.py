"""Nothing is lost: kills, broken checkpoints, full disks, other numbers of processes, losses that are not finite."""

import dataclasses
import math
import os
import random
import resource
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file

import train
from tests.kill import Run, kill_and_compare, train_in_process
from tests.test_train import assert_same_weights, flags, metrics, places, stop_after
from training.config import Config
from training.faults import Fault
from training.interruption import EXIT_INTERRUPTED, InterruptedRun
from training.metrics import BadImages


def interrupt(config: Config, updates: int, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stop a run inside the given batch; returns its folder."""
    with monkeypatch.context() as patch:
        stop_after(updates, patch)
        with pytest.raises(InterruptedRun):
            train.main(config)
    return Path(config.output, config.experiment or '')


def spoil_losses(batches: range, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the loss of these batches be no number, and its gradients neither."""
    compute: Callable[..., Any] = train.objective
    calls = iter(range(1, 10**6))

    def objective(*args: Any) -> torch.Tensor:
        return compute(*args) * (float('nan') if next(calls) in batches else 1.0)

    monkeypatch.setattr(train, 'objective', objective)


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let the system refuse to write more than so many bytes to a file, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize('name', ['plain', 'two processes, accumulation', 'three processes'])
def test_killed_runs_go_on_bit_for_bit(name: str, tmp_path: Path, image_folder: Path) -> None:
    assert kill_and_compare(name, tmp_path, image_folder, 2, random.Random(0)).kills == 2


@pytest.mark.parametrize(('every', 'kept'), [('4', [4, 8]), ('1000s', []), ('epoch', [])])
def test_checkpoints_inside_epochs(config: Config, every: str, kept: list[int]) -> None:
    config = dataclasses.replace(config, batch_size=2, epochs=1, checkpoint_every=every, keep_checkpoints=9)
    run = train.main(config)['run']
    assert places(run) == [*(f'epoch-00000-step-{update:07d}' for update in (*kept, 12) if kept), places(run)[-1]]
    assert places(run)[-1] == 'epoch-00001-step-0000000'


def test_so_many_checkpoints_are_kept(config: Config) -> None:
    run = train.main(dataclasses.replace(config, checkpoint_every='1', keep_checkpoints=3))['run']
    assert places(run) == ['epoch-00001-step-0000005', 'epoch-00001-step-0000006', 'epoch-00002-step-0000000']


def flip_a_bit(path: Path) -> None:
    contents = bytearray(path.read_bytes())
    contents[len(contents) // 2] ^= 1
    path.write_bytes(contents)


def test_a_broken_checkpoint_is_named_and_the_one_before_used(
    config: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = dataclasses.replace(config, epochs=1, checkpoint_every='2')
    unbroken = train.main(dataclasses.replace(config, experiment='unbroken'))['run']
    run = interrupt(config, 5, monkeypatch)
    assert places(run) == ['epoch-00000-step-0000004', 'epoch-00000-step-0000005']
    broken = run / 'state' / 'epoch-00000-step-0000005'
    flip_a_bit(broken / 'optimizer.pt')
    capsys.readouterr()
    train.main(dataclasses.replace(config, resume='auto'))
    told = capsys.readouterr().out
    assert f'{broken} is broken: optimizer.pt is not as it was written' in told
    assert 'going on after epoch 0 and 4 updates of the next\n' in told
    assert places(run) == ['epoch-00000-step-0000006', 'epoch-00001-step-0000000']
    assert_same_weights(run, unbroken)


def test_a_run_whose_checkpoints_are_all_broken_is_refused(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    run = train.main(dataclasses.replace(config, epochs=1))['run']
    flip_a_bit(Path(run, 'state', 'epoch-00001-step-0000000', 'optimizer.pt'))
    capsys.readouterr()
    for _ in range(2):  # also when it is asked a second time
        assert train.cli(flags(dataclasses.replace(config, resume='auto'))) == train.EXIT_USER_ERROR
        error = capsys.readouterr().err
        assert 'holds no whole checkpoint' in error
        assert 'epoch-00001-step-0000000 is broken: optimizer.pt is not as it was written' in error


@pytest.mark.parametrize('size', [4_000, 420_000])
def test_a_full_disk_leaves_the_checkpoint_before(
    config: Config, size: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = interrupt(config, 8, monkeypatch)
    before = {path: path.read_bytes() for path in run.rglob('*') if path.is_file() and 'state' in path.parts}
    capsys.readouterr()
    with largest_file(size):
        assert train.cli(flags(dataclasses.replace(config, resume='auto', checkpoint_every='1'))) == 2
    error = capsys.readouterr().err
    assert error.startswith('train.py: error: cannot write: ')
    assert 'File too large' in error
    assert error.count('\n') == 1
    assert {path: path.read_bytes() for path in run.rglob('*') if path.is_file() and 'state' in path.parts} == before
    assert not list(run.rglob('.*'))


def test_a_signal_breaks_off_an_evaluation_that_is_done_again(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    unbroken = train.main(dataclasses.replace(config, experiment='unbroken'))['run']
    add = BadImages.add

    def add_and_stop(self: BadImages, *tensors: torch.Tensor) -> None:
        add(self, *tensors)
        if self.split == 'val':
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(BadImages, 'add', add_and_stop)
        with pytest.raises(InterruptedRun, match='stopped and saved'):
            train.main(config)
    run = Path(config.output, 'run')
    assert places(run) == ['epoch-00000-step-0000006']
    assert not (run / 'metrics.csv').exists()
    train.main(dataclasses.replace(config, resume='auto'))
    assert_same_weights(run, unbroken)
    assert metrics(run) == metrics(unbroken)


@pytest.mark.parametrize('told', [0, 1])
def test_two_processes_stop_after_the_same_update(config: Config, told: int) -> None:
    """One of them gets the signal, inside gradient accumulation as like as not."""
    config = dataclasses.replace(config, batch_size=2, epochs=10_000, grad_accum_steps=2)
    run = Run('run', Path(config.output), flags(config), 2)
    with run.started() as processes:
        while 'epoch 1/' not in run.log.read_text() and processes[0].is_alive():
            time.sleep(0.01)
        os.kill(processes[told].pid or 0, signal.SIGTERM)
        for process in processes:
            process.join(60)
        assert [process.exitcode for process in processes] == [EXIT_INTERRUPTED] * 2
    assert run.log.read_text().count('stopped and saved') == 1
    place = places(run.folder())[-1]
    assert f'epoch {int(place[6:11])}/' in run.log.read_text()


@pytest.mark.parametrize(('before', 'after'), [(2, 1), (1, 2)])
def test_another_number_of_processes_goes_on(config: Config, before: int, after: int) -> None:
    """The same images in every update, so the same losses within rounding: no batch norm and no dropout here."""
    config = dataclasses.replace(config, model='test_efficientnet_gn', lr=0.001, drop=None)
    expected = metrics(train.main(dataclasses.replace(config, experiment='unbroken'))['run'])
    for processes in (before, after):
        own = dataclasses.replace(config, batch_size=4 // processes, checkpoint_every='2', keep_checkpoints=9)
        run = Run('run', Path(config.output), flags(own), processes)
        assert run.finish() is not None
        if processes == before:
            places_made = places(run.folder())
            assert places_made[3:5] == ['epoch-00001-step-0000000', 'epoch-00001-step-0000002']
            for place in places_made[5:]:
                shutil.rmtree(run.folder() / 'state' / place)
    told = run.log.read_text()
    assert f'going on after epoch 1 and 2 updates of the next; saved by {before} process' in told
    for ours, theirs in zip(metrics(run.folder()), expected, strict=True):
        assert numbers(ours) == pytest.approx(numbers(theirs), rel=1e-4)


def numbers(row: dict[str, str]) -> list[float]:
    return [float(value or 0) for value in row.values()]


def test_updates_of_another_size_need_leave(config: Config, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    run = interrupt(config, 3, monkeypatch)
    larger = dataclasses.replace(config, batch_size=5, resume='auto')
    with pytest.raises(ValueError, match=r'an update of this run has 4 images, now 5 .* product is 4, or give --allow'):
        train.main(larger)
    train.main(dataclasses.replace(larger, allow_changed_batch=True))
    told = capsys.readouterr().out
    assert 'going on after epoch 0 and 2 updates of the next; updates have 5 images, no longer 4' in told
    assert '2 images come twice in this epoch' in told
    assert len(metrics(run)) == 2


def test_changed_data_needs_leave(config: Config, image_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = interrupt(config, 3, monkeypatch)
    (image_folder / 'train' / 'red' / '0.png').unlink()
    with pytest.raises(ValueError, match=r'\(24 and 9 of them then, now 23 and 9\): restore .* --allow-changed-data'):
        train.main(dataclasses.replace(config, resume='auto'))
    train.main(dataclasses.replace(config, resume='auto', allow_changed_data=True))
    assert len(metrics(run)) == 2


def test_other_classes_are_always_refused(config: Config, image_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt(config, 3, monkeypatch)
    for split in ('train', 'val'):
        (image_folder / split / 'red').rename(image_folder / split / 'yellow')
    with pytest.raises(ValueError, match='began with other classes'):
        train.main(dataclasses.replace(config, resume='auto', allow_changed_data=True))


@pytest.mark.parametrize('every', ['1', 'epoch'])
def test_a_loss_that_is_not_finite_stops_before_anything_is_saved(
    config: Config, every: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = dataclasses.replace(config, checkpoint_every=every)
    with monkeypatch.context() as patch:
        spoil_losses(range(9, 10), patch)
        assert train.cli(flags(config)) == train.EXIT_USER_ERROR
    run = Path(config.output, 'run')
    error = capsys.readouterr().err
    assert error.startswith('train.py: error: epoch 2, update 3, process 0: loss nan; its images are in ')
    assert error.count('\n') == 1
    listed = (run / 'nonfinite.txt').read_text().splitlines()
    assert listed[0] == 'epoch 2, update 3, process 0: loss nan'
    assert len({*listed[1:5]}) == 4
    assert all((Path(config.data_dir or '') / name.strip()).exists() for name in listed[1:5])
    assert places(run)[-1] == ('epoch-00001-step-0000002' if every == '1' else 'epoch-00001-step-0000000')
    assert all(tensor.isfinite().all() for tensor in load_file(run / 'last' / 'model.safetensors').values())
    assert len(metrics(train.main(dataclasses.replace(config, resume='auto', nonfinite='skip'))['run'])) == 2


def test_an_update_without_finite_loss_is_skipped_and_counted(
    config: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = dataclasses.replace(config, nonfinite='skip', grad_accum_steps=2, batch_size=2)
    spoil_losses(range(3, 4), monkeypatch)
    run = Path(train.main(config)['run'])
    assert [row['skipped_updates'] for row in metrics(run)] == ['1', '0']
    assert all(math.isfinite(float(row['train_loss'])) for row in metrics(run))
    assert 'updates skipped' in capsys.readouterr().out
    listed = (run / 'nonfinite.txt').read_text().splitlines()
    assert listed[0] == 'epoch 1, update 2, process 0: loss nan'
    assert len(listed) == 3


def test_a_run_of_skipped_updates_stops(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil_losses(range(8, 1000), monkeypatch)
    with pytest.raises(Fault, match='too many updates were skipped in a row'):
        train.main(dataclasses.replace(config, nonfinite='skip', epochs=9))


def spoil_second_process(arguments: list[str], environment: dict[str, str], log: Path) -> None:
    """Train, and let the second of two processes have a loss that is no number in its third batch."""
    if environment['RANK'] == '1':
        spoil_losses(range(3, 4), pytest.MonkeyPatch())
    train_in_process(arguments, environment, log)


@pytest.mark.parametrize('reaction', ['stop', 'skip'])
def test_all_processes_react_to_the_loss_of_one(config: Config, reaction: Literal['stop', 'skip']) -> None:
    config = dataclasses.replace(config, batch_size=2, nonfinite=reaction)
    run = Run('run', Path(config.output), flags(config), 2, spoil_second_process)
    if reaction == 'skip':
        assert run.finish() is not None
        assert [row['skipped_updates'] for row in metrics(run.folder())] == ['1', '0']
    else:
        with pytest.raises(RuntimeError, match='epoch 1, update 3, process 1: loss nan'):
            run.finish()
        assert run.log.read_text().count('train.py: error') == 1
    assert (Path(config.output) / 'run' / 'nonfinite.txt').read_text().startswith('epoch 1, update 3, process 1')
