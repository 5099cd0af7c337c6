"""Features as points in a plane, and numbers that say how well classes lie apart before they are flattened."""

from __future__ import annotations

import importlib.util

import numpy as np

# t-SNE looks at so many directions of greatest variance; more cost time and change little.
DIRECTIONS = 50
PERPLEXITY = 30.0
NEIGHBOURS = 10
MOST_PAIRED = 30_000


def require_packages() -> None:
    """Refuse to begin without the packages that this needs.

    Raises:
        ValueError: Says how to get them.
    """
    lacking = [name for name, module in (('openTSNE', 'openTSNE'), ('scikit-learn', 'sklearn')) if not _has(module)]
    if lacking:
        raise ValueError(f"t-SNE needs {' and '.join(lacking)}: pip install 'timm_devnet[analyze]'")


def _has(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def flatten(features: np.ndarray, seed: int = 0, jobs: int = 1) -> np.ndarray:
    """Lay features out in a plane by t-SNE: near stays near; distances between groups mean nothing.

    Args:
        features: Shape (N, directions).
        seed: Of what is drawn by lot.
        jobs: Threads.

    Returns:
        Points, shape (N, 2).

    Raises:
        ValueError: There are fewer than five points.

    Source:
        Visualizing Data using t-SNE (van der Maaten, Hinton, 2008), as openTSNE computes it.
    """
    if len(features) < 5:
        raise ValueError(f't-SNE needs at least 5 images, and these are {len(features)}: give more')
    from openTSNE import TSNE
    from sklearn.decomposition import PCA

    directions = min(DIRECTIONS, *features.shape)
    if directions < features.shape[1]:
        features = PCA(directions, svd_solver='randomized', random_state=seed).fit_transform(features)
    perplexity = min(PERPLEXITY, (len(features) - 1) / 4)
    # Up to here looking at all pairs takes less time than building an index of near ones.
    neighbors = 'exact' if len(features) <= MOST_PAIRED else 'auto'
    layout = TSNE(perplexity=perplexity, neighbors=neighbors, n_jobs=jobs, random_state=seed)
    return np.asarray(layout.fit(np.ascontiguousarray(features)))


def neighbour_accuracy(features: np.ndarray, targets: np.ndarray, count: int = NEIGHBOURS) -> float:
    """Tell how often an image's nearest others say its class, in percent: leave-one-out k nearest neighbours.

    Distances are Euclidean; every neighbour has one vote, and of classes with as many votes the lowest number wins.

    Args:
        features: Shape (N, directions).
        targets: Classes, shape (N,).
        count: Neighbours, fewer where there are fewer images.
    """
    from sklearn.neighbors import NearestNeighbors

    count = min(count, len(features) - 1)
    found = NearestNeighbors(n_neighbors=count, algorithm='brute').fit(features).kneighbors(return_distance=False)
    votes = np.zeros((len(features), int(targets.max()) + 1), dtype=int)
    np.add.at(votes, (np.arange(len(features))[:, None], targets[found]), 1)
    return 100 * float((votes.argmax(1) == targets).mean())


def silhouette(features: np.ndarray, targets: np.ndarray) -> float | None:
    """Tell how much nearer images are to their own class than to the nearest other: from -1 to 1.

    Args:
        features: Shape (N, directions).
        targets: Classes, shape (N,).

    Returns:
        The mean over images, by Euclidean distances; None where there are not at least two classes, one of several
        images.

    Source:
        Silhouettes: a graphical aid to the interpretation and validation of cluster analysis (Rousseeuw, 1987).
    """
    from sklearn.metrics import silhouette_score

    if not 2 <= len(np.unique(targets)) < len(targets):
        return None
    return float(silhouette_score(features, targets))
