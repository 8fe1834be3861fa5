"""Clusterings to hold K-means against, by scikit-learn: mini-batch K-means, and Ward's tree as in ConceptX.

They run in one process on one thread, which fixes their bits, and may leave concepts empty. Shapes: n points, k concepts, d
dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from threadpoolctl import threadpool_limits

from raypipe.science import kmeans_visits as visits
from raypipe.science.kmeans_checkpoint import Fit
from raypipe.science.kmeans_kernels import F32, I32
from raypipe.science.kmeans_points import LocalPoints, keyed, measure
from raypipe.science.seeding import Seeding, generator, too_few

WARD_SAMPLE = 20_000  # points of Ward's tree, whose cost grows with their square; concept_metrics.md E5


def minibatch(
    shards: Sequence[F32], k: int, *, n_init: int, max_iter: int, tol: float, seed: int, threads: int = 1
) -> Fit:
    """Mini-batch K-means (Sculley 2010): labels are the nearest of the centroids that the batches led to.

    Args:
        shards: Points, float32 [n, d] each.
        k: Number of concepts.
        n_init: Starts that are tried on a sample before the best one goes on.
        max_iter: Most passes.
        tol: Stop when the centroids move by less, relative to the variance.
        seed: Fixes every draw.
        threads: Threads that find the labels; no result depends on it.

    Raises:
        ClusteringError: Fewer than k points, NaN or infinite ones.
    """
    from sklearn.cluster import MiniBatchKMeans

    points, X_nd = LocalPoints(shards), np.concatenate(shards)
    frame = measure(points, threads)
    if k > len(X_nd):
        raise too_few(k, len(X_nd))
    with threadpool_limits(1):
        model = MiniBatchKMeans(k, n_init=n_init, max_iter=max_iter, tol=tol, random_state=seed).fit(X_nd)
    C_kd = model.cluster_centers_.astype(np.float32)
    labels = points.map(visits.labels, keyed(C_kd), frame)
    return Fit(C_kd, labels, _inertia(shards, labels, C_kd), int(model.n_iter_), [], Seeding("array", 0, None, None))


def ward(shards: Sequence[F32], k: int, *, seed: int, threads: int = 1, sample: int = WARD_SAMPLE) -> Fit:
    """Agglomerative clustering by Ward's criterion of a sample; the other points go to the nearest mean of a concept's sample.

    Args:
        shards: Points, float32 [n, d] each.
        k: Number of concepts.
        seed: Fixes which points are drawn; without effect where all are.
        threads: Threads that find the labels; no result depends on it.
        sample: Most points of the tree.

    Returns:
        The clustering; its centroids are the means of the sample's points, `seeding.sample` the global rows of these (None: all).

    Raises:
        ClusteringError: Fewer than k points in the sample, NaN or infinite ones.
    """
    from sklearn.cluster import AgglomerativeClustering

    points, X_nd = LocalPoints(shards), np.concatenate(shards)
    frame, n = measure(points, threads), len(X_nd)
    rows = np.sort(generator(seed, 0).choice(n, sample, replace=False)) if n > sample else np.arange(n)
    if k > len(rows):
        raise too_few(k, len(rows))
    X_md = X_nd[rows].astype(np.float64)
    with threadpool_limits(1):
        tree_m = AgglomerativeClustering(k, linkage="ward").fit_predict(X_md)
    sums_kd = np.zeros((k, X_md.shape[1]))
    np.add.at(sums_kd, tree_m, X_md)
    C_kd = (sums_kd / np.bincount(tree_m, minlength=k)[:, None]).astype(np.float32)
    labels_n = np.concatenate(points.map(visits.labels, keyed(C_kd), frame))
    labels_n[rows] = tree_m
    labels = np.split(labels_n, frame.starts[1:-1])
    seeding = Seeding("array", 0, None, rows if n > sample else None)
    return Fit(C_kd, labels, _inertia(shards, labels, C_kd), 1, [], seeding)


def _inertia(shards: Sequence[F32], labels: Sequence[I32], C_kd: F32) -> float:
    """Sum of the squared distances of points to their concept's centroid, float64, row by row."""
    C_kd = C_kd.astype(np.float64)
    return float(
        sum(
            np.square(x_d - C_kd[label]).sum()
            for X_nd, labels_n in zip(shards, labels, strict=True)
            for x_d, label in zip(X_nd, labels_n, strict=True)
        )
    )
