"""A small network of every family of timm's grows, in numbers or, where it is large, by shapes."""

import pytest

from benchmarks.coverage import KINDS, check, family_file, print_report, share_by_kind
from timm_devnet.growable import list_plain

LARGEST = 4.0  # millions of parameters that are run with numbers
GROW = (
    *('levit_128s', 'visformer_tiny', 'pit_ti_224', 'nest_tiny_jx', 'efficientvit_m0', 'shvit_s1'),
    *('alexnet', 'beit_base_patch16_224', 'eca_botnext26ts_256', 'test_byobnet', 'cait_xxs24_224'),
    *('convit_tiny', 'convmixer_768_32', 'test_convnext', 'cpubone_b0_bfrobust', 'csatv2'),
    *('cs3darknet_focus_s', 'cspnext_l', 'davit_tiny', 'deepseek_vit_412m', 'deit_tiny_patch16_224'),
    *('densenet121', 'dla46x_c', 'dpn68', 'edgenext_xx_small', 'efficientformer_l1', 'efficientformerv2_s0'),
    *('test_efficientnet', 'efficientvit_b0', 'eva02_tiny_patch14_336', 'fasternet_t0', 'fastvit_t8'),
    *('focalnet_tiny_srf', 'gcvit_xxtiny', 'ghostnet_100', 'hardcorenas_b', 'hgnetv2_b0', 'hiera_tiny_224'),
    *('hieradet_small', 'hrnet_w18_small', 'iformer_h', 'inception_next_atto', 'inception_resnet_v2'),
    *('inception_v3', 'inception_v4', 'lcnetv2_base', 'lowformer_b0', 'test_mambaout', 'test_coatnet'),
    *('poolformerv2_s12', 'resmlp_12_224', 'mobilenetv3_small_050', 'mobilenetv5_300m', 'mobilevit_xxs'),
    *('mvitv2_tiny', 'naflexvit_base_patch16_parfac_gap', 'nasnetalarge', 'nextvit_small', 'test_nfnet'),
    *('pnasnet5large', 'pvt_v2_b0', 'qwen3_vit_306m', 'rdnet_tiny', 'regnetx_002', 'repghostnet_050'),
    *('repvit_m0_9', 'res2next50', 'resnest14d', 'test_resnet', 'resnetv2_18', 'rexnet_100', 'selecsls60'),
    *('legacy_seresnet18', 'skresnet18', 'starnet_s1', 'swiftformer_xs'),
    *('swin_tiny_patch4_window7_224', 'swinv2_tiny_window16_256', 'swinv2_cr_tiny_ns_224', 'tiny_vit_5m_224'),
    *('tnt_s_legacy_patch16_224', 'tresnet_m', 'twins_svt_small', 'vgg11', 'test_vit'),
    *('vit_tiny_r_s16_p8_224', 'test_vit_relpos', 'samvit_base_patch16', 'vitamin_base_224', 'volo_d1_224'),
    *('ese_vovnet19b_dw', 'legacy_xception', 'xception41p', 'xcit_nano_12_p16_224'),
)
# Those of which only the top grows.
ON_TOP = ('crossvit_tiny_240', 'coat_tiny')
REFUSED = {
    'efficientvim_m1': 'spread over several places',
    'gemma4_vit_167m': 'could not be run to find its levels',
}


def result_of(name: str, kind: str) -> str:
    [row] = check((name, LARGEST), [kind])
    return row['result']


@pytest.mark.parametrize('name', GROW)
def test_a_network_of_every_family_grows(name: str) -> None:
    assert result_of(name, 'mwa') == 'ok'


@pytest.mark.parametrize('name', ON_TOP)
def test_networks_with_several_features_grow_on_top(name: str) -> None:
    assert result_of(name, 'da') == 'ok' and 'reads level' in result_of(name, 'mwa')


@pytest.mark.parametrize(('name', 'reason'), REFUSED.items())
def test_networks_that_cannot_grow_are_refused_with_the_reason(name: str, reason: str) -> None:
    assert reason in result_of(name, 'da')


def test_no_family_is_left_out() -> None:
    families = {family_file(name) for name in (*GROW, *ON_TOP, *REFUSED)}
    # Its recurrent layers take a minute on the meta device.
    assert {family_file(name) for name in list_plain()} - families == {'sequencer'}


def test_the_report_counts_and_names_reasons(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        dict(
            name=name, family='resnet', kind=kind, how='cpu', result='ok' if name == 'a' else 'refused: no', seconds=''
        )
        for name in ('a', 'b')
        for kind in KINDS
    ]
    assert share_by_kind(rows) == dict.fromkeys(KINDS, 50.0)
    print_report(rows)
    printed = capsys.readouterr().out
    assert '50.0 % (wanted 95)' in printed and '- refused: no: b (da), b (norm)' in printed
