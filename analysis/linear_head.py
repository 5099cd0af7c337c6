"""A linear classifier fitted anew on features that stay as they are: multinomial logistic regression."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Of LBFGS; it stops by itself when nothing moves any more.
MOST_STEPS = 500


def fit_head(features: Tensor, targets: Tensor, classes: int, penalty: float = 1.0) -> nn.Linear:
    """Fit a linear classifier to its one optimum by LBFGS; nothing is drawn by lot.

    Lowers the sum of the cross-entropies plus `penalty` times half the squared weights, on features that are brought to
    mean 0 and standard deviation 1, so that the penalty means the same for all. Biases go free.

    Args:
        features: Shape (N, units).
        targets: Classes, shape (N,).
        classes: Outputs.
        penalty: Weight of the squares; scikit-learn's 1 / C.

    Returns:
        The classifier of features as they were given.

    Raises:
        ValueError: There are no features.

    Source:
        The objective is that of scikit-learn's LogisticRegression.
    """
    if not len(features):
        raise ValueError('a classifier cannot be fitted to no image: give training images')
    mean, spread = features.mean(0), features.std(0, correction=0)
    scale = torch.where(spread > 0, 1 / spread.clamp(min=1e-12), torch.zeros_like(spread))
    inputs = (features - mean) * scale
    weight = torch.zeros(classes, features.shape[1], device=features.device, requires_grad=True)
    bias = torch.zeros(classes, device=features.device, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=MOST_STEPS, tolerance_grad=1e-7, tolerance_change=1e-10, line_search_fn='strong_wolfe'
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(F.linear(inputs, weight, bias), targets, reduction='sum')
        loss = (loss + penalty / 2 * weight.square().sum()) / len(inputs)
        loss.backward()
        return loss

    optimizer.step(closure)
    head = nn.Linear(features.shape[1], classes, device=features.device)
    with torch.no_grad():
        head.weight.copy_(weight * scale)
        head.bias.copy_(bias - F.linear(mean * scale, weight))
    return head
