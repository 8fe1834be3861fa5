"""A pass of K-means on a torch device: float16 products on tensor cores rule centroids out, the canonical score decides.

Every reported number is float64 in the order of operations of `kmeans_kernels`, so the bits are those of any processor.
The points stay on the device from pass to pass. Shapes: n points, k centroids, d dimensions, b rows of one block.

In scaled and centred units a point is y, a centroid z, and |y - z|^2 = |y|^2 - 2t with t = y.z - |z|^2/2. With y' and z' in
float16, miss >= |y - y'| and norm = |y|, Cauchy and Schwarz give for the product P of y' and z'

    t <= P + miss_y norm_z + (norm_y + miss_y)(miss_z + g (norm_z + miss_z)) - (1 - GUARD) |z|^2/2 = U.

g = 4 (d + 2) u / (1 - 4 (d + 2) u), u = 2^-24, is four times the factor of IEEE float32 sums (Higham 2002, section 3.1):
tensor cores multiply exactly, but cut the sum of each group of products off where float32 would round it (Fasi, Higham,
Mikaitis and Pranesh 2021, "Numerical behavior of NVIDIA tensor cores"). The product's output is float32, its rounding is one of
these; d is below 2^20. The two terms of errors are two more columns of the float16 matrices, rounded up.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from raypipe.errors import ClusteringError
from raypipe.science.kmeans_kernels import F32, F64, I32, UNIT_32, UNIT_64
from raypipe.science.kmeans_scan import Best

if TYPE_CHECKING:
    from torch import Tensor

    from raypipe.science.kmeans_points import Frame, Shard

BLOCK_NUMBERS = 2**26  # numbers of one block: scores in float32, differences in float64
LARGEST = 60_000.0  # what float16 holds, with room for rounding up
GUARD = 16 * UNIT_32  # share of |z|^2/2: its rounding, and that of the difference
BALANCE = 64.0  # a power of two between the two factors of the second error term: keeps both within float16
UP = 1 + 2.0**-9  # more than the rounding of an error term to float16, and of its product
LEAST = 2.0**-24  # of float16


class Held(NamedTuple):
    """Points of a shard, or centroids, on the device."""

    X_nd: Tensor
    """float32."""
    H_nd: Tensor
    """y', float16."""
    norm_n: Tensor
    """float64."""
    miss_n: Tensor
    """float64."""


