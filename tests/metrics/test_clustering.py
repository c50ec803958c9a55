from __future__ import annotations

import math

import torch

from neuralgraph.metrics.clustering import cluster_scores


def test_clusters_are_matched_to_types_and_noise_is_wrong():
    points = torch.tensor([[0.0], [0.01], [0.02], [1.0], [1.01], [1.02], [9.0]])
    types = torch.tensor([1, 1, 1, 0, 0, 0, 0])
    scores = cluster_scores(points, types, eps=0.1, min_samples=2)
    assert scores["n_clusters"] == 2
    assert scores["cluster_acc"] == 6 / 7
    assert scores["silhouette"] > 0.9


def test_one_blob_is_one_cluster_without_silhouette():
    scores = cluster_scores(
        torch.zeros(6, 2), torch.tensor([0, 0, 0, 1, 1, 1]), eps=1, min_samples=2
    )
    assert scores["n_clusters"] == 1 and scores["cluster_acc"] == 0.5
    assert math.isnan(scores["silhouette"])


def test_all_noise_is_no_cluster():
    points = torch.arange(4.0)[:, None]
    scores = cluster_scores(points, torch.tensor([0, 0, 1, 1]), eps=0.1, min_samples=2)
    assert scores["n_clusters"] == 0 and scores["cluster_acc"] == 0
