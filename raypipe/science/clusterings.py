"""Clusterings to hold K-means against, by scikit-learn: mini-batch K-means, Ward's tree as in ConceptX, and any clustering of a sample.

They run in one process on one thread, which fixes their bits, and may leave concepts empty. Shapes: n points, k concepts, d
dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from threadpoolctl import threadpool_limits

from raypipe.science import kmeans_visits as visits
from raypipe.science.intervals import generator
from raypipe.science.kmeans_checkpoint import Fit
from raypipe.science.kmeans_kernels import F32, I32
from raypipe.science.kmeans_points import LocalPoints, keyed, measure
from raypipe.science.seeding import Seeding, too_few

WARD_SAMPLE = 20_000  # points of Ward's tree, whose cost grows with their square; concept_metrics.md E5


def minibatch(
    shards: Sequence[F32], k: int, *, n_init: int, max_iter: int, tol: float, seed: int, threads: int = 1
) -> Fit:
    """Mini-batch K-means (Sculley 2010): labels are the nearest of the centroids that the batches led to.

    Of `n_init` starts that are tried on a sample the best goes on, for `max_iter` passes at most: until the centroids move by less than
    `tol`, relative to the variance, or scikit-learn's smoothed inertia has not improved for ten batches. No result depends on the threads,
    which find the labels.

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

    Returns:
        The clustering; its centroids are the means of the sample's points, `seeding.sample` the global rows of these (None: all).

    Raises:
        ClusteringError: Fewer than k points in the sample, NaN or infinite ones.
    """
    return of_sample(partial(_tree, k), shards, sample, seed=seed, threads=threads)


def of_sample(
    fit: Callable[[Sequence[F32]], Fit], shards: Sequence[F32], sample: int, *, seed: int, threads: int = 1
) -> Fit:
    """A clustering of a sample of the points, which the seed fixes for every `fit`; the others go to the nearest of its centroids.

    Returns:
        The clustering with labels of all points, those of the sample as `fit` gave them; rows of `seeding` are global ones, and its
        `sample` are the rows drawn, or of these the rows that `fit` looked at (None: all).

    Raises:
        ClusteringError: NaN or infinite points, or what `fit` raises.
    """
    points = LocalPoints(shards)
    frame = measure(points, threads)
    n = int(frame.starts[-1])
    rows = np.sort(generator(seed, 0).choice(n, sample, replace=False)) if n > sample else np.arange(n)
    found = fit([np.concatenate(shards)[rows]])
    labels_n = np.concatenate(points.map(visits.labels, keyed(found.centroids), frame))
    labels_n[rows] = found.labels[0]
    labels = np.split(labels_n, frame.starts[1:-1])
    first, inner = found.seeding.rows, found.seeding.sample
    seeding = replace(
        found.seeding,
        rows=None if first is None else rows[first],
        sample=rows[inner] if inner is not None else rows if n > sample else None,
    )
    return replace(found, labels=labels, inertia=_inertia(shards, labels, found.centroids), seeding=seeding)


def _tree(k: int, shards: Sequence[F32]) -> Fit:
    """Ward's tree of one shard of points, cut at k concepts, with their means."""
    from sklearn.cluster import AgglomerativeClustering

    if k > len(shards[0]):
        raise too_few(k, len(shards[0]))
    X_md = shards[0].astype(np.float64)
    with threadpool_limits(1):
        tree_m = AgglomerativeClustering(k, linkage="ward").fit_predict(X_md).astype(np.int32)
    sums_kd = np.zeros((k, X_md.shape[1]))
    np.add.at(sums_kd, tree_m, X_md)
    C_kd = (sums_kd / np.bincount(tree_m, minlength=k)[:, None]).astype(np.float32)
    return Fit(C_kd, [tree_m], 0.0, 1, [], Seeding("array", 0, None, None))


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