def nearest(shard: Shard, C_kd: F32, frame: Frame, device: str) -> Best:
    """The nearest centroid of every point: least canonical score, lowest index on ties; lower bounds are 0.

    Args:
        shard: The points; copied to the device at the first call.
        C_kd: Centroids, [k, d] float32.
        frame: Mean and variance.
        device: As torch names it.

    Raises:
        ClusteringError: there is no such device.
    """
    import torch

    held, scale = _held(shard, frame, device), _scale(frame)
    centroids = _rounded(torch.tensor(C_kd, device=device), frame)
    columns_kd, half_k = _columns(centroids)
    n, width = len(held.X_nd), max(len(C_kd), C_kd.shape[1])
    labels_n = torch.empty(n, dtype=torch.int64, device=device)
    dist_n = torch.empty(n, dtype=torch.float64, device=device)
    size = max(1, BLOCK_NUMBERS // width)
    for first in range(0, n, size):
        block = Held(*(part[first : first + size] for part in held))
        U_bk = _product(_rows(block), columns_kd).sub_(half_k)
        found = _decide(U_bk, block, centroids.X_nd, scale)
        labels_n[first : first + size], dist_n[first : first + size] = found
    return Best(labels_n.cpu().numpy().astype(np.int32), dist_n.cpu().numpy(), np.zeros(n))


def add_rows(shard: Shard, labels_n: I32, k: int, frame: Frame, device: str) -> F64:
    """Sum of the points of each concept, [k, d] float64, in row order."""
    import torch

    X_nd = _held(shard, frame, device).X_nd
    labels = torch.tensor(labels_n, device=device)
    order, counts_k = torch.argsort(labels, stable=True), torch.bincount(labels, minlength=k)
    step = max(1, BLOCK_NUMBERS // max(1, len(labels)))
    parts = [  # one accumulator for each concept and dimension, on every device
        torch.segment_reduce(X_nd[:, first : first + step][order].double(), "sum", lengths=counts_k, axis=0)
        for first in range(0, X_nd.shape[1], step)
    ]
    sums_kd: F64 = torch.cat(parts, dim=1).cpu().numpy()
    return sums_kd


def _held(shard: Shard, frame: Frame, device: str) -> Held:
    import torch

    key = device, frame.mean_d.tobytes(), frame.variance
    known, held = shard.state.get("device", (None, None))
    if known != key:
        _check_device(device)
        held = _rounded(torch.tensor(shard.X_nd, device=device), frame)
        shard.state["device"] = key, held
    found: Held = held
    return found


def _check_device(name: str) -> None:
    import torch

    try:
        device = torch.device(name)
        there = device.type != "cuda" or (device.index or 0) < torch.cuda.device_count()
    except RuntimeError:  # of a name that torch does not know
        there = False
    if not there:
        raise ClusteringError(
            f"device {name}: this worker sees no such device; set resources.gpus_per_worker to 0 or start Ray on GPU nodes"
        )


def _scale(frame: Frame) -> float:
    """A power of two; it brings the standard deviation of a coordinate to about 1/16: all but wild ones fit float16."""
    return math.ldexp(1.0, -math.frexp(math.sqrt(frame.variance))[1] - 4)


def _rounded(X_nd: Tensor, frame: Frame) -> Held:
    """Round the scaled and centred rows to float16 and measure what is lost; one float64 rounding of y itself is in UP."""
    import torch

    mean_d, scale = torch.tensor(frame.mean_d, device=X_nd.device), _scale(frame)
    H_nd = torch.empty(X_nd.shape, dtype=torch.float16, device=X_nd.device)
    norm_n = torch.empty(len(X_nd), dtype=torch.float64, device=X_nd.device)
    miss_n = torch.empty_like(norm_n)
    size = max(1, BLOCK_NUMBERS // X_nd.shape[1])
    for first in range(0, len(X_nd), size):
        here = slice(first, first + size)
        Y_bd = (X_nd[here].double() - mean_d) * scale
        H_nd[here] = Y_bd.clamp(-LARGEST, LARGEST).half()
        norm_n[here] = torch.linalg.vector_norm(Y_bd, dim=1)
        miss_n[here] = torch.linalg.vector_norm(H_nd[here].double() - Y_bd, dim=1)
    return Held(X_nd, H_nd, norm_n, miss_n + 2.0**-50 * norm_n)


def _raised(values_n: Tensor) -> Tensor:
    """Error terms as float16, not below; those that float16 cannot hold are cut and must be seen to by the caller."""
    return (values_n * UP + LEAST).clamp(max=LARGEST).half()


def _rows(points: Held) -> Tensor:
    """Points with their error terms, [b, d + 2] float16."""
    import torch

    terms = _raised(points.miss_n), _raised((points.norm_n + points.miss_n) / BALANCE)
    return torch.cat([points.H_nd, *(term[:, None] for term in terms)], dim=1)


def _columns(centroids: Held) -> tuple[Tensor, Tensor]:
    """Centroids with their error terms, [k, d + 2] float16, and what is taken off each product, [k] float32.

    A centroid whose terms do not fit is never ruled out.
    """
    import torch

    d = centroids.H_nd.shape[1]
    g = 4 * (d + 2) * UNIT_32 / (1 - 4 * (d + 2) * UNIT_32)
    norm_k, miss_k = centroids.norm_n * (1 + 2 * g), centroids.miss_n * (1 + 2 * g)
    second_k = (miss_k + g * (norm_k + miss_k)) * BALANCE
    half_k = (centroids.norm_n**2 * (0.5 - GUARD / 2)).float()
    half_k[torch.maximum(norm_k, second_k) * UP >= LARGEST / 2] = -math.inf
    terms = _raised(norm_k), _raised(second_k)
    return torch.cat([centroids.H_nd, *(term[:, None] for term in terms)], dim=1), half_k


def _product(A_bd: Tensor, B_kd: Tensor) -> Tensor:
    """A B', [b, k] float32, from float16 with sums in float32 or, where torch has no such product, in float64."""
    import torch

    if A_bd.device.type == "cpu":
        return torch.mm(A_bd.double(), B_kd.T.double()).float()
    with _whole_sums():  # pragma: no cover (needs a GPU)
        return torch.mm(A_bd, B_kd.T, out_dtype=torch.float32)


@contextmanager
def _whole_sums() -> Iterator[None]:
    """Products of float16 whose sums are float32 throughout."""
    import torch

    switches = torch.backends.cuda.matmul
    names = ("allow_fp16_reduced_precision_reduction", "allow_fp16_accumulation")
    before = {name: getattr(switches, name) for name in names}
    try:
        for name in names:
            setattr(switches, name, False)
        yield
    finally:
        for name, value in before.items():
            setattr(switches, name, value)


def _decide(U_bk: Tensor, points: Held, C_kd: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Labels and scores of a block: the centroid of the largest bound, and every other that its score cannot rule out."""
    import torch

    first_b = U_bk.argmax(dim=1)
    dist_b = _scores(points.X_nd, None, C_kd, first_b)
    slack = (C_kd.shape[1] + 8) * UNIT_64
    norm_b = points.norm_n
    floor_b = (norm_b * norm_b * (1 - 2 * slack) - dist_b * (scale * scale * (1 + 4 * slack))) / 2
    floor_b = (floor_b - floor_b.abs() * (4 * UNIT_32) - LEAST * LEAST).float()
    floor_b[norm_b * UP >= LARGEST / 2] = -math.inf  # its error terms did not fit
    near_bk = U_bk >= floor_b[:, None]
    rows_m, others_m = near_bk.scatter_(1, first_b[:, None], value=False).nonzero(as_tuple=True)
    if not len(rows_m):
        return first_b, dist_b
    scores_m = _scores(points.X_nd, rows_m, C_kd, others_m)
    least_b = dist_b.scatter_reduce(0, rows_m, scores_m, "amin")
    labels_b = torch.where(dist_b == least_b, first_b, len(C_kd))
    ties = scores_m == least_b[rows_m]
    return labels_b.scatter_reduce(0, rows_m[ties], others_m[ties], "amin"), least_b


def _scores(X_nd: Tensor, rows_m: Tensor | None, C_kd: Tensor, labels_m: Tensor) -> Tensor:
    """The canonical score of some rows (None: all) to a centroid each, [m] float64; see `kmeans_kernels.squared_distance`."""
    import torch

    d = C_kd.shape[1]
    whole, size = d - d % 8, max(1, BLOCK_NUMBERS // d)
    out_m = torch.empty(len(labels_m), dtype=torch.float64, device=X_nd.device)
    for first in range(0, len(labels_m), size):
        here = slice(first, first + size)
        D_md = (X_nd[here] if rows_m is None else X_nd[rows_m[here]]).double() - C_kd[labels_m[here]].double()
        D_md *= D_md
        sums_m8 = torch.zeros(len(D_md), 8, dtype=torch.float64, device=X_nd.device)
        for start in range(0, whole, 8):
            sums_m8 += D_md[:, start : start + 8]
        for column in range(whole, d):
            sums_m8[:, 0] += D_md[:, column]
        pairs_m4 = sums_m8[:, ::2] + sums_m8[:, 1::2]
        fours_m2 = pairs_m4[:, ::2] + pairs_m4[:, 1::2]
        out_m[here] = fours_m2[:, 0] + fours_m2[:, 1]
    return out_m
