"""Agreement of clusters found in an embedding with known types."""

from __future__ import annotations

from torch import Tensor


def cluster_scores(
    embedding: Tensor, types: Tensor, *, eps: float, min_samples: int
) -> dict[str, float]:
    """Cluster points by density and compare with their types.

    Clusters are those of DBSCAN; noise is no cluster, and a noise point counts as wrong. Clusters
    are matched one to one with types so that the accuracy is largest.

    Args:
        embedding: ``(n_point, n_dim)``.
        types: ``(n_point,)`` long.
        eps: Radius of a neighbourhood, in units of the embedding.
        min_samples: Points in the neighbourhood of a core point, itself included.
    Returns:
        ``cluster_acc`` in [0, 1], ``n_clusters``, and ``silhouette`` in [-1, 1] over the points
        that belong to a cluster (``nan`` with fewer than two clusters).
    Source:
        Ester et al. (1996), Rousseeuw (1987), Kuhn (1955).
    """
    import numpy as np
    from scipy.optimize import linear_sum_assignment
    from sklearn.cluster import DBSCAN
    from sklearn.metrics import silhouette_score

    points = embedding.detach().cpu().double().numpy()
    known = types.detach().cpu().numpy()
    label = DBSCAN(eps=eps, min_samples=min_samples).fit_predict(points)
    n_clusters = int(label.max()) + 1
    names = np.unique(known)
    table = np.zeros((n_clusters, len(names)))
    for cluster in range(n_clusters):
        for place, name in enumerate(names):
            table[cluster, place] = np.sum((label == cluster) & (known == name))
    rows, columns = linear_sum_assignment(-table)
    inside = label >= 0
    silhouette = float("nan")
    if n_clusters > 1 and inside.sum() > n_clusters:
        silhouette = float(silhouette_score(points[inside], label[inside]))
    return {
        "cluster_acc": float(table[rows, columns].sum() / len(known)),
        "n_clusters": float(n_clusters),
        "silhouette": silhouette,
    }
