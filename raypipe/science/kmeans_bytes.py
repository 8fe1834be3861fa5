"""A product of int8 matrices in registers, for processors with AVX-512 VNNI: four times the rate of float32, and exact.

`vpdpbusd` adds four products of an unsigned and a signed byte to a 32-bit sum. Centroids are stored with 128 added, which
the start value of each sum takes back. Sums of d products are exact for d below `MOST_DIMENSIONS`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import njit, types
from numba.extending import intrinsic
from numpy.typing import NDArray

from raypipe.science.kmeans_vectors import F32, I32, element, number, repeat, splat

I8 = NDArray[np.int8]
U8 = NDArray[np.uint8]

TILE_ROWS, TILE_VECTORS, LANES = 6, 4, 16  # 24 registers of sums, 4 of centroids, 1 of a point: 29 of 32
TILE = TILE_VECTORS * LANES  # centroids of one tile
MOST_DIMENSIONS = 2**16  # 255 x 127 x d stays below 2^31


@lru_cache(maxsize=1)
def available() -> bool:
    """Whether this processor has the instruction."""
    from llvmlite import binding

    return bool(binding.get_host_cpu_features().get("avx512vnni", False))


def pack(codes_kq: I8) -> U8:
    """Centroids in the order in which a tile reads them: [tiles, q / 4 * TILE * 4] uint8; missing ones are zero.

    Args:
        codes_kq: [k, q] int8, q a multiple of 4.
    """
    k, q = codes_kq.shape
    tiles = -(-k // TILE)
    raised = np.full((tiles * TILE, q), 128, np.uint8)
    raised[:k] = codes_kq.view(np.uint8) + np.uint8(128)  # modulo 256
    return np.ascontiguousarray(raised.reshape(tiles, TILE, q // 4, 4).swapaxes(1, 2)).reshape(tiles, q * TILE)


@intrinsic  # type: ignore[untyped-decorator]
def _tile(context: Any, rows: Any, width: Any, bias: Any, packed: Any, steps: Any, out: Any, stride: Any) -> Any:
    """Multiply TILE_ROWS rows by one tile: addresses of rows (`width` bytes each), start values, packed tile and output."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _emit_tile(builder, *args)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 7), generate


def _emit_tile(builder: Any, rows: Any, width: Any, bias: Any, packed: Any, steps: Any, out: Any, stride: Any) -> None:
    vector = ir.VectorType(I32, LANES)
    name = "llvm.x86.avx512.vpdpbusd.512"
    multiply_add = builder.module.declare_intrinsic(name, (), ir.FunctionType(vector, [vector] * 3))

    def spread(base: Any, index: Any) -> Any:
        return splat(builder, builder.load(element(builder, base, index, 4, I32), align=1), LANES)

    def add(step: Any, sums: list[Any]) -> list[Any]:
        here = builder.add(packed, builder.mul(step, number(4 * TILE)))
        columns = [builder.load(element(builder, here, number(v), 64, vector), align=1) for v in range(TILE_VECTORS)]
        added = []
        for row in range(TILE_ROWS):
            four = spread(builder.add(rows, builder.mul(width, number(row))), step)
            added += [
                builder.call(multiply_add, (sums[row * TILE_VECTORS + v], columns[v], four))
                for v in range(TILE_VECTORS)
            ]
        return added

    starts = [spread(bias, number(row)) for row in range(TILE_ROWS) for _ in range(TILE_VECTORS)]
    sums = repeat(builder, steps, starts, add)
    for row in range(TILE_ROWS):
        at = builder.add(out, builder.mul(stride, number(4 * row)))
        for v in range(TILE_VECTORS):
            product = builder.sitofp(sums[row * TILE_VECTORS + v], ir.VectorType(F32, LANES))
            builder.store(product, element(builder, at, number(v), 64, product.type), align=1)


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def multiply(codes_bq: I8, bias_b: NDArray[np.int32], packed: U8, P_bk: NDArray[np.float32]) -> None:
    """Write the product of codes and packed centroids; exact sums, rounded to float32 where they pass 2^24.

    Args:
        codes_bq: points, [b, q] int8, b a multiple of TILE_ROWS, q one of 4.
        bias_b: -128 times the sum of each row, [b] int32.
        packed: some tiles of `pack`, [tiles, q * TILE] uint8.
        P_bk: out, [b, tiles * TILE] float32.
    """
    b, q = codes_bq.shape
    rows, bias = np.int64(codes_bq.ctypes.data), np.int64(bias_b.ctypes.data)
    columns, out, stride = np.int64(packed.ctypes.data), np.int64(P_bk.ctypes.data), P_bk.shape[1]
    for tile in range(packed.shape[0]):
        for row in range(0, b, TILE_ROWS):
            where = out + 4 * (row * stride + tile * TILE)
            _tile(rows + row * q, q, bias + 4 * row, columns + tile * q * TILE, q // 4, where, stride)
