"""Clusterings by scikit-learn: what they are made of, and what is added to them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import pytest
from sklearn.cluster import AgglomerativeClustering, MiniBatchKMeans

from raypipe.errors import ClusteringError
from raypipe.science import kmeans
from raypipe.science.clusterings import minibatch, of_sample, ward
from raypipe.science.kmeans_checkpoint import Fit
from raypipe.science.scaling import moments

FLAGS = {"n_init": 1, "max_iter": 50, "tol": 1e-4}


def shards(n: int = 600, d: int = 5, groups: int = 7) -> list[np.ndarray]:
    """Points in three unequal shards, around as many places as there are groups."""
    random = np.random.default_rng(1)
    X_nd = (random.normal(size=(groups, d)) * 20)[random.integers(groups, size=n)] + random.normal(size=(n, d))
    return np.split(X_nd.astype(np.float32), [100, 101])


def nearest(X_nd: np.ndarray, C_kd: np.ndarray) -> np.ndarray:
    distances = [[float(((x.astype(float) - c.astype(float)) ** 2).sum()) for c in C_kd] for x in X_nd]
    return np.argmin(distances, axis=1)


def inertia(fit: Fit, X_nd: np.ndarray) -> float:
    return float(((X_nd.astype(float) - fit.centroids.astype(float)[np.concatenate(fit.labels)]) ** 2).sum())


def test_minibatch_labels_are_the_nearest_of_scikit_learns_centroids() -> None:
    X_nd = np.concatenate(shards())
    found = minibatch(shards(), 7, seed=3, threads=2, **FLAGS)
    model = MiniBatchKMeans(7, random_state=3, **FLAGS).fit(X_nd)
    np.testing.assert_allclose(found.centroids, model.cluster_centers_, rtol=1e-5)
    assert [len(part) for part in found.labels] == [100, 1, 499]
    assert (np.concatenate(found.labels) == nearest(X_nd, found.centroids)).all()
    assert found.inertia == pytest.approx(inertia(found, X_nd))
    again, other = (minibatch(shards(), 7, seed=seed, **FLAGS) for seed in (3, 4))
    assert (again.centroids == found.centroids).all()
    assert (other.centroids != found.centroids).any()


def test_ward_of_all_points_is_scikit_learns_tree_with_its_means() -> None:
    X_nd = np.concatenate(shards())
    found = ward(shards(), 9, seed=0)
    labels = np.concatenate(found.labels)
    assert (labels == AgglomerativeClustering(9, linkage="ward").fit_predict(X_nd.astype(float))).all()
    np.testing.assert_allclose(found.centroids, [X_nd[labels == c].mean(axis=0) for c in range(9)], rtol=1e-5)
    assert found.seeding.sample is None
    assert found.inertia == pytest.approx(inertia(found, X_nd))
    assert (np.concatenate(ward(shards(), 9, seed=1).labels) == labels).all()


def test_ward_of_a_sample_keeps_its_tree_and_gives_the_rest_the_nearest_mean() -> None:
    X_nd = np.concatenate(shards(groups=1))
    found = ward(shards(groups=1), 12, seed=5, sample=90)
    rows, labels = found.seeding.sample, np.concatenate(found.labels)
    assert rows is not None
    assert len(set(rows.tolist())) == 90
    assert rows.tolist() == sorted(rows.tolist())
    tree = AgglomerativeClustering(12, linkage="ward").fit_predict(X_nd[rows].astype(float))
    assert (labels[rows] == tree).all()
    np.testing.assert_allclose(found.centroids, [X_nd[rows][tree == c].mean(axis=0) for c in range(12)], rtol=1e-5)
    rest = np.setdiff1d(np.arange(len(X_nd)), rows)
    assert (labels[rest] == nearest(X_nd[rest], found.centroids)).all()
    assert (labels[rows] != nearest(X_nd[rows], found.centroids)).any()  # the tree's own, not the nearest
    other = ward(shards(groups=1), 12, seed=6, sample=90).seeding.sample
    assert other is not None
    assert (other != rows).any()


def test_a_sample_is_the_same_for_every_algorithm_and_the_rest_goes_to_the_nearest_centroid() -> None:
    X_nd = np.concatenate(shards(groups=1))

    def exact(given: Sequence[np.ndarray]) -> Fit:
        return kmeans.fit(kmeans.LocalPoints(given), 12, init="k-means++", seed=5)

    fits = exact, partial(minibatch, k=12, seed=5, **FLAGS), partial(ward, k=12, seed=5)
    found = [of_sample(fit, shards(groups=1), 90, seed=5) for fit in fits]
    rows = found[0].seeding.sample
    assert rows is not None
    for fit, of_rows in zip(found, fits, strict=True):
        alone, labels = of_rows([X_nd[rows]]), np.concatenate(fit.labels)
        assert (fit.seeding.sample == rows).all()
        assert (fit.centroids == alone.centroids).all()
        assert (labels[rows] == alone.labels[0]).all()
        rest = np.setdiff1d(np.arange(len(X_nd)), rows)
        assert (labels[rest] == nearest(X_nd[rest], fit.centroids)).all()
        assert fit.inertia == pytest.approx(inertia(fit, X_nd))
    first, alone = found[0].seeding.rows, exact([X_nd[rows]]).seeding.rows
    assert first is not None
    assert (X_nd[first] == X_nd[rows][alone]).all()
    within = of_sample(partial(ward, k=12, seed=5, sample=40), shards(groups=1), 90, seed=5).seeding.sample
    assert within is not None
    assert len(within) == 40
    assert np.isin(within, rows).all()
    assert of_sample(exact, shards(groups=1), 600, seed=5).seeding.sample is None


def test_points_are_centred_and_standardised_as_by_numpy() -> None:
    X_nd = np.concatenate(shards()) + np.float32(1000)
    X_nd[:, 2] = 7  # without spread
    parts = np.split(X_nd, [100, 101])
    wide = X_nd.astype(float)
    for standardise in (False, True):
        found = moments(kmeans.LocalPoints(parts), standardise=standardise)
        scale = np.where(np.ptp(wide, axis=0) > 0, wide.std(axis=0), 1) if standardise else np.ones(5)
        scaled = np.concatenate([found.scaled(part) for part in parts])
        assert scaled.dtype == np.float32
        np.testing.assert_allclose(scaled, (wide - wide.mean(axis=0)) / scale, atol=1e-4)
        again = moments(kmeans.LocalPoints([X_nd]), standardise=standardise)
        np.testing.assert_allclose(again.mean_d, found.mean_d)


def test_more_concepts_than_points_are_refused() -> None:
    with pytest.raises(ClusteringError, match=r"^k=601 but only 600 distinct points; lower k or use more text$"):
        minibatch(shards(), 601, seed=0, **FLAGS)
    with pytest.raises(ClusteringError, match=r"^k=91 but only 90 distinct points"):
        ward(shards(), 91, seed=0, sample=90)
    broken = shards()
    broken[1][0, 2] = np.nan
    for clustered in (lambda: minibatch(broken, 3, seed=0, **FLAGS), lambda: ward(broken, 3, seed=0)):
        with pytest.raises(ClusteringError, match=r"^points of shard 1 hold NaN or infinite values"):
            clustered()
