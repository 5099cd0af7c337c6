"""A linear classifier fitted anew."""

import numpy as np
import pytest
import torch

from analysis.linear_head import fit_head


def make(images: int = 60, units: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    targets = torch.arange(images) % 3
    features = torch.randn(images, units) * torch.arange(1, units + 1) + targets[:, None]
    return features, targets


@pytest.mark.parametrize('penalty', [1.0, 0.1])
def test_it_is_the_optimum_that_scikit_learn_finds(penalty: float) -> None:
    linear_model = pytest.importorskip('sklearn.linear_model')
    features, targets = make()
    head = fit_head(features, targets, 3, penalty)
    scaled = (features - features.mean(0)) / features.std(0, correction=0)
    theirs = linear_model.LogisticRegression(C=1 / penalty, tol=1e-8, max_iter=2000).fit(
        scaled.numpy(), targets.numpy()
    )
    ours = head(features).softmax(1).detach().numpy()
    np.testing.assert_allclose(ours, theirs.predict_proba(scaled.numpy()), atol=2e-4)


def test_units_that_never_vary_do_no_harm() -> None:
    features, targets = make()
    padded = torch.cat([features, torch.full((60, 2), 3.0)], 1)
    torch.testing.assert_close(
        fit_head(padded, targets, 3)(padded), fit_head(features, targets, 3)(features), rtol=1e-3, atol=1e-3
    )


def test_the_same_features_give_the_same_head() -> None:
    features, targets = make()
    assert torch.equal(fit_head(features, targets, 3).weight, fit_head(features, targets, 3).weight)


def test_no_image_is_refused() -> None:
    with pytest.raises(ValueError, match='give training images'):
        fit_head(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), 3)
