"""The network of a run: built by timm, with its starting weights, checked against the size of the images."""

from __future__ import annotations

import bisect
import contextlib
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError
from timm.data import resolve_data_config
from timm.models import get_pretrained_cfg, load_state_dict
from torch import Tensor, nn

import timm_devnet
from timm_devnet import delta
from timm_devnet.grown import Grown
from timm_devnet.layers import gather
from timm_devnet.outline import run_on_meta
from timm_devnet.packages import PACKAGE_LICENSE, lite_package, packaged_weights
from timm_devnet.registration import is_grown_name

from .config import LOCAL, Config, growths_of
from .data import InputFormat

# What a file raises that is no file of tensors, or a pickle with code in it.
UNREADABLE_WEIGHTS = (pickle.UnpicklingError, SafetensorError, EOFError)

HUB = 'the Hugging Face Hub'


class BlockAnswers(nn.Module):
    """A grown network that also gives each block's own answer, in one forward pass, so that DDP sees it whole."""

    def __init__(self, model: Any):  # a timm model, whose methods nn.Module's type does not tell
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Classify images of shape (N, C, H, W); returns logits of the whole and of each block."""
        pre_logits = self.model.forward_head(self.model.forward_features(images), pre_logits=True)
        return self.model.get_classifier()(pre_logits), timm_devnet.block_logits(self.model, pre_logits)


class HeadAnswers(nn.Module):
    """A grown network that also answers by the heads of earlier tasks, and perhaps by each block, in one pass."""

    def __init__(self, model: Any, with_blocks: bool):
        super().__init__()
        self.model, self.with_blocks = model, with_blocks

    def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor], dict[str, Tensor]]:
        """Classify images of shape (N, C, H, W); returns logits of the whole, of each block, and of each head."""
        model = self.model
        values = model.head_values(model.forward_features(images))
        pre_logits = model.classify_top(gather([values[name] for name in model.top]), pre_logits=True)
        blocks = timm_devnet.block_logits(model, pre_logits) if self.with_blocks else []
        return model.get_classifier()(pre_logits), blocks, model.kept_answers(values)


def wrap_answers(config: Config, network: nn.Module) -> nn.Module:
    """Let a network give all the answers that the loss asks for."""
    if config.lwf:
        return HeadAnswers(network, with_blocks=config.block_loss != 0)
    return BlockAnswers(network) if config.block_loss else network


def build_network(config: Config, num_classes: int | None) -> tuple[nn.Module, str]:
    """Build the network with its starting weights.

    Args:
        config: Of the run.
        num_classes: Outputs of the classifier; None for those of the weights.

    Returns:
        The network, and where its weights come from.

    Raises:
        ValueError: The name, an option of the growth or the weights do not fit.
    """
    name, growth = timm_devnet.resolve_name(config.model)
    options: dict[str, Any] = {'num_classes': num_classes, **growth}
    if config.img_size is not None and has_one_size(growth.get('source', name)):
        options['img_size'] = config.img_size
    if config.drop is not None:
        options['drop_rate'] = config.drop
    if not (config.grow and is_plain(name)):  # else they are for what it grows by
        if config.scale_init is not None:
            options['scale_init'] = 0.0 if config.scale_init == 'off' else config.scale_init
        if config.new_init is not None:
            options['new_init'] = config.new_init
    overlay, origin = find_weights(config)
    try:
        model: Any = timm.create_model(
            name, pretrained=config.pretrained, pretrained_cfg_overlay=overlay or None, **options
        )
    except (HfHubHTTPError, OSError) as error:
        raise ValueError(
            f'cannot get the weights of {config.model} from {origin} ({type(error).__name__}): check the network, '
            f'give --pretrained-path FILE or --no-pretrained{package_advice(config.model)}'
        ) from error
    except (RuntimeError, TypeError, *UNREADABLE_WEIGHTS) as error:
        # timm's message advises to open a pickle all the same, which nobody should.
        if isinstance(error.__cause__ or error, UNREADABLE_WEIGHTS):
            raise ValueError(f'{origin} is not a file of plain weights, so it was not opened') from error
        raise ValueError(f'cannot build --model {config.model} with {options} from {origin}: {error}') from error
    if config.grad_checkpointing:
        try:
            model.set_grad_checkpointing(True)
        except (AssertionError, AttributeError) as error:
            name = config.model
            raise ValueError(f'{name} cannot compute activations again: leave out --grad-checkpointing') from error
        count_batches_once(model)
    # timm keeps a copy of weights given in memory.
    model.pretrained_cfg.pop('state_dict', None)
    # A network that came as a delta is whole now, and so are the checkpoints of the run.
    getattr(model, '_model_args', {}).pop('delta_of', None)
    if config.block_loss and not timm_devnet.block_names(model) and not config.first_growths():
        raise ValueError(
            f'--block-loss {config.block_loss} needs a grown network: {config.model} has no blocks (leave it out, or '
            'grow one, as in tf_efficientnet_lite0_mwa512)'
        )
    return model, origin


def begin_classifier(config: Config, network: Any, classes: Sequence[str], num_classes: int) -> bool:
    """Give a network that was just built a random classifier, if its own is for as many classes of other names.

    Args:
        config: Of the run.
        network: As `build_network` gave it.
        classes: Of the data.
        num_classes: Outputs that it must have.

    Returns:
        Whether its classifier is random although its weights are not.
    """
    is_told = config.pretrained_path is None or not isinstance(network, Grown) or config.keep_heads
    if not config.pretrained or not is_told:
        return False  # nothing tells whether a grown network has taken the classifier of a file
    if not config.keep_heads:  # else it has the classifier of its weights still, whatever it is for
        saved = saved_names(network)
        if network.pretrained_cfg.get('num_classes') != num_classes:
            return True
        if not saved or saved[: len(classes)] == list(classes):
            return False
    network.reset_classifier(num_classes)
    if isinstance(network, Grown):
        network.init_classifier()
    return True


def saved_names(network: Any) -> list[str]:
    """List the names of a network's outputs that were saved with it; none where there are none."""
    saved = network.pretrained_cfg.get('label_names') or []
    if isinstance(saved, dict):
        saved = [saved[key] for key in sorted(saved, key=int)]
    return [str(name) for name in saved]


