"""timm's own model tests over grown networks: `python -m tests.timm_suite`, with pytest's options after it.

They come with timm's source distribution, which pip fetches in the installed version; nothing of it is kept.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import timm

from tests.__main__ import NOT_RUN, ROOT

# Every family and every kind of growth.
NAMES = (
    'alexnet',
    'alexnet_da1024',
    'alexnet_wa1024',
    'alexnet_skip',
    'vgg11_wwa1024',
    'vgg11_bn_mwa512',
    'tf_efficientnet_lite0_da512',
    'tf_efficientnet_lite0_wa256',
    'tf_efficientnet_lite0_dwa512',
    'tf_efficientnet_lite0_wwa512',
    'tf_efficientnet_lite0_mwa256',
    'tf_efficientnet_lite0_norm',
    'tf_efficientnet_lite0_skip',
    # One of each kind of network that grows by its outline.
    'convnext_atto_wa128',
    'devnet',
    'mobilenetv3_small_100_mwa256',
    'resnet18_mwa128',
    'swin_tiny_patch4_window7_224_skip',
    'vit_tiny_patch16_224_wa64',
)
# timm runs these over its own modules only, so they are called with our names.
DIRECT = (
    'test_model_forward_intermediates_features',
    'test_model_forward_intermediates',
    'test_prune_intermediate_layers_contract',
)
# Put into the suite's conftest.py. Names may carry tags, and -k would also take all names that only begin so.
SELECTION = """
def pytest_collection_modifyitems(config, items):
    def is_ours(item):
        params = item.callspec.params if hasattr(item, 'callspec') else {{}}
        return params.get('model_name', '').partition('.')[0] in {names} and 'pretrained' not in item.name

    config.hook.pytest_deselected(items=[item for item in items if not is_ours(item)])
    items[:] = [item for item in items if is_ours(item)]
"""
DIRECT_TESTS = """
import inspect

import pytest

from . import test_models


@pytest.mark.parametrize('model_name', {names})
@pytest.mark.parametrize('test_name', {tests})
def test_direct(test_name, model_name):
    test = getattr(test_models, test_name)
    test(model_name, batch_size=1) if 'batch_size' in inspect.signature(test).parameters else test(model_name)
"""


def main(options: list[str]) -> int:
    """Fetch the suite and run it.

    Args:
        options: Of pytest.

    Returns:
        pytest's exit code, or `NOT_RUN` if the suite cannot be fetched.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            suite = fetch(Path(folder))
        except (subprocess.CalledProcessError, tarfile.TarError, OSError) as error:
            print(f"timm's own suite was NOT RUN: timm {timm.__version__}'s source distribution cannot be had: {error}")
            return NOT_RUN
        with (suite / 'tests' / 'conftest.py').open('a') as conftest:
            conftest.write(SELECTION.format(names=NAMES))
        (suite / 'tests' / 'test_direct.py').write_text(DIRECT_TESTS.format(names=NAMES, tests=DIRECT))
        # timm's files mean timm's settings, and its warnings are its own.
        command = [sys.executable, '-m', 'pytest', '-q', '-p', 'timm_devnet', '-p', 'no:cacheprovider', *options]
        environment = {**os.environ, 'PYTHONPATH': str(ROOT)}
        command += ['tests/test_models.py', 'tests/test_direct.py']
        return subprocess.run(command, cwd=suite, env=environment).returncode


def fetch(folder: Path) -> Path:
    """Fetch the suite of the installed timm into a folder of its own, without timm itself beside it.

    Raises:
        subprocess.CalledProcessError: If pip cannot get it.
    """
    pip = [sys.executable, '-m', 'pip', 'download', '--quiet', '--no-deps', '--no-binary', 'timm']
    subprocess.run([*pip, '--dest', str(folder), f'timm=={timm.__version__}'], check=True, cwd=ROOT)
    with tarfile.open(next(folder.glob('timm-*.tar.gz'))) as archive:
        archive.extractall(folder, filter='data')
    unpacked = next(path for path in folder.iterdir() if path.is_dir())
    suite = folder / 'suite'
    shutil.copytree(unpacked / 'tests', suite / 'tests')
    shutil.copy(unpacked / 'pyproject.toml', suite)  # its markers
    return suite


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
