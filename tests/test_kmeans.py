"""The K-means engine against brute force, scikit-learn, hand-made cases and hostile placements of its shards."""

from __future__ import annotations

import itertools
import json
import pickle
import struct
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numba import njit

from raypipe.errors import ClusteringError
from raypipe.science import (
    kmeans,
    kmeans_bytes,
    kmeans_device,
    kmeans_kernels,
    kmeans_points,
    kmeans_scan,
    kmeans_search,
    kmeans_visits,
    seeding,
)
from raypipe.science.kmeans import KMeans, LocalPoints, Shard, fit, unit_rows
from raypipe.science.kmeans_points import ReadPoints
from raypipe.science.kmeans_vectors import write_bounds


def blobs(n, d, groups, seed=0, offset=0.0):
    """Points around a few centres, float32."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(groups, d)) * 3
    return (centres[random.integers(groups, size=n)] + random.normal(size=(n, d)) + offset).astype(np.float32)


def low_rank(n, d, rank, seed=0):
    """Points near a few directions, float32, with a mean and some noise: the search rotates them first."""
    random = np.random.default_rng(seed)
    X = random.normal(size=(n, rank)) @ random.normal(size=(rank, d)) + 2 + 0.05 * random.normal(size=(n, d))
    return X.astype(np.float32)


def scores(X, C):
    """The documented canonical score, written again: eight accumulators, the tail goes to the first; [n, k]."""
    X, C = X.astype(np.float64), C.astype(np.float64)
    d = X.shape[1]
    sums = [np.zeros((len(X), len(C))) for _ in range(8)]
    for j in range(d):
        difference = X[:, j, None] - C[None, :, j]
        sums[j % 8 if j < d - d % 8 else 0] += difference * difference
    return ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]))


def brute(X, C):
    """Labels and inertia from all scores; argmin keeps the lowest index on ties."""
    all_scores = scores(X, C)
    return all_scores.argmin(axis=1), sum(all_scores.min(axis=1).tolist())


def assert_sound(result, X, k):
    """What every fit promises."""
    labels, inertia = brute(X, result.centroids)
    assert result.labels.tolist() == labels.tolist()
    assert result.inertia == pytest.approx(inertia, rel=1e-12)
    assert sorted(set(result.labels.tolist())) == list(range(k))
    assert result.labels.dtype == np.int32
    assert result.centroids.dtype == np.float32
    inertias = [inertia for inertia, _ in result.history]
    assert all(after <= before * (1 + 1e-6) for before, after in itertools.pairwise(inertias))


class Scattered:
    """Points whose shards are visited in random order, twice at times, and lose their state at random: a bad Ray."""

    def __init__(self, arrays, seed):
        self.arrays = arrays
        self.random = np.random.default_rng(seed)
        self.shards = [Shard(X.copy(), {}, index) for index, X in enumerate(arrays)]

    def map(self, function, *args):
        buffers = []  # arguments travel as on Ray: pickled, their arrays read-only
        data = pickle.dumps((function, args), protocol=5, buffer_callback=buffers.append)
        function, args = pickle.loads(data, buffers=[bytes(buffer) for buffer in buffers])
        results = {}
        for index in self.random.permutation(len(self.shards)):
            if self.random.random() < 0.3:
                self.shards[index] = Shard(self.arrays[index].copy(), {}, int(index))
            if self.random.random() < 0.2:
                function(self.shards[index], *args)
            results[index] = function(self.shards[index], *args)
        return [results[index] for index in range(len(self.shards))]


def same_bits(one, other):
    return (
        one.centroids.tobytes() == other.centroids.tobytes()
        and [part.tobytes() for part in one.labels] == [part.tobytes() for part in other.labels]
        and one.inertia == other.inertia
        and one.history == other.history
        and one.n_iter == other.n_iter
        and (one.seeding.rows is None or one.seeding.rows.tolist() == other.seeding.rows.tolist())
    )


# --- labels, inertia, empties -------------------------------------------------------------------------------------


@pytest.mark.parametrize("init", ["k-means++", "random"])
@pytest.mark.parametrize(("n", "d", "k"), [(300, 5, 7), (200, 16, 37), (150, 33, 3), (40, 8, 40), (5, 1, 1)])
def test_labels_are_the_brute_force_argmin(init, n, d, k):
    X = blobs(n, d, 6)
    assert_sound(KMeans(k, init=init, seed=3).fit(X), X, k)


@pytest.mark.parametrize("max_iter", [1, 2, 5, 8])
@pytest.mark.parametrize(("offset", "within"), [(0.0, 2e-9), (1000.0, 1e-6)])  # our centroids are float32
@pytest.mark.parametrize("times", [1, 4])
def test_same_inertia_as_scikit_learn_after_the_same_passes(max_iter, offset, within, times):
    from sklearn.cluster import KMeans as Reference

    X = blobs(3000, 24, 40, offset=offset)
    first = np.repeat(X[: 20 // times], times, axis=0)  # of equal centroids only the first one gets points
    assert len(set(brute(X, first)[0])) == 20 // times
    ours = KMeans(20, init=first, max_iter=max_iter, tol=0).fit(X)
    reference = Reference(20, init=first.astype(float), n_init=1, max_iter=max_iter, tol=0)
    with warnings.catch_warnings(action="ignore"):  # it says that it did not converge
        reference.fit(X.astype(float))
    assert ours.inertia == pytest.approx(reference.inertia_, rel=within)
    assert ours.n_iter == reference.n_iter_ == max_iter
    assert len(ours.history) == max_iter + 1


def test_at_rest_it_agrees_with_scikit_learn_on_the_passes():
    from sklearn.cluster import KMeans as Reference

    X = blobs(2000, 12, 10)
    ours = KMeans(10, init=X[:10], tol=0).fit(X)
    reference = Reference(10, init=X[:10].astype(float), n_init=1, tol=0).fit(X.astype(float))
    assert ours.n_iter == reference.n_iter_ == len(ours.history)
    assert ours.labels.tolist() == reference.labels_.tolist()
    assert ours.history[-1][1] == 0
    assert ours.history[0][1] == 2000  # at first every label is new


def test_tol_stops_early_and_ends_with_an_assignment():
    X = blobs(2000, 12, 10)
    loose = KMeans(30, init=X[:30], tol=1e-1).fit(X)
    tight = KMeans(30, init=X[:30], tol=0).fit(X)
    assert loose.n_iter < tight.n_iter
    assert len(loose.history) == loose.n_iter + 1
    assert_sound(loose, X, 30)


def test_moved_labels_are_counted():
    # 1-d points 0 1 2 3 and centroids 0, 0.9: labels 0 1 1 1. Means 0, 2: point 1 ties (1 = 1) and goes to the lowest.
    result = KMeans(2, init=np.array([[0.0], [0.9]]), tol=0).fit(np.arange(4.0)[:, None])
    # scores before: 0, .01, 1.21, 4.41; then means 0 and 2: 0, 1, 0, 1; then means 0.5 and 2.5: 4 x 0.25
    assert [moved for _, moved in result.history] == [4, 1, 0]
    assert [inertia for inertia, _ in result.history] == pytest.approx([5.63, 2.0, 1.0], rel=1e-6)
    assert result.labels.tolist() == [0, 0, 1, 1]
    assert result.n_iter == 3


@pytest.mark.parametrize("seed", range(12))
def test_three_far_pairs(seed):
    # G8: from any of these starts the pairs {a b} {c d} {e f} come out; each point is 0.5 from its mean: 6 x 0.25.
    X = np.array([[0, 0], [0, 1], [10, 0], [10, 1], [0, 20], [0, 21]], np.float32)
    result = KMeans(3, seed=seed).fit(X)
    a, b, c, d, e, f = result.labels
    assert a == b
    assert c == d
    assert e == f
    assert len({a, c, e}) == 3
    assert result.inertia == 1.5


def test_all_points_are_used():
    # G8b: three points, K = 2: the close pair is one concept, the third point, which the official code drops, the other.
    result = KMeans(2).fit(np.array([[0, 0], [0, 1], [9, 9]], np.float32))
    assert len(result.labels) == 3
    assert result.labels[0] == result.labels[1] != result.labels[2]
    assert result.inertia == 0.5


def test_empty_concepts_take_the_farthest_points():
    # All points are nearest to centroid 0; the farthest from it are 100 (twice: used once), then 50.
    X = np.array([[0], [1], [100], [100], [50], [2]], np.float32)
    init = np.array([[0], [-1000], [-2000]], np.float32)
    result = KMeans(3, init=init, max_iter=1, tol=0).fit(X)
    # mean of the other four: 103/4 = 25.75; new centroids 25.75, 100, 50 -> nearest: 0 1 2 keep 25.75; 100 100; 50
    assert result.centroids.ravel().tolist() == [25.75, 100, 50]
    assert result.labels.tolist() == [0, 0, 1, 1, 2, 0]


def test_a_concept_whose_only_point_is_taken_stays_and_is_filled_in_the_next_pass():
    X = np.array([[0], [1], [2], [30]], np.float32)
    result = KMeans(3, init=np.array([[1], [20], [-100]], np.float32), max_iter=2, tol=0).fit(X)
    # 0 1 2 go to centroid 1, 30 to 20: 1 + 0 + 1 + 100; 30 is farthest and leaves 20 without points: 1, 20, 30.
    # Nothing is nearest to 20: 1 + 0 + 1 + 0; of 0 and 2, equally far, the first one goes there: (1 + 2) / 2, 0, 30.
    assert [inertia for inertia, _ in result.history] == [102, 2, 0.5]
    assert result.centroids.ravel().tolist() == [1.5, 0, 30]
    assert result.labels.tolist() == [1, 0, 0, 2]


def test_a_direction_that_is_taken_leaves_the_mean_of_its_concept():
    X = np.array([[1, 0], [0, 1], [-0.6, 0.8]], np.float32)
    result = KMeans(2, init=np.array([[1, 0], [0, -1]]), spherical=True, max_iter=1).fit(X)
    # Scores to centroid 0 are 0, 2 and 3.2, to centroid 1 they are 2, 4 and 3.6: the last point is taken.
    assert result.centroids.tolist() == [pytest.approx([0.5**0.5, 0.5**0.5]), pytest.approx([-0.6, 0.8])]


def test_ties_of_the_farthest_go_to_the_lowest_row():
    X = np.array([[-5, 0], [5, 0], [0, 5], [0, 0]], np.float32)
    result = KMeans(2, init=np.array([[0, 0], [900, 900]], np.float32), max_iter=1, tol=0).fit(X)
    assert result.centroids[1].tolist() == [-5, 0]


def test_concepts_still_empty_at_the_end_are_filled():
    # Only one distinct far value for two empty concepts in the first pass; max_iter is reached with one still empty.
    X = np.array([[0], [0], [0], [7], [7], [3]], np.float32)
    result = KMeans(3, init=np.array([[0], [0], [0]], np.float32), max_iter=1, tol=0).fit(X)
    assert_sound(result, X, 3)
    X = np.repeat(np.array([[0], [1], [9]], np.float32), 30, axis=0)
    result = KMeans(3, init=np.array([[0], [0], [0]], np.float32), max_iter=1, tol=0).fit(X)
    assert_sound(result, X, 3)
    assert result.inertia == 0.0


# --- hostile numbers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "scale_and_offset",
    [(1e18, 0), (1e-30, 0), (1e-42, 0), (1e30, 3e37), (1.0, 1e6), (6e4, 0), (6e-8, 0), (1e-3, 3e3)],
    ids=str,
)
def test_extreme_magnitudes(scale_and_offset):
    scale, offset = scale_and_offset
    X = (blobs(250, 12, 6) * np.float32(scale) + np.float32(offset)).astype(np.float32)
    k = min(9, len(np.unique(X, axis=0)))
    assert_sound(KMeans(k).fit(X), X, k)


def test_one_dimension_outweighs_the_others():
    X = blobs(200, 9, 5)
    X[:, 0] = 1e18
    X[:100, 1] *= 1e15
    X[:, 2] = 0
    assert_sound(KMeans(8).fit(X), X, 8)


def test_given_centroids_far_from_the_points():
    X = blobs(100, 4, 3)
    init = np.array([[1e37] * 4, [0] * 4, [-3e38] * 4], np.float32)
    assert_sound(KMeans(3, init=init).fit(X), X, 3)


def test_float16_and_float64_points():
    half = np.array([[65504, -65504], [6e-8, 0], [65504, 65504], [1, 2], [0, 0]], np.float16)
    assert_sound(KMeans(4).fit(half), half.astype(np.float32), 4)
    assert KMeans(4).fit(half).inertia == KMeans(4).fit(half.astype(np.float64)).inertia


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_any_small_points(data):
    """Any finite numbers of both precisions, their extremes often; constant columns, equal points, k up to n."""
    n, d = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 9))
    kind, width = data.draw(st.sampled_from([(np.float32, 32), (np.float16, 16)]))
    most, least = float(np.finfo(kind).max), float(np.finfo(kind).smallest_subnormal)
    finite = st.floats(width=width, allow_nan=False, allow_infinity=False)
    X = data.draw(hnp.arrays(kind, (n, d), elements=finite | st.sampled_from([0.0, 1.0, most, -most, least, -least])))
    X = X[data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=12))]
    X[:, data.draw(st.lists(st.integers(0, d - 1), max_size=2))] = X[0, 0]
    distinct = len(np.unique(X.astype(np.float32) + 0, axis=0))  # + 0: minus zero is zero
    k = data.draw(st.just(distinct) | st.integers(1, distinct))
    init = data.draw(st.sampled_from(["k-means++", "random"]))
    seed = data.draw(st.integers(0, 3))
    assert_sound(KMeans(k, init=init, seed=seed, n_init=2).fit(X), X, k)
    for way in ("k-means++", "random"):
        with pytest.raises(ClusteringError, match=f"k={distinct + 1} but only {distinct} distinct points; lower k"):
            KMeans(distinct + 1, init=way, seed=seed).fit(X)


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_the_margin_never_loses_the_nearest(data):
    """One search on points and centroids of wild and of nearly equal values; every bound holds."""
    d, k, n = data.draw(st.one_of(st.integers(1, 20), st.sampled_from([64, 90]))), data.draw(st.integers(1, 70)), 12
    random = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    X, C = random.normal(size=(n, d)), random.normal(size=(k, d))
    if data.draw(st.booleans()):
        turn = random.normal(size=(2, d))
        X, C = X[:, :1] * turn[0] + 1e-2 * X, C[:, :1] * turn[0] + C[:, -1:] * turn[1] + 1e-3 * C
    if data.draw(st.booleans()):
        C = X[random.integers(n, size=k)] * (1 + random.normal(size=(k, d)) * 10.0 ** -data.draw(st.integers(5, 9)))
    shift = 10.0 ** data.draw(st.integers(-3, 8)) * data.draw(st.sampled_from([0, 1]))
    scale = 10.0 ** data.draw(st.integers(-38, 25))
    X, C = ((X + shift) * scale).astype(np.float32), ((C + shift) * scale).astype(np.float32)
    points = LocalPoints([X])
    for precision, device in (("auto", None), ("float32", None), ("auto", "cpu")):
        frame = kmeans_points.measure(points, 1, precision, device)
        labels = points.map(kmeans_visits.labels, kmeans_points.keyed(C), frame)[0]
        points.shards[0].state.clear()
        assert labels.tolist() == brute(X, C)[0].tolist()
        (assert_device_bounds_hold if device else assert_bounds_hold)(X, C, frame)


def assert_bounds_hold(X, C, frame):
    """The bound of the module text, from sketches and in float64, is not below y.z - |z|^2/2."""
    (of, _), (to, far) = (kmeans_search.sketched(A, np.arange(len(A)), frame) for A in (X, C))
    by = kmeans_scan.Weights(*(column[: len(C)].astype(float) for column in kmeans_scan.weights(to, far)))
    of = kmeans_scan.Sketches(*(np.asarray(column, float) for column in of))
    Y, Z = ((A.astype(float) - frame.mean_d) * frame.basis.scale for A in (X, C))
    bound = (of.codes @ to.codes.T.astype(float)) * (of.step[:, None] * by.step) - by.half
    bound += of.miss[:, None] * by.head + (of.norm + of.miss)[:, None] * by.miss + of.tail[:, None] * by.tail
    assert (bound >= Y @ Z.T - (Z * Z).sum(axis=1) / 2)[:, ~far].all()


def assert_device_bounds_hold(X, C, frame):
    """The same of the bound on a torch device; rows whose terms float16 cannot hold have none."""
    points, centroids = (kmeans_device._rounded(torch.tensor(A), frame) for A in (X, C))
    columns, half = kmeans_device._columns(centroids)
    bound = (kmeans_device._product(kmeans_device._rows(points), columns) - half).double().numpy()
    Y, Z = ((A.astype(float) - frame.mean_d) * kmeans_device._scale(frame) for A in (X, C))
    tame = (points.norm_n < 25_000).numpy()
    assert (bound >= Y @ Z.T - (Z * Z).sum(axis=1) / 2)[tame].all()


def test_sketches_are_short_and_rule_out_nearly_all():
    X = low_rank(3000, 128, 20)
    points = LocalPoints([X])
    C = X[:200]
    for precision in ("auto", "float32"):
        frame = kmeans_points.measure(points, 1, precision)
        assert frame.basis.W_dq.shape == (128, 32)
        of, _ = kmeans_search.sketched(X, np.arange(len(X)), frame)
        assert (of.miss < 0.02 * of.norm).all()
        assert (of.miss >= frame.basis.slip * of.norm).all()  # rounding errors reach no such bound by chance
        assert frame.basis.slip >= 128 * 2.0**-24 * 32**0.5
        assert of.codes.dtype == frame.basis.codes
        assert_bounds_hold(X, C, frame)


def test_a_basis_of_other_points_is_not_used():
    X = low_rank(500, 64, 4)
    points, others = LocalPoints([X]), LocalPoints([low_rank(500, 64, 4, seed=1)])
    for frame in (kmeans_points.measure(points, 1), kmeans_points.measure(others, 1)):
        best = kmeans_search.nothing_found(500)
        kmeans_search.nearest(points.shards[0], np.arange(500), X[:50], frame, best)
        assert best.labels.tolist() == brute(X, X[:50])[0].tolist()
        assert points.shards[0].state["sketches"][0] == frame.basis.key


def test_more_centroids_than_one_tile(monkeypatch):
    monkeypatch.setattr(kmeans_scan, "TILE_CENTROIDS", 128)  # read by the search in float32; int8 has it compiled in
    X = low_rank(2500, 70, 12)
    labels = brute(X, X[:1200])[0].tolist()
    for precision in ("auto", "float32"):
        fitted = KMeans(1200, init=X[:1200], max_iter=1, precision=precision).fit(X)
        assert fitted.labels.tolist() == brute(X, fitted.centroids)[0].tolist()
        fitted.centroids = X[:1200]
        assert fitted.predict(X).tolist() == labels


# --- same bits ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("init", ["k-means++", "random", "empty concepts"])
@pytest.mark.parametrize("threads", [1, 2])
def test_same_bits_for_any_place_of_the_shards(init, threads, monkeypatch):
    monkeypatch.setattr(seeding, "SEED_SAMPLE", 700)
    X = blobs(1500, 20, 30)
    init = np.repeat(X[:8], 5, axis=0) if init == "empty concepts" else init
    arrays = [X[:400], X[400:401], X[401:401], X[401:1100], X[1100:]]
    settled = fit(LocalPoints(arrays), 40, init=init, n_init=2, seed=5)
    for seed in range(3):
        assert same_bits(settled, fit(Scattered(arrays, seed), 40, init=init, n_init=2, seed=5, threads=threads))


def test_a_second_fit_on_the_same_shards_changes_nothing():
    points = LocalPoints([blobs(300, 6, 5), blobs(200, 6, 5, seed=1)])
    first = fit(points, 12)
    first.labels[0][:] = 0  # the caller's copy, not the engine's
    fit(points, 7)
    assert same_bits(fit(points, 12), fit(LocalPoints([shard.X_nd for shard in points.shards]), 12))


def test_proven_labels_are_skipped_and_right():
    X = blobs(4000, 8, 12)
    points = LocalPoints([X])
    frame = kmeans_points.measure(points, 1)
    before = kmeans_points.keyed(X[:12])
    points.map(kmeans_visits.assign, None, before, frame)
    after = kmeans_points.keyed(X[:12] + np.float32(0.01))
    shard = points.shards[0]
    found = kmeans_scan.Best(*(values.copy() for values in shard.state["labels"][before.key]))
    moves = np.sqrt(kmeans_visits.squared_moves(before, after))
    rows = kmeans_kernels.keep_proven(X, after.C_kd, moves, *found, 0, len(X))
    assert 0 < len(rows) < 2000
    new = kmeans_visits.assignment(shard, before, after, frame)
    assert new.labels.tolist() == brute(X, after.C_kd)[0].tolist()


def test_shards_of_an_array_are_fixed(monkeypatch):
    monkeypatch.setattr(kmeans, "ROWS_PER_SHARD", 128)
    X = blobs(500, 6, 5)
    whole = KMeans(9).fit(X)
    parts = fit(LocalPoints([X[:128], X[128:256], X[256:384], X[384:]]), 9)
    assert whole.labels.tolist() == np.concatenate(parts.labels).tolist()
    assert whole.inertia == parts.inertia
    assert whole.predict(X).tolist() == whole.labels.tolist()


def test_precision_changes_no_bit():
    for X in (low_rank(2000, 96, 10), blobs(2000, 30, 12)):
        one, other = (fit(LocalPoints([X[:700], X[700:]]), 40, precision=way) for way in ("auto", "float32"))
        assert same_bits(one, other)
        assert_sound(KMeans(40, precision="float32").fit(X), X, 40)


@pytest.mark.parametrize("numbers", [2**26, 90])
@pytest.mark.parametrize("shift", [0.0, 1e4])
def test_a_torch_device_changes_no_bit(numbers, shift, monkeypatch):
    monkeypatch.setattr(kmeans_device, "BLOCK_NUMBERS", numbers)
    duplicates = np.repeat(blobs(40, 5, 4), 6, axis=0)
    for X, k, more in (
        (low_rank(300, 70, 10), 40, {"n_init": 2}),
        (blobs(200, 30, 12) + np.float32(shift), 25, {"init": "random"}),
        (unit_rows(blobs(200, 9, 12)), 30, {"spherical": True}),
        (duplicates, 40, {"init": np.zeros((40, 5))}),
        (blobs(100, 4, 3), 3, {"init": np.array([[1e37] * 4, [0] * 4, [-3e38] * 4])}),
        (np.array([[65504, -65504], [6e-8, 0], [65504, 65504], [1, 2], [0, 0]], np.float32), 4, {}),
        (np.array([[1e18, 0, -3e-30], [1e18, 1e-20, 0], [0, 0, 0], [3e37, -1, 7]], np.float32), 4, {}),
        (np.ones((7, 3), np.float32), 1, {}),
    ):
        arrays = [X[: len(X) // 3], X[len(X) // 3 :]]
        one = fit(LocalPoints(arrays), k, seed=4, tol=0, **more)
        assert same_bits(one, fit(Scattered(arrays, 1), k, seed=4, tol=0, device="cpu", **more))
    model = KMeans(12, device="cpu").fit(duplicates)
    assert model.predict(duplicates).tolist() == model.labels.tolist() == brute(duplicates, model.centroids)[0].tolist()


def test_on_a_torch_device_hardly_any_centroid_is_compared(monkeypatch):
    X = low_rank(1000, 128, 20)
    compared, score = [], kmeans_device._scores

    def counted(points, rows, centroids, labels):
        compared.append(0 if rows is None else len(rows))
        return score(points, rows, centroids, labels)

    monkeypatch.setattr(kmeans_device, "_scores", counted)
    KMeans(100, init=X[:100], max_iter=1, device="cpu").fit(X)
    assert 0 < sum(compared) < 0.05 * 2 * len(X)  # the other pairs of two passes are ruled out


def test_points_too_wild_for_float16_are_compared_with_every_centroid():
    X = low_rank(60, 12, 3)
    X[7] *= 1e3
    frame = kmeans_points.measure(LocalPoints([X]), 1, "auto", "cpu")
    frame = frame._replace(variance=frame.variance * 1e-10)  # small units: its norm is huge
    held = kmeans_device._rounded(torch.tensor(X), frame)
    assert held.norm_n[7] > 30_000
    labels = kmeans_visits.labels(Shard(X, {}, 0), kmeans_points.keyed(X[::4]), frame)
    assert labels.tolist() == brute(X, X[::4])[0].tolist()


def test_products_on_a_gpu_are_summed_in_float32():
    switches = torch.backends.cuda.matmul
    before = switches.allow_fp16_reduced_precision_reduction
    with kmeans_device._whole_sums():
        assert not switches.allow_fp16_reduced_precision_reduction
        assert not switches.allow_fp16_accumulation
    assert switches.allow_fp16_reduced_precision_reduction == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="a machine without a GPU is absent")
def test_a_missing_gpu_is_named():
    for device in ("cuda", "cuda:1", "gpu"):
        message = (
            rf"^device {device}: this worker sees no such device; set resources\.gpus_per_worker to 0 or start Ray on"
        )
        with pytest.raises(ClusteringError, match=message):
            KMeans(2, device=device).fit(blobs(10, 3, 2))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a GPU is absent")
def test_a_gpu_changes_no_bit():
    for X, k, more in ((low_rank(20_000, 200, 60), 300, {}), (unit_rows(blobs(9000, 67, 80)), 90, {"spherical": True})):
        arrays = [X[:7000], X[7000:]]
        one = fit(LocalPoints(arrays), k, max_iter=8, **more)
        assert same_bits(one, fit(LocalPoints(arrays), k, max_iter=8, device="cuda", **more))


# --- spherical ----------------------------------------------------------------------------------------------------


def test_spherical_clusters_directions():
    X = blobs(600, 7, 5, offset=2.0)
    scaled = X * np.random.default_rng(0).uniform(0.1, 50, size=(600, 1)).astype(np.float32)
    result = KMeans(9, spherical=True, seed=1).fit(scaled)
    units = scaled / np.linalg.norm(scaled.astype(float), axis=1, keepdims=True)
    cosines = units @ result.centroids.T.astype(float)
    assert np.linalg.norm(result.centroids, axis=1) == pytest.approx(np.ones(9), abs=1e-6)
    assert result.labels.tolist() == cosines.argmax(axis=1).tolist()
    assert result.inertia == pytest.approx((2 - 2 * cosines.max(axis=1)).sum(), rel=1e-5)
    assert result.predict(scaled * 3).tolist() == result.labels.tolist()


@pytest.mark.parametrize(("n", "d"), [(400, 3), (60, 8)])
@pytest.mark.parametrize("spread", [1e-5, 1e-7])
def test_spherical_inertia_never_rises_for_nearly_equal_directions(n, d, spread):
    for seed in range(6):
        random = np.random.default_rng(seed)
        X = random.normal(size=d) + spread * random.normal(size=(n, d))
        k = min(8 if d == 3 else 4, len(np.unique(unit_rows(X), axis=0)))
        assert_sound(KMeans(k, spherical=True, seed=seed, tol=0, max_iter=60).fit(X), unit_rows(X), k)


def test_a_spherical_mean_without_direction_stays():
    X = np.array([[1, 0], [-1, 0], [0, 3]], np.float32)
    result = KMeans(2, init=np.array([[0, -5], [0, 2]]), spherical=True, max_iter=3).fit(X)
    assert result.labels.tolist() == [0, 0, 1]  # a tie, to the lowest
    assert result.centroids.tolist() == [[0, -1], [0, 1]]


def test_spherical_needs_directions():
    X = blobs(20, 3, 2)
    X[7] = 0
    with pytest.raises(ClusteringError, match="point 7 has length 0; a spherical fit needs directions: leave it out"):
        KMeans(2, spherical=True).fit(X)
    with pytest.raises(
        ClusteringError, match=r"a spherical fit found a point 0\.1 from length 1; scale the points with uni"
    ):
        fit(LocalPoints([unit_rows(X[:5]), unit_rows(X[:5]) * np.float32(0.9)]), 2, spherical=True)


# --- in mid-fit, and larger than memory ----------------------------------------------------------------------------


class Kept:
    """A checkpoint in memory that ends the process, so to speak, after some savings."""

    def __init__(self, deaths=()):
        self.arrays, self.saved, self.deaths = None, 0, deaths

    def load(self):
        return self.arrays

    def save(self, arrays):
        self.arrays = pickle.loads(pickle.dumps(arrays))
        self.saved += 1
        if self.saved in self.deaths:
            raise KeyboardInterrupt


@pytest.mark.parametrize("options", [{"n_init": 3}, {"init": "random", "spherical": True}, {"init": None}], ids=str)
def test_a_fit_goes_on_from_its_checkpoint_with_the_same_bits(options, monkeypatch):
    monkeypatch.setattr(kmeans, "CHECKPOINT_PASSES", 2)
    monkeypatch.setattr(seeding, "SEED_SAMPLE", 500)
    X = unit_rows(blobs(900, 10, 14))
    arrays = [X[:400], X[400:]]
    settings = (
        {"seed": 2, "tol": 0.0}
        | options
        | ({"init": np.repeat(X[:10], 3, axis=0)} if options.get("init", 0) is None else {})
    )
    expected = fit(LocalPoints(arrays), 30, **settings)
    checkpoint = Kept(deaths=range(1, 100))
    for _ in range(100):
        try:
            found = fit(LocalPoints(arrays), 30, **settings, checkpoint=checkpoint)
            break
        except KeyboardInterrupt:
            continue
    assert checkpoint.saved > 1
    assert same_bits(expected, found)
    assert (found.seeding.sample is None) == (expected.seeding.sample is None)
    assert found.seeding.start == expected.seeding.start
    with pytest.raises(
        ClusteringError, match="the checkpoint belongs to a fit of other points or settings; expected on"
    ):
        fit(LocalPoints(arrays), 30, **settings | {"seed": 3}, checkpoint=checkpoint)


@pytest.mark.parametrize("budget", [0, 1, 100_000, 250_000])
def test_shards_beyond_the_budget_are_read_at_every_pass(budget, monkeypatch):
    monkeypatch.setattr(seeding, "SEED_SAMPLE", 500)
    X = blobs(2400, 10, 20)
    arrays = [X[start : start + 300] for start in range(0, 2400, 300)]
    reads = []

    def read(index):
        reads.append(index)
        return arrays[index]

    expected = fit(LocalPoints(arrays), 25, seed=1, max_iter=6)
    points = ReadPoints(read, range(8), budget)
    found = fit(points, 25, seed=1, max_iter=6)
    assert same_bits(expected, found)
    # A shard has 12 KB of points, 12 KB of labels, scores and bounds (20 bytes, twice) and 10 KB of sketches (12 codes
    # and 28 bytes): of 8 shards, 24 KB each are 96 KB of labels, 176 KB with sketches; then some points in 250 KB.
    kept = [reads.count(index) == 1 for index in range(8)]
    assert sum(kept) == {0: 8, 1: 0, 100_000: 0, 250_000: 4}[budget]
    assert kept == sorted(kept, reverse=True)
    # Read when opened, for the sums, the spread, the basis, the sample, a first centroid and the last check; then once
    # for each pass.
    assert max(map(reads.count, range(8))) <= len(found.history) + 7
    if budget > 1:
        points._shelf.visit(0)
        assert points._shelf._used() <= budget


# --- first centroids ----------------------------------------------------------------------------------------------


def test_k_means_plus_plus_draws_by_squared_distance():
    # Points 0, 1, 3. First uniform, second by D^2. From 0: 1 and 9; from 1: 1 and 4; from 3: 9 and 4.
    # P{0,1} = (1/10 + 1/5)/3 = 0.1, P{0,3} = (9/10 + 9/13)/3 = 0.5308, P{1,3} = (4/5 + 4/13)/3 = 0.3692.
    # Asking for three centroids and looking at the first two goes through the batches of candidates.
    points = LocalPoints([np.array([[0], [1]], np.float32), np.array([[3]], np.float32)])
    frame = kmeans_points.measure(points, 1)
    pairs = [tuple(sorted(seeding.plus_plus(points, frame, 2, seed, 0)[1].rows)) for seed in range(3000)]
    shares = [pairs.count(pair) / 3000 for pair in [(0, 1), (0, 2), (1, 2)]]
    # Three standard errors of a share of one half are 0.028.
    assert shares == pytest.approx([0.1, 0.5308, 0.3692], abs=0.028)


def test_candidates_of_one_batch_see_each_other():
    """Four far pairs, four centroids: one of each pair, in 99.7 % of starts or more by the definition.

    D^2 to a pair whose neighbour is chosen is 1, to another at least 49^2; at the last draw three neighbours stand
    against a pair: 3 / (3 + 2 x 49^2) < 0.001, earlier draws less. The last two candidates come in one batch: one that
    kept every candidate would often take both from one pair.
    """
    X = np.array([[0], [1], [50], [51], [100], [101], [150], [151]], np.float32)
    points = LocalPoints([X])
    frame = kmeans_points.measure(points, 1)
    rows = [seeding.plus_plus(points, frame, 4, seed, 0)[1].rows for seed in range(400)]
    assert sum(len(set(four // 2)) == 4 for four in rows) >= 394


def test_centroids_of_the_start_are_the_recorded_rows(monkeypatch):
    monkeypatch.setattr(seeding, "SEED_SAMPLE", 90)
    X = blobs(200, 5, 4)
    points = LocalPoints([X[:50], X[50:]])
    frame = kmeans_points.measure(points, 1)
    for C, record in (seeding.plus_plus(points, frame, 80, 2, 0), seeding.random_points(points, frame, 80, 2, 0)):
        assert C.tolist() == X[record.rows].tolist()
        assert len(set(record.rows.tolist())) == 80
    sample = seeding.plus_plus(points, frame, 80, 2, 0)[1].sample
    assert len(sample) == 90
    assert set(seeding.plus_plus(points, frame, 80, 2, 0)[1].rows) <= set(sample)
    assert seeding.random_points(points, frame, 80, 2, 0)[1].sample is None


def test_a_sample_without_enough_distinct_points_gives_way_to_all(monkeypatch):
    monkeypatch.setattr(seeding, "SEED_SAMPLE", 20)
    X = np.zeros((400, 3), np.float32)
    X[::40] = np.arange(30).reshape(10, 3)
    X[0] = 99
    assert_sound(KMeans(11).fit(X), X, 11)
    with pytest.raises(ClusteringError, match="k=12 but only 11 distinct points"):
        KMeans(12).fit(X)


def test_starts_differ_and_the_best_is_kept():
    X = blobs(400, 3, 12)
    single = [KMeans(12, init=kind, seed=4, n_init=n, max_iter=3).fit(X) for kind in ("random",) for n in (1, 2, 3, 4)]
    inertias = [result.inertia for result in single]
    assert inertias == sorted(inertias, reverse=True)
    assert inertias[-1] < inertias[0]
    best = single[-1].seeding.start
    C, _ = seeding.random_points(LocalPoints([X]), kmeans_points.measure(LocalPoints([X]), 1), 12, 4, best)
    assert KMeans(12, init=C, max_iter=3).fit(X).inertia == inertias[-1]
    assert KMeans(12, init=C, max_iter=3, n_init=7).fit(X).seeding.start == 0
    same = KMeans(1, n_init=3).fit(X)  # every start gives the one mean
    assert same.seeding.start == 0


def test_a_target_lost_to_rounding_takes_the_last_positive_point():
    points = LocalPoints([np.array([[0], [2], [0]], np.float32), np.array([[0]], np.float32)])
    frame = kmeans_points.measure(points, 1)
    at = kmeans_points.keyed(np.zeros((1, 1), np.float32))
    drawn = seeding._draw(points, seeding._aim(np.array([1.0]), np.array([4.0, 4.0])), at, None, frame)
    assert drawn.rows.tolist() == [1]
    assert drawn.D_m.tolist() == [4.0]


# --- errors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
def test_points_that_are_no_numbers(bad):
    X = np.zeros((70, 3))
    X[66, 1] = bad
    with pytest.raises(ClusteringError, match="points of shard 1 hold NaN or infinite values; expected finite"):
        fit(LocalPoints([X[:60], X[60:]]), 2)


def test_wrong_precision():
    with pytest.raises(ClusteringError, match="precision 'half' is unknown; choose one of auto, float32"):
        KMeans(2, precision="half").fit(blobs(10, 3, 2))


def test_wrong_arguments():
    X = blobs(10, 3, 2)
    with pytest.raises(
        ClusteringError, match=r"k=0, n_init=1, max_iter=300, threads=1: each must be a whole number from 1 on"
    ):
        KMeans(0).fit(X)
    with pytest.raises(ClusteringError, match=r"init has shape \(2, 2\); expected finite numbers of shape \(2, 3\)"):
        KMeans(2, init=np.zeros((2, 2))).fit(X)
    with pytest.raises(ClusteringError, match=r"init has shape \(2, 3\); expected finite"):
        KMeans(2, init=np.full((2, 3), np.nan)).fit(X)
    with pytest.raises(ClusteringError, match="init 'best' is unknown; choose k-means"):
        KMeans(2, init="best").fit(X)
    with pytest.raises(ClusteringError, match=r"points have shape \(10,\); expected \[points, dimensions\]"):
        KMeans(2).fit(X[:, 0])
    with pytest.raises(ClusteringError, match=r"points of widths \[2, 3\] cannot be clustered together"):
        fit(LocalPoints([X, X[:, :2]]), 2)
    with pytest.raises(ClusteringError, match="k=2 but only 0 distinct points; lower k or use more text"):
        KMeans(2).fit(X[:0])


def test_a_wrong_label_is_noticed(monkeypatch):
    right = kmeans_kernels.brute_force
    monkeypatch.setattr(kmeans_kernels, "brute_force", lambda x, C: (right(x, C) + 1) % len(C))
    with pytest.raises(ClusteringError, match=r"internal check failed: point \d+ has label \d, brute force finds \d"):
        KMeans(2).fit(blobs(10, 3, 2))


# --- kernels in plain Python, and real states ---------------------------------------------------------------------


KERNEL_MODULES = (kmeans_kernels, kmeans_scan, kmeans_bytes)
KERNELS = {
    name: value.py_func
    for module in KERNEL_MODULES
    for name, value in vars(module).items()
    if hasattr(value, "py_func")
}


def at(address, count, kind):
    """The numbers at an address."""
    return np.ctypeslib.as_array((np.ctypeslib.as_ctypes_type(kind) * count).from_address(int(address)))


def plain_sum(x, c, d):
    return scores(at(x, d, np.float32)[None], at(c, d, np.float32)[None])[0, 0]


def plain_bounds(first, P, step, half, head, miss, tail, y_step, y_head, y_miss, y_tail, U):
    k, c = 64, slice(first, first + 64)
    step, half, head, miss, tail = (at(array, first + k, np.float32)[c] for array in (step, half, head, miss, tail))
    U = at(U, k, np.float32)
    U[:] = at(P, k, np.float32) * (step * y_step) - half + y_miss * head + y_head * miss + y_tail * tail
    return U.max()


def plain_tile(rows, width, bias, packed, steps, out, stride):
    points = np.stack([at(rows + r * width, width, np.int8) for r in range(6)]).astype(np.int64)
    centroids = at(packed, steps * 256, np.uint8).reshape(steps, 64, 4).swapaxes(1, 2).reshape(4 * steps, 64)
    for r in range(6):
        at(out + 4 * r * stride, 64, np.float32)[:] = points[r] @ centroids.astype(np.int64) + at(bias, 6, np.int32)[r]


def test_the_bounds_are_the_documented_ones():
    random = np.random.default_rng(0)
    products, *columns = random.normal(size=(6, 128)).astype(np.float32)
    y_step, y_head, y_miss, y_tail = random.normal(size=4).astype(np.float32)

    @njit  # compiled here, not read from a cache
    def call(first, P, step, half, head, miss, tail, U):
        return write_bounds(first, P, step, half, head, miss, tail, y_step, y_head, y_miss, y_tail, U)

    both = np.empty((2, 64), np.float32)
    where = [64, products[64:].ctypes.data, *(column.ctypes.data for column in columns)]
    top = call(*where, both[0].ctypes.data)
    plain_bounds(*where, y_step, y_head, y_miss, y_tail, both[1].ctypes.data)
    assert top == both[0].max()
    assert both[0] == pytest.approx(both[1], abs=1e-5)


@pytest.mark.parametrize("precision", ["auto", "float32"])
def test_compiled_and_plain_kernels_give_the_same_bits(monkeypatch, precision):
    """The engine runs again with every compiled body in plain Python."""
    X, lattice = blobs(80, 11, 6), np.array([[i % 5, i // 5] for i in range(25)], np.float32)
    wide = low_rank(30, 80, 3)
    cases = [(X, 5, {}), (X, 20, {"init": X[:20]}), (lattice, 18, {"init": np.zeros((18, 2))}), (wide, 4, {})]
    compiled = [fit(LocalPoints([Y[:9], Y[9:]]), k, precision=precision, **more) for Y, k, more in cases]
    single = fit(LocalPoints([X]), 1)
    for name, plain in KERNELS.items():
        for module in KERNEL_MODULES:
            monkeypatch.setattr(module, name, plain, raising=False)
    monkeypatch.setattr(kmeans_kernels, "squared_sum", plain_sum)
    monkeypatch.setattr(kmeans_scan, "write_bounds", plain_bounds)
    monkeypatch.setattr(kmeans_bytes, "_tile", plain_tile)
    for (Y, k, more), expected in zip(cases, compiled, strict=True):
        assert same_bits(expected, fit(LocalPoints([Y[:9], Y[9:]]), k, precision=precision, **more))
    assert same_bits(single, fit(LocalPoints([X]), 1, precision=precision))
    with pytest.raises(ClusteringError, match="NaN or infinite"):
        fit(LocalPoints([X * np.float32(np.nan)]), 2)


def test_the_score_is_the_documented_one():
    fresh = njit(kmeans_kernels.squared_distance.py_func)  # compiled here, not read from a cache
    for d in (1, 7, 8, 9, 24, 100):
        x, c = np.random.default_rng(d).normal(size=(2, d)).astype(np.float32)
        assert kmeans_kernels.squared_distance(x, c) == fresh(x, c) == scores(x[None], c[None])[0, 0]


@pytest.mark.skipif(not kmeans_bytes.available(), reason="AVX-512 VNNI is absent")
@pytest.mark.parametrize("q", [4, 96, 388])
def test_the_product_of_bytes_is_exact(q):
    random = np.random.default_rng(q)
    codes, others = (random.integers(-127, 128, (m, q)).astype(np.int8) for m in (12, 70))
    codes[0], others[0] = 127, -127
    out, bias = np.empty((12, 128), np.float32), (-128 * codes.sum(axis=1, dtype=np.int64)).astype(np.int32)
    expected = codes.astype(np.int64) @ others.T.astype(np.int64)
    for multiply in (kmeans_bytes.multiply, njit(kmeans_bytes.multiply.py_func)):
        multiply(codes, bias, kmeans_bytes.pack(others), out)
        assert (out[:, :70] == expected).all()
        assert (out[:, 70:] == 0).all()


@pytest.mark.shared
def test_real_word_vectors(shared):
    """The embedding rows of a trained encoder: unequal norms, a common mean, unused rows that hardly differ."""
    path = shared / "models" / "caption-encoder" / "step-008000" / "model.safetensors"
    raw = path.read_bytes()
    size = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + size])
    name = next(name for name in header if name.endswith("word_embeddings.weight"))
    first, last = header[name]["data_offsets"]
    kind = {"F16": np.float16, "F32": np.float32}[header[name]["dtype"]]
    X = (
        np.frombuffer(raw[8 + size + first : 8 + size + last], kind)
        .astype(np.float32)
        .reshape(header[name]["shape"])[:2500]
    )
    assert_sound(KMeans(60).fit(X), X, 60)


def test_predict_wants_a_fit_and_its_width():
    model = KMeans(2)
    with pytest.raises(ClusteringError, match="predict: there are no concepts yet; fit first"):
        model.predict(np.ones((3, 4)))
    model.fit(np.arange(24.0).reshape(6, 4))
    with pytest.raises(ClusteringError, match="points have 5 dimensions, the concepts 4"):
        model.predict(np.ones((3, 5)))


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"k": 2.5}, r"k=2\.5, n_init=1, max_iter=300, threads=1: each must be a whole number from 1 on"),
        ({"k": 0}, "k=0, .*: each must be a whole number from 1 on"),
        ({"seed": -1}, "seed=-1: expected a whole number from 0 on"),
        ({"seed": 0.5}, r"seed=0\.5: expected a whole number from 0 on"),
        ({"tol": -1.0}, r"tol=-1\.0: expected a number from 0 on"),
        ({"tol": float("nan")}, "tol=nan: expected a number from 0 on"),
    ],
)
def test_arguments_outside_their_range_are_refused(argument, message):
    with pytest.raises(ClusteringError, match=message):
        KMeans(**({"k": 2} | argument)).fit(np.arange(24.0).reshape(6, 4))
