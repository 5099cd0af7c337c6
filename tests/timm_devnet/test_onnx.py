"""Grown networks through torch.export to ONNX and onnxruntime."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import timm_devnet

onnxruntime = pytest.importorskip('onnxruntime')
pytest.importorskip('onnxscript')

# One of each kind, and one of the families with a manner of their own.
NETWORKS = {
    'test_resnet': 'mwa8',
    'test_convnext': 'wwa8',
    'test_vit': 'wa8_da8',
    'mobilenetv3_small_050': 'dwa8',
    'tf_efficientnet_lite0': 'mwa8',
}


@pytest.mark.filterwarnings('ignore')  # of the exporter's own
@pytest.mark.parametrize('name', NETWORKS)
def test_onnxruntime_gives_the_same_answers(name: str, tmp_path: Path) -> None:
    model: Any = timm_devnet.grow(timm.create_model(name, num_classes=5), NETWORKS[name]).eval()
    images = torch.rand(1, 3, 96, 96)
    torch.onnx.export(model, (images,), str(tmp_path / 'grown.onnx'), dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(str(tmp_path / 'grown.onnx'), providers=['CPUExecutionProvider'])
    answers = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: images.numpy()})[0])
    with torch.no_grad():
        assert (answers - model(images)).abs().max() < 1e-4
