from pathlib import Path

import pytest
from accelerate import Accelerator
from PIL import Image

from training.config import Config
from training.files import replace_file
from training.run_folder import RunFolder, draw_curves, find_folder, make_folder, numbered_runs, run_name


@pytest.mark.parametrize(
    ('options', 'name'),
    [
        ({'model': 'vgg16_wa2048', 'data_dir': '/data/SUN397'}, 'vgg16_wa2048-sun397'),
        ({'model': 'hf-hub:me/vgg16.tv', 'dataset': 'torch/cifar10'}, 'me_vgg16.tv-cifar10'),
        ({'experiment': 'Mine'}, 'Mine'),
    ],
)
def test_run_name(options: dict, name: str) -> None:
    assert run_name(Config(**options)) == name


def test_a_taken_name_gets_the_next_number(tmp_path: Path) -> None:
    config = Config(output=str(tmp_path), experiment='run')
    made = [make_folder(config, Accelerator(cpu=True)).path.name for _ in range(11)]
    assert made == ['run', *(f'run-{number}' for number in range(2, 12))]
    assert [path.name for path in numbered_runs(config)] == made


def test_auto_finds_the_newest_run_with_a_checkpoint(tmp_path: Path) -> None:
    config = Config(output=str(tmp_path), experiment='run', resume='auto')
    assert find_folder(config, Accelerator(cpu=True)) is None
    for name in ('run', 'run-2', 'run-10', 'running-11'):
        (tmp_path / name / 'state' / 'epoch-00001-step-0000000').mkdir(parents=True)
    (tmp_path / 'run-12' / 'state' / '.epoch-00001-step-0000000.unfinished').mkdir(parents=True)
    found = find_folder(config, Accelerator(cpu=True))
    assert found is not None
    assert found.path.name == 'run-10'


def test_a_folder_without_checkpoint_cannot_be_resumed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r'has no checkpoint: give a run folder with some in state/, or auto'):
        find_folder(Config(resume=str(tmp_path)), Accelerator(cpu=True))


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / 'file'
    path.write_text('old')

    def fail_halfway(unfinished: Path) -> None:
        unfinished.write_text('ne')
        raise OSError('disk full')

    with pytest.raises(OSError, match='disk full'):
        replace_file(path, fail_halfway)
    assert path.read_text() == 'old'
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_without_result_is_removed_on_error(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / 'run')
    folder.state.mkdir(parents=True)
    with pytest.raises(ValueError, match='early'), folder.kept_if_useful():
        raise ValueError('early')
    assert not folder.path.exists()


@pytest.mark.parametrize('useful', ['state/epoch-00001-step-0000000', 'last/model.safetensors', 'nonfinite.txt'])
def test_a_folder_with_a_result_is_kept_on_error(tmp_path: Path, useful: str) -> None:
    folder = RunFolder(tmp_path / 'run')
    (folder.path / useful).mkdir(parents=True)
    with pytest.raises(ValueError, match='late'), folder.kept_if_useful():
        raise ValueError('late')
    assert folder.path.exists()


def test_bad_images_are_listed_once(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.add_bad_images(['train/b.png'])
    folder.add_bad_images(['train/a.png', 'train/b.png'])
    assert (tmp_path / 'bad_images.txt').read_text() == 'train/a.png\ntrain/b.png\n'


def test_batches_without_a_finite_loss_are_listed_once(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.add_nonfinite(['epoch 1, update 2: loss nan\n  train/a.png\n'])
    folder.add_nonfinite(['epoch 1, update 2: loss nan\n  train/a.png\n', 'epoch 1, update 3: loss inf\n'])
    text = (tmp_path / 'nonfinite.txt').read_text()
    assert text == 'epoch 1, update 2: loss nan\n  train/a.png\nepoch 1, update 3: loss inf\n'


def test_curves_are_a_picture_even_where_epochs_were_not_evaluated(tmp_path: Path) -> None:
    row = {'epoch': 1, 'train_loss': 1.0, 'train_top1': 50.0, 'val_loss': None, 'val_top1': None}
    draw_curves([row, {**row, 'epoch': 2, 'val_loss': 2.0, 'val_top1': 40.0}], 'run', tmp_path / 'curves.png')
    with Image.open(tmp_path / 'curves.png') as picture:
        assert picture.size == (1200, 480)
        assert len(picture.convert('RGB').getcolors(1 << 20) or []) > 10


def test_curves_are_drawn_after_epochs_that_were_evaluated(tmp_path: Path) -> None:
    row = {'epoch': 1, 'train_loss': 1.0, 'train_top1': 50.0, 'val_loss': None, 'val_top1': None}
    RunFolder(tmp_path).write_metrics([row])
    assert [path.name for path in tmp_path.iterdir()] == ['metrics.csv']
    RunFolder(tmp_path).write_metrics([row, {**row, 'epoch': 2, 'val_loss': 2.0, 'val_top1': 40.0}])
    assert (tmp_path / 'curves.png').exists()