def is_plain(name: str) -> bool:
    """Whether a network is known not to have grown, by its name or the configuration beside its weights."""
    if name.startswith(LOCAL):
        return not growths_of(name)
    return ':' not in name and not is_grown_name(name.partition('.')[0])


def has_one_size(name: str) -> bool:
    """Whether a network is built for images of one size, as transformers with learnt positions are."""
    with contextlib.suppress(RuntimeError):  # no such tag, which timm says when it builds the network
        return ':' not in name and getattr(get_pretrained_cfg(name), 'fixed_input_size', False)
    return False


def count_batches_once(model: nn.Module) -> None:
    """Keep batch norms from taking in a batch again when the backward pass computes their layers again.

    torch's checkpointing does not: the running statistics would follow every batch twice.
    """

    def before(module: Any, inputs: Any) -> None:
        module.usual_momentum = module.momentum
        if torch._C._current_graph_task_id() != -1:  # as torch.utils.checkpoint itself tells that it is in a backward
            module.momentum = 0.0

    def after(module: Any, inputs: Any, output: Any) -> None:
        if module.momentum == 0.0 != module.usual_momentum:
            module.num_batches_tracked -= 1
        module.momentum = module.usual_momentum

    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.register_forward_pre_hook(before)
            module.register_forward_hook(after, always_call=True)


def find_weights(config: Config) -> tuple[dict[str, Any], str]:
    """Find the starting weights: the user's file, an installed package, or those that timm knows of.

    Returns:
        What to lay over timm's pretrained_cfg, and the name of the place.
    """
    if not config.pretrained:
        return {}, 'random numbers'
    if config.pretrained_path is not None:
        if not Path(config.pretrained_path).is_file():
            raise ValueError(f'--pretrained-path {config.pretrained_path} is not a file')
        return weights_of_file(config), config.pretrained_path
    if config.model.startswith(LOCAL):
        return {}, config.model.removeprefix(LOCAL)
    package = lite_package(config.model)
    weights = packaged_weights(package)
    if weights is not None:
        return {'state_dict': timm_devnet.convert_lite(weights)}, f'the package {package}'
    return {}, HUB


def weights_of_file(config: Config) -> dict[str, Any]:
    """Find what a file holds for the network; a grown network reads the file itself and checks it.

    timm would load the file of any network into a plain one without a word, as soon as the number of classes differs.

    Raises:
        ValueError: The file is another network's.
    """
    name, growth = timm_devnet.resolve_name(config.model)
    model: Any = timm.create_model(name, device='meta', **growth)
    if timm_devnet.block_names(model):
        return {'file': config.pretrained_path}
    try:
        weights = load_state_dict(str(config.pretrained_path))
    except (RuntimeError, *UNREADABLE_WEIGHTS) as error:
        raise ValueError(f'{config.pretrained_path} is not a file of plain weights, so it was not opened') from error
    given = timm_devnet.to_own_layout(weights, model)
    head = model.pretrained_cfg['classifier'] + '.'
    own = {key for key in model.state_dict() if not key.startswith(head)}
    lacking = {key for key in own - given.keys() if not key.endswith('num_batches_tracked')}
    unknown = {key for key in given.keys() - own if not key.startswith(head)}
    if lacking or unknown:
        raise ValueError(
            f'--pretrained-path {config.pretrained_path} is not a checkpoint of {config.model}: it lacks '
            f'{sorted(lacking)[:3]} ({len(lacking)} in all) and has besides {sorted(unknown)[:3]} ({len(unknown)})'
        )
    return {'state_dict': given}


