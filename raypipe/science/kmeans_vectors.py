"""Inner loops as LLVM vector code, where the compiler finds none by itself; for any processor.

Each is a function of addresses (`array.ctypes.data`), called inside compiled code only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.extending import intrinsic

F32, F64, I32, I64 = ir.FloatType(), ir.DoubleType(), ir.IntType(32), ir.IntType(64)


def element(builder: Any, base: Any, index: Any, size: int, kind: Any) -> Any:
    """A pointer to `kind` at base + index * size bytes."""
    return builder.inttoptr(builder.add(base, builder.mul(index, number(size))), kind.as_pointer())


def number(value: int) -> Any:
    """A 64-bit constant."""
    return ir.Constant(I64, value)


def splat(builder: Any, value: Any, lanes: int) -> Any:
    """The same value in all lanes."""
    kind = ir.VectorType(value.type, lanes)
    one = builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(I32, 0))
    return builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(I32, lanes), [0] * lanes))


def repeat(builder: Any, times: Any, starts: list[Any], body: Callable[[Any, list[Any]], list[Any]]) -> list[Any]:
    """A loop that carries values: body(step, values) gives the next ones; returns those after `times` steps."""
    before, head = builder.block, builder.append_basic_block("head")
    inside, after = builder.append_basic_block("inside"), builder.append_basic_block("after")
    builder.branch(head)
    builder.position_at_end(head)
    step = builder.phi(I64)
    step.add_incoming(number(0), before)
    values = [builder.phi(start.type) for start in starts]
    for value, start in zip(values, starts, strict=True):
        value.add_incoming(start, before)
    builder.cbranch(builder.icmp_signed("<", step, times), inside, after)
    builder.position_at_end(inside)
    following = body(step, values)
    step.add_incoming(builder.add(step, number(1)), builder.block)
    for value, new in zip(values, following, strict=True):
        value.add_incoming(new, builder.block)
    builder.branch(head)
    builder.position_at_end(after)
    return values


def fold(builder: Any, value: Any, combine: Callable[[Any, Any], Any]) -> Any:
    """Combine the lanes as a balanced tree, neighbours first."""
    parts = [builder.extract_element(value, ir.Constant(I32, lane)) for lane in range(value.type.count)]
    while len(parts) > 1:
        parts = [combine(parts[i], parts[i + 1]) for i in range(0, len(parts), 2)]
    return parts[0]


@intrinsic  # type: ignore[untyped-decorator]
def squared_sum(context: Any, x: Any, c: Any, d: Any) -> Any:
    """Add up (x - c)^2 over two float32 vectors of length d: eight sums side by side, the rest into the first, then a tree."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        x, c, d = args
        narrow, wide = ir.VectorType(F32, 8), ir.VectorType(F64, 8)

        def square(index: Any, size: int, kind: Any, result: Any) -> Any:
            first, other = (
                builder.fpext(builder.load(element(builder, base, index, size, kind), align=4), result)
                for base in (x, c)
            )
            difference = builder.fsub(first, other)
            return builder.fmul(difference, difference)

        def eight(step: Any, sums: list[Any]) -> list[Any]:
            return [builder.fadd(sums[0], square(step, 32, narrow, wide))]

        def single(step: Any, sums: list[Any]) -> list[Any]:
            return [builder.fadd(sums[0], square(builder.add(whole, step), 4, F32, F64))]

        vectors = builder.sdiv(d, number(8))
        whole = builder.mul(vectors, number(8))
        (sums,) = repeat(builder, vectors, [ir.Constant(wide, [0.0] * 8)], eight)
        lane = ir.Constant(I32, 0)
        (first,) = repeat(builder, builder.sub(d, whole), [builder.extract_element(sums, lane)], single)
        return fold(builder, builder.insert_element(sums, first, lane), builder.fadd)

    return types.float64(types.int64, types.int64, types.int64), generate


CHUNK_VECTORS, LANES = 4, 16
CHUNK = CHUNK_VECTORS * LANES  # bounds that `write_bounds` writes


@intrinsic  # type: ignore[untyped-decorator]
def write_bounds(
    context: Any, first: Any, P: Any, step: Any, half: Any, head: Any, miss: Any, tail: Any,
    y_step: Any, y_head: Any, y_miss: Any, y_tail: Any, U: Any,
) -> Any:  # fmt: skip
    """Write the bounds U of CHUNK centroids, `first` and following, for one point; return the largest.

    P, U: addresses of the point's products and bounds for these centroids; step … tail: of the weights of all centroids.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        first, P, *columns, y_step, y_head, y_miss, y_tail, U = args
        vector = ir.VectorType(F32, LANES)
        point = [splat(builder, value, LANES) for value in (y_step, y_head, y_miss, y_tail)]
        top = None
        for index in range(0, CHUNK, LANES):
            here = number(index)
            at = builder.add(first, here)
            product = builder.load(element(builder, P, here, 4, vector), align=4)
            step, half, head, miss, tail = (
                builder.load(element(builder, column, at, 4, vector), align=4) for column in columns
            )
            terms = ((point[2], head), (point[1], miss), (point[3], tail))
            bound = builder.fsub(builder.fmul(product, builder.fmul(step, point[0])), half)
            for one, other in terms:
                bound = builder.fadd(bound, builder.fmul(one, other), flags=["contract"])
            builder.store(bound, element(builder, U, here, 4, vector), align=4)
            top = bound if top is None else larger(builder, top, bound)
        return fold(builder, top, lambda one, other: larger(builder, one, other))

    return types.float32(*[types.int64] * 7, *[types.float32] * 4, types.int64), generate


def larger(builder: Any, one: Any, other: Any) -> Any:
    """The larger of two floats, or lane by lane."""
    return builder.select(builder.fcmp_ordered(">", one, other), one, other)
