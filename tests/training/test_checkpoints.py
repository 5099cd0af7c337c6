import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.data_loader import prepare_data_loader
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader

from training.checkpoints import (
    FILES,
    MANIFEST,
    CheckpointPace,
    RunState,
    find_damage,
    find_place,
    load_checkpoint,
    random_state,
    save_checkpoint,
    seed_new_process,
    set_random_state,
)
from training.config import Config
from training.data import EpochOrder
from training.faults import Fault
from training.metrics import Tally
from training.progress import Progress


class Average:
    """A further state, as another part of training may have."""

    def __init__(self, value: float):
        self.value = value

    def state_dict(self) -> dict[str, Any]:
        return {'value': torch.tensor(self.value), 'steps': [1, 2]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.value = state_dict['value'].item()


@pytest.fixture
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


@pytest.fixture
def state(accelerator: Accelerator) -> RunState:
    """Make a small network that has learnt something."""
    network = nn.Linear(3, 2)
    optimizer = accelerator.prepare(torch.optim.AdamW(network.parameters()))
    network(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    order = EpochOrder(np.arange(40), seed=0, update_size=4)
    tally = Tally(torch.device('cpu'))
    tally.sums += 1
    return RunState(network, optimizer, order, Progress(epoch=2, update=3), tally, {'average': Average(0.5)})


def flip_a_bit(path: Path) -> None:
    contents = bytearray(path.read_bytes())
    contents[len(contents) // 2] ^= 1
    path.write_bytes(contents)


DAMAGES: dict[str, Callable[[Path], Any]] = {
    'flipped': flip_a_bit,
    'truncated': lambda path: os.truncate(path, path.stat().st_size // 2),
    'empty': lambda path: os.truncate(path, 0),
    'missing': Path.unlink,
}


@pytest.mark.parametrize('name', [*FILES, MANIFEST])
@pytest.mark.parametrize('damage', DAMAGES)
def test_damage_is_found_and_the_file_named(
    accelerator: Accelerator, state: RunState, tmp_path: Path, name: str, damage: str
) -> None:
    save_checkpoint(tmp_path, accelerator, state, keep=1)
    checkpoint = tmp_path / 'epoch-00002-step-0000003'
    assert find_damage(checkpoint) is None
    DAMAGES[damage](checkpoint / name)
    # A flipped bit of the manifest may show in any file's checksum.
    assert (find_damage(checkpoint) or '').startswith(name if (name, damage) != (MANIFEST, 'flipped') else '')
    assert find_damage(checkpoint) is not None


def test_what_is_loaded_is_what_was_saved(accelerator: Accelerator, state: RunState, tmp_path: Path) -> None:
    save_checkpoint(tmp_path, accelerator, state, keep=1)
    weights = {key: tensor.clone() for key, tensor in state.network.state_dict().items()}
    drawn = torch.rand(1).item(), random.random(), np.random.random()
    with torch.no_grad():
        state.network.weight.zero_()
    state.tally.sums.zero_()
    average = Average(0.0)
    state.further = {'average': average}
    assert load_checkpoint(tmp_path, accelerator, state, Config()) == state.progress
    torch.testing.assert_close(state.network.state_dict(), weights, rtol=0, atol=0)
    assert state.tally.sums.tolist() == [1, 1, 1, 1]
    assert average.value == 0.5
    assert (torch.rand(1).item(), random.random(), np.random.random()) == drawn


def test_a_further_state_that_was_not_saved_starts_anew(
    accelerator: Accelerator, state: RunState, tmp_path: Path
) -> None:
    save_checkpoint(tmp_path, accelerator, state, keep=1)
    other = Average(2.0)
    state.further = {'other': other}
    load_checkpoint(tmp_path, accelerator, state, Config())
    assert other.value == 2.0


def test_what_cannot_be_written_leaves_no_trace(
    accelerator: Accelerator, state: RunState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tmp_path, accelerator, state, keep=1)

    def fail(source: Path, target: Path) -> None:
        raise OSError(28, 'No space left on device')

    state.progress.update += 1
    monkeypatch.setattr('os.rename', fail)
    with pytest.raises(Fault, match=r'cannot write: .*No space left on device; the checkpoints in .* are as before'):
        save_checkpoint(tmp_path, accelerator, state, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ['epoch-00002-step-0000003']
    assert find_damage(tmp_path / 'epoch-00002-step-0000003') is None


def test_leftovers_of_a_kill_are_removed(accelerator: Accelerator, state: RunState, tmp_path: Path) -> None:
    for name in ('.epoch-00002-step-0000003.unfinished', '.epoch-00001-step-0000000.removed'):
        (tmp_path / name).mkdir()
        (tmp_path / name / 'model.safetensors').write_bytes(b'half')
    save_checkpoint(tmp_path, accelerator, state, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ['epoch-00002-step-0000003']


def test_random_states_of_all_generators_come_back() -> None:
    saved = random_state()
    drawn = torch.rand(1).item(), random.random(), np.random.random()
    set_random_state(saved)
    assert (torch.rand(1).item(), random.random(), np.random.random()) == drawn


def test_a_new_process_draws_by_seed_rank_and_place() -> None:
    def draw(*key: int) -> tuple[float, float, float]:
        seed_new_process(*key)
        return torch.rand(1).item(), random.random(), np.random.random()

    assert draw(42, 1, 0, 3) == draw(42, 1, 0, 3)
    assert len({draw(42, 1, 0, 3), draw(42, 2, 0, 3), draw(42, 1, 0, 4), draw(43, 1, 0, 3)}) == 4


@pytest.mark.parametrize(('every', 'due'), [('3', [3, 6]), ('epoch', []), ('10s', [4, 8])])
def test_pace(accelerator: Accelerator, every: str, due: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 1000, 3))  # three seconds an update
    now = next(clock)
    monkeypatch.setattr('training.checkpoints.time.monotonic', lambda: now)
    pace, found = CheckpointPace(every), []
    for update in range(1, 9):
        now = next(clock)
        if pace.is_due(accelerator, update, may_wait=True):
            found.append(update)
            pace.restart()
    assert found == due


def test_the_clock_is_asked_only_where_processes_may_wait(accelerator: Accelerator) -> None:
    pace = CheckpointPace('1s')
    pace.saved_at_s -= 10
    assert not pace.is_due(accelerator, 1, may_wait=False)
    assert pace.is_due(accelerator, 1, may_wait=True)


@pytest.mark.parametrize(('every', 'due'), [('600s', [True, False, True]), ('500', [True] * 3), ('epoch', [True] * 3)])
def test_saving_ends_of_short_epochs_takes_a_twentieth_of_the_time(
    accelerator: Accelerator, every: str, due: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    now, found = 100.0, []
    monkeypatch.setattr('training.checkpoints.time.monotonic', lambda: now)
    pace = CheckpointPace(every)
    for _ in range(3):
        now += 11
        found.append(pace.is_due_after_epoch())
        if found[-1]:
            pace.restart(save_s=1.0)
    assert found == due


@pytest.mark.parametrize(
    ('updates', 'saved_size', 'place', 'remark'),
    [
        (5, 4, 5, ''),
        (5, 8, 10, '; updates have 4 images, no longer 8'),
        (5, 2, 2, '; updates have 4 images, no longer 2, and 2 images come twice in this epoch'),
        (0, 7, 0, '; updates have 4 images, no longer 7'),
        (5, 7, 8, '; updates have 4 images, no longer 7, and 3 images come twice in this epoch'),
        (9, 5, 10, '; updates have 4 images, no longer 5'),
    ],
)
def test_place_among_updates_of_another_size(updates: int, saved_size: int, place: int, remark: str) -> None:
    order = EpochOrder(np.arange(40), seed=0, update_size=4)
    assert find_place(updates, saved_size, order, Config(allow_changed_batch=True)) == (place, remark)


def indices_of_update(processes: int, batch_size: int, update: int) -> set[int]:
    """Find the images of an update as processes share them."""
    order = EpochOrder(np.arange(100), seed=3, update_size=32)
    order.seek(epoch=1, updates_done=update)
    loader: DataLoader[Tensor] = DataLoader(range(100), batch_size=batch_size, sampler=order, collate_fn=list)
    found: set[int] = set()
    for process in range(processes):
        shared = prepare_data_loader(loader, num_processes=processes, process_index=process, put_on_device=False)
        batches = list(shared.batch_sampler)[: 32 // (batch_size * processes)]
        found |= {index for batch in batches for _, index in batch}
    return found


@pytest.mark.parametrize(('processes', 'batch_size'), [(1, 16), (2, 16), (2, 8), (4, 8), (4, 2)])
def test_updates_of_one_size_hold_the_same_images(processes: int, batch_size: int) -> None:
    for update in (0, 2):
        found = indices_of_update(processes, batch_size, update)
        assert len(found) == 32
        assert found == indices_of_update(1, 32, update)


def test_a_checkpoint_opens_without_running_code(accelerator: Accelerator, state: RunState, tmp_path: Path) -> None:
    save_checkpoint(tmp_path, accelerator, state, keep=1)
    checkpoint = tmp_path / 'epoch-00002-step-0000003'
    assert {*load_file(checkpoint / 'model.safetensors')} == {'weight', 'bias'}
    assert torch.load(checkpoint / 'optimizer.pt', weights_only=True)['update_size'] == 4