def describe_base(config: Config, model: nn.Module, origin: str) -> dict[str, str | None] | None:
    """Describe for run.json what a network stands on, before it is trained.

    Args:
        config: Of the run.
        model: As `build_network` gave it.
        origin: The same.

    Returns:
        model and revision by which others can get the weights (None where nobody can), tensors (their checksum),
        license (None where it is not known, as of a file) and origin; None for a network that begins with random
        numbers.
    """
    if not config.pretrained:
        return None
    cfg: dict[str, Any] = vars(model)['pretrained_cfg']
    is_file = config.pretrained_path is not None or cfg.get('source') == 'local-dir'
    license = PACKAGE_LICENSE if origin == f'the package {lite_package(config.model)}' else cfg.get('license')
    base = delta.base_of(model, is_local=origin != HUB)
    if origin == HUB and not cfg.get('hf_hub_id'):
        origin = cfg.get('file') or str(cfg.get('url'))
    return {
        'model': base.model if base else None,
        'revision': base.revision if base else None,
        'tensors': base.tensors if base else delta.digest(delta.first_tensors(model), ()),
        'license': None if is_file else license,
        'origin': origin,
    }


def package_advice(name: str) -> str:
    package = lite_package(name)
    return f', or: pip install {package}' if package else ''


def count_classes(config: Config, classes: list[str]) -> int:
    """Tell how many outputs the classifier has.

    Raises:
        ValueError: Fewer were asked for than the data has.
    """
    if config.num_classes is not None and config.num_classes < len(classes):
        raise ValueError(f'--num-classes {config.num_classes}, but the data has {len(classes)} classes: leave it out')
    return config.num_classes or len(classes)


def describe(config: Config, model: nn.Module, regime: str) -> str:
    """Say in a line what learns."""
    count = count_parameters(model)
    learning, total = count['learning'], count['all']
    grown = f' grown by {vars(model)["growth"]}' if config.grow and 'growth' in vars(model) else ''
    manner = regime if config.lora is None else f'{regime}, old layers by LoRA of rank {config.lora}'
    manner += ', statistics of old BatchNorms frozen' if config.freeze_bn_stats else ''
    return f'{config.model}{grown}: {learning / 1e6:.2f} M of {total / 1e6:.2f} M parameters learn (regime {manner})'


def count_parameters(model: nn.Module) -> dict[str, int]:
    """Count all parameters, and those that learn."""
    parameters = list(model.parameters())
    learning = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    return {'learning': learning, 'all': sum(parameter.numel() for parameter in parameters)}


def input_format(model: nn.Module, img_size: int | None) -> InputFormat:
    """Take the network's own input format, at another size if one is given."""
    own = resolve_data_config({}, model=model)
    return InputFormat(img_size or own['input_size'][-1], tuple(own['mean']), tuple(own['std']), own['interpolation'])


def expected_input(config: Config) -> InputFormat:
    """Tell the input format of a network before it is built, for which the number of classes need not be known.

    Raises:
        ValueError: There is no such network.
    """
    name, growth = timm_devnet.resolve_name(config.model)
    try:
        model = timm.create_model(name, device='meta', **growth)
    except (RuntimeError, TypeError, OSError, HfHubHTTPError) as error:
        raise ValueError(f'cannot build --model {config.model}: {error}') from error
    return input_format(model, config.img_size)


def check_img_size(model: nn.Module, img_size: int) -> None:
    """Refuse images that are too small for the trunk, before anything is trained.

    Shapes are tried on the meta device, which computes nothing.

    Raises:
        ValueError: Names the smallest size that works.
    """
    if accepts(model, img_size):
        return
    largest = max(2 * img_size, resolve_data_config({}, model=model)['input_size'][-1])
    sizes = range(img_size + 1, largest + 1)
    smallest = bisect.bisect_left(sizes, True, key=lambda size: accepts(model, size))
    fix = f'give at least --img-size {sizes[smallest]}' if smallest < len(sizes) else f'none up to {largest} fits'
    raise ValueError(f'--img-size {img_size} does not fit the trunk of this network: {fix}')


def accepts(model: nn.Module, img_size: int) -> bool:
    """Tell whether the network can compute on images of this size."""
    was_training = model.training
    model.eval()
    try:
        run_on_meta(model, torch.empty(2, 3, img_size, img_size, device='meta'))
    except (RuntimeError, AssertionError, ValueError):
        return False
    finally:
        model.train(was_training)
    return True
