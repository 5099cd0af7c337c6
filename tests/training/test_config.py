import dataclasses
from pathlib import Path

import pytest
import timm
import tyro

from training.config import FREE_ON_RESUME, Config


def test_json_round_trip() -> None:
    config = Config(data_dir='somewhere', scale_init='off', drop=0.2, epochs=3, opt_betas=(0.9, 0.99))
    assert Config.from_json(config.to_json()) == config


def test_json_of_another_version_is_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown options \['colour'\]"):
        Config.from_json('{"colour": 1}')


def test_every_field_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        tyro.cli(Config, args=['--help'])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    source = ' '.join(line.strip(' │') for line in text.splitlines())
    for field in dataclasses.fields(Config):
        flag = f'--{field.name.replace("_", "-")} '
        assert flag in source or f'{flag[:-1]},' in source
    assert source.count('(default:') == len(dataclasses.fields(Config))


@pytest.mark.parametrize(
    ('flags', 'field', 'value'),
    [
        (['--data-dir', 'x'], 'data_dir', 'x'),
        (['--no-pretrained'], 'pretrained', False),
        (['--scale-init', 'off'], 'scale_init', 'off'),
        (['--scale-init', '5'], 'scale_init', 5.0),
        (['--mixed-precision', 'bf16'], 'mixed_precision', 'bf16'),
        (['--bad-images', 'skip'], 'bad_images', 'skip'),
        (['--scale', '0.3', '1'], 'scale', (0.3, 1.0)),
        (['--opt-betas', '0.9', '0.99', '0.999'], 'opt_betas', (0.9, 0.99, 0.999)),
        (['--no-aug'], 'no_aug', True),
        (['--model-ema'], 'model_ema', True),
    ],
)
def test_flags(flags: list[str], field: str, value: object) -> None:
    assert getattr(tyro.cli(Config, args=flags), field) == value


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'batch_size': 0}, r'--batch-size 0 is out of range: it must be at least 1'),
        ({'lr': 0.0}, r'--lr 0.0 .* above 0'),
        ({'l2_sp': -0.1}, r'--l2-sp -0.1 .* at least 0'),
        (
            {'l2_sp': 0.1, 'pretrained': False},
            r'--l2-sp 0.1 pulls to pretrained weights and --no-pretrained leaves none',
        ),
        ({'freeze_bn_stats': True, 'pretrained': False}, r'--freeze-bn-stats keeps .*: leave out --no-pretrained'),
        ({'l2_sp': 0.1, 'regime': 'new'}, r'--l2-sp 0.1: in regime new no pretrained layer learns'),
        ({'lora': 0}, r'--lora 0 .* at least 1'),
        ({'lora': 4, 'regime': 'new'}, r'--lora 4: in regime new no old layer learns'),
        ({'lora_alpha': 8.0}, r'--lora-alpha 8.0 needs --lora'),
        ({'lora': 4, 'l2_sp': 0.1, 'grow': ('wa16@1',)}, r'--lora 4 freezes old layers .* leave out --grow, --l2-sp'),
        ({'lora': 4, 'keep_heads': True, 'grow': ('norm',)}, r'--lora 4 freezes .* leave out --grow, --keep-heads'),
        ({'lora': 4, 'keep_heads': True}, r'--lora 4 freezes .* leave out --keep-heads$'),
        ({'label_share': 0.0}, r'--label-share 0.0 .* above 0 and at most 1'),
        ({'label_share': 0.5, 'labels_per_class': 2}, r'--labels-per-class 2 and --label-share 0.5 both choose'),
        ({'workers': -1}, r'--workers -1 .* at least 0'),
        ({'smoothing': 1.0}, r'--smoothing 1.0 .* below 1'),
        ({'hflip': 2.0}, r'--hflip 2.0 .* between 0 and 1'),
        ({'scale_init': -1.0}, r'--scale-init -1.0 .* above 0, or off'),
        ({'checkpoint_every': '5m'}, r'--checkpoint-every 5m .* updates \(500\), seconds \(600s\), or epoch'),
        ({'checkpoint_every': '0s'}, r'--checkpoint-every 0s .* updates'),
        ({'keep_checkpoints': 0}, r'--keep-checkpoints 0 .* at least 1'),
        ({'opt': 'momentun'}, r'--opt momentun is not an optimizer of timm; near it: momentum'),
        ({'dataset': 'digits', 'data_dir': 'x'}, r'leave out --data-dir x'),
        ({'pretrained': False, 'pretrained_path': 'x'}, r'leave out one of them'),
        ({'opt_eps': 1e-3}, r'--opt momentum has no epsilon: leave out --opt-eps 0.001'),
        ({'opt': 'adamw', 'opt_betas': (0.9,)}, r'--opt adamw has 2 betas, not 1'),
        ({'opt_betas': (0.9, 0.99)}, r'--opt momentum has 0 betas, not 2'),
        ({'layer_decay': 1.5}, r'--layer-decay 1.5 .* above 0 and at most 1'),
        ({'model_ema_decay': 1.0}, r'--model-ema-decay 1.0 .* below 1'),
        ({'no_aug': True, 'aa': '3a', 'reprob': 0.1}, r'--no-aug leaves .*: leave out --aa, --reprob'),
        ({'no_aug': True, 'hflip': 0.5}, r'leave out --hflip'),
        ({'scale': (0.3, 1.0)}, r'--scale and --ratio are for crop modes of timm'),
        ({'scale': (1.0, 0.3), 'train_crop_mode': 'rrc'}, r'--scale \(1.0, 0.3\) .* the lesser first'),
        ({'mixup': 0.1, 'batch_size': 3}, r'mix pairs of images: --batch-size 3 must be even'),
        ({'aa': 'original', 'color_jitter': 0.4}, r'no colours beside --aa original'),
        ({'aa': 'random'}, r'--aa random is none of timm'),
        ({'aa': 'rand-m9-x3'}, r'--aa rand-m9-x3 is none of timm'),
        ({'aa': 'rand-m9-mstd'}, r'--aa rand-m9-mstd is none of timm'),
        ({'aa': 'rand-tweighted'}, r'--aa rand-tweighted is none of timm'),
        (
            {'cache_features': 1, 'regime': 'new', 'thaw': 'all@1', 'mixup': 1.0},
            r'whole images: leave out --mixup, --thaw',
        ),
        ({'thaw': 'all'}, r'--thaw all is not understood: write REGIME@EPOCHS'),
        ({'thaw': 'fc7-new@5,all@5'}, r'must name epochs in rising order'),
        ({'thaw': 'all@0', 'epochs': 3}, r'at least 1 and below --epochs 3'),
        ({'thaw': 'all@3', 'epochs': 3}, r'at least 1 and below --epochs 3'),
        ({'cache_features': 1, 'regime': 'new', 'grow': ('wa16@1',)}, r'whole images: leave out --grow'),
        ({'grow': ('wa16@',)}, r'--grow wa16@ is not understood: write GROWTH, or GROWTH@EPOCHS'),
        ({'grow': ('wa16@5', 'wa8')}, r'--grow wa16@5 wa8 must name epochs in rising order'),
        ({'grow': ('wa16@5', 'wa8@5')}, r'--grow wa16@5 wa8@5 must name epochs in rising order'),
        ({'grow': ('wa16@0',), 'epochs': 3}, r'--grow wa16@0 is out of range: .* below --epochs 3'),
        ({'grow': ('wa16@3',), 'epochs': 3}, r'--grow wa16@3 is out of range: .* below --epochs 3'),
    ],
)
def test_values_no_run_can_have(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Config(**options).validate()


@pytest.mark.parametrize(
    'name', ['rand-m9-mstd0.5-inc1', 'rand-tweights', 'augmix-m5-w4-d2', 'original-mstd0.5', 'v0r', '3a']
)
def test_augmentations_of_timm_are_known(name: str) -> None:
    Config(aa=name).validate()


def test_thaws_are_read() -> None:
    config = Config(thaw='fc7-new@5, all@10', epochs=11)
    config.validate()
    assert config.thaws() == [('fc7-new', 5), ('all', 10)]
    assert Config().thaws() == []


def test_without_augmentation_nothing_flips() -> None:
    config = Config(data_dir='x', no_aug=True).resolved()
    config.validate()
    assert config.hflip == 0


def test_without_flags_the_digits_are_the_data() -> None:
    config = Config().resolved()
    assert (config.dataset, config.img_size, config.epochs, config.hflip) == ('digits', 64, 3, 0.0)


def test_a_folder_keeps_the_size_of_the_network_and_flips() -> None:
    config = Config(data_dir='x').resolved()
    assert (config.dataset, config.img_size, config.epochs, config.hflip) == (None, None, 20, 0.5)


def test_what_the_user_says_is_kept() -> None:
    config = Config(img_size=32, epochs=1, hflip=0.5, block_loss=0.25)
    assert config.resolved() == dataclasses.replace(config, dataset='digits')


def test_changed_options_are_named() -> None:
    with pytest.raises(ValueError, match=r'--lr was 0.01, is 0.1, --seed was 42, is 1'):
        Config(lr=0.1, seed=1).refuse_changes(Config())


def test_a_run_may_be_prolonged_and_moved() -> None:
    Config(epochs=9, output='elsewhere', data_dir='moved', workers=0).refuse_changes(Config())


def test_free_options_exist() -> None:
    assert {field.name for field in dataclasses.fields(Config)} >= FREE_ON_RESUME


@pytest.mark.parametrize(
    ('model', 'given', 'weight'),
    [
        ('tf_efficientnet_lite0_mwa512', None, 1.0),
        ('vgg16_bn_xwa', None, 1.0),
        ('vgg16_wa2048_mwa64.tag', None, 1.0),
        ('tf_efficientnet_lite0_r2u64+r3u0', None, 1.0),
        ('tf_efficientnet_lite0_wwa512', None, 0.0),
        ('tf_efficientnet_lite0_norm', None, 0.0),
        ('tf_efficientnet_lite0_skip', None, 0.0),
        ('tf_efficientnet_lite0', None, 0.0),
        ('local-dir:output/train/x', None, 0.0),
        ('tf_efficientnet_lite0_mwa512', 0.0, 0.0),
        ('tf_efficientnet_lite0_wa512', 2.0, 2.0),
    ],
)
def test_blocks_answer_alone_where_new_units_read_lower_levels(model: str, given: float | None, weight: float) -> None:
    assert Config(model=model, block_loss=given).resolved().block_loss == weight


def test_block_loss_is_told_from_the_growth_of_a_folder(tmp_path: Path) -> None:
    network = timm.create_model('devnet', source='test_efficientnet', growth='wa8_mwa16')
    timm.models.save_for_hf(network, tmp_path / 'best', safe_serialization=True)
    plain = timm.create_model('test_efficientnet')
    timm.models.save_for_hf(plain, tmp_path / 'plain_mwa16', safe_serialization=True)
    models = (str(tmp_path), f'local-dir:{tmp_path}/best', str(tmp_path / 'plain_mwa16'), 'devnet')
    assert [Config(model=model).resolved().block_loss for model in models] == [1.0, 1.0, 0.0, 1.0]
    assert Config(model=models[2], grow=('wa8', 'mwa16')).resolved().block_loss == 1.0
    assert Config(model=models[2], grow=('wa8', 'mwa16@3')).resolved().block_loss == 0.0


def test_what_has_grown_before_the_first_epoch_can_be_cached() -> None:
    Config(cache_features=1, regime='new', grow=('wa16',)).resolved().validate()
