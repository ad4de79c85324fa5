"""A layer of a network on a GPU: product, bias, activation, and at the last layer what the chain needs, in one kernel.

A row's sums are taken in one order, k after k in one accumulator, wherever the row lies and however many there are: no
split of k, no other tile for other batches. So row r of any batch is, to the bit, what it would be alone.

float32 goes through pairs of float16, x = high + low / 2048 of 22 bits: x w = high high + (high low + low high) / 2048,
three products of tensor cores, each exact. Tensor cores cut their sums off where float32 would round them; so those of
the high halves are added up by the ordinary units, 64 k after 64 k.
"""

# mypy: ignore-errors

import os

import triton
import triton.language as tl

from fractal_streams.draw.triton_kernel import philox
from fractal_streams.kaleidoscope.network import LEAK

_INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET", "0") == "1")
_LEAK = tl.constexpr(LEAK)
_TURN = tl.constexpr(6.283185307179586)
_LOW = tl.constexpr(2048.0)
_LARGEST = tl.constexpr(65504.0)


@triton.jit
def hyperbolic_tangent(x):
    """tanh, within 2e-7: odd, and exact at 0."""
    size = tl.abs(x)
    power = tl.exp(-2.0 * size)
    square = x * x
    near = x * (1.0 + square * (-0.33333334 + square * (0.13333334 - square * 0.053968254)))
    far = tl.where(x < 0.0, -1.0, 1.0) * (1.0 - power) / (1.0 + power)
    return tl.where(size < 0.0625, near, far)


@triton.jit
def rough_tangent(x):
    """tanh within 5e-4 of itself, an eighth of what bfloat16 can tell apart: one instruction."""
    if _INTERPRETED:
        return hyperbolic_tangent(x)
    else:
        return tl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=f,f", [x], tl.float32, True, 1)


@triton.jit
def activated(x, name: tl.constexpr, rough: tl.constexpr):
    """An activation or a head, elementwise in float32; rough where bfloat16 is made of it."""
    if name == "relu":
        return tl.maximum(x, 0.0)
    elif name == "leaky_relu":
        return tl.where(x > 0.0, x, _LEAK * x)
    elif name == "gelu":
        return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif name == "silu":
        return x / (1.0 + tl.exp(-x))
    elif name == "sigmoid":
        return 1.0 / (1.0 + tl.exp(-x))
    elif name == "tanh":
        if rough:
            return rough_tangent(x)
        else:
            return hyperbolic_tangent(x)
    elif name == "sin":
        return tl.sin(x)
    else:
        return x


@triton.jit
def layer_kernel(
    x, x_low, w, w_low, bias, state, state_low, y, y_low, tile_models, steps, change,
    rows, columns, k_tiles, size, one,
    name: tl.constexpr, last: tl.constexpr, pair: tl.constexpr, full: tl.constexpr,
    bm: tl.constexpr, bn: tl.constexpr, bk: tl.constexpr, group: tl.constexpr, parts: tl.constexpr,
):  # fmt: skip
    """y = activation(x w' + bias) of (rows, K) x and, for the network of each tile of rows, (columns, K) w.

    x, w, state, y and their low halves are descriptors. last: rows at rest (steps >= 0) keep their state, and the
    largest change of the others goes into `change`, as the bits of a float. full: y is float32, with no low half.
    one: 1.0, which the compiler must not know: it would let the tensor cores add.
    """
    tiles_m, tiles_n = tl.cdiv(rows, bm), tl.cdiv(columns, bn)
    across: tl.constexpr = bn // parts
    for tile in tl.range(tl.program_id(0), tiles_m * tiles_n, tl.num_programs(0), flatten=True):
        band = tile // (group * tiles_n)
        first = band * group
        tall = tl.minimum(tiles_m - first, group)
        place = tile % (group * tiles_n)
        tile_m, tile_n = first + place % tall, place // tall
        row, column = tile_m * bm, tile_n * bn
        of = tl.load(tile_models + tile_m) * columns + column
        total = tl.zeros((bm, bn), tl.float32)
        if pair:
            cross = tl.zeros((bm, bn), tl.float32)
        for k in range(k_tiles):
            a, b = x.load([row, k * bk]), w.load([of, k * bk])
            if pair:
                total += tl.dot(a, b.T) * one
                a_low, b_low = x_low.load([row, k * bk]), w_low.load([of, k * bk])
                cross = tl.dot(a, b_low.T, cross)
                cross = tl.dot(a_low, b.T, cross)
            else:
                total = tl.dot(a, b.T, total)
        if pair:
            total = total + cross * (1.0 / _LOW)
        if parts == 1:
            put(total, bias, state, state_low, y, y_low, steps, change, row, column, of, columns, size,
                name, last, pair, full, bm, bn)  # fmt: skip
        else:
            halves = tl.permute(tl.reshape(total, (bm, 2, across)), (0, 2, 1))
            left, right = tl.split(halves)
            put(left, bias, state, state_low, y, y_low, steps, change, row, column, of, columns, size,
                name, last, pair, full, bm, across)  # fmt: skip
            put(right, bias, state, state_low, y, y_low, steps, change, row, column + across, of + across, columns,
                size, name, last, pair, full, bm, across)  # fmt: skip


@triton.jit
def put(
    total, bias, state, state_low, y, y_low, steps, change, row, column, of, columns, size,
    name: tl.constexpr, last: tl.constexpr, pair: tl.constexpr, full: tl.constexpr, bm: tl.constexpr,
    bn: tl.constexpr,
):  # fmt: skip
    """The end of a layer for one tile of sums."""
    lanes = tl.arange(0, bn)
    offset = tl.load(bias + of + lanes, mask=column + lanes < columns, other=0.0)
    value = activated(total + offset[None, :], name, not (pair or full))
    if full:
        y.store([row, column], value)
    elif pair:
        value = tl.minimum(tl.maximum(value, -_LARGEST), _LARGEST)
        high = value.to(tl.float16)
        low = ((value - high.to(tl.float32)) * _LOW).to(tl.float16)
        if last:
            old, old_low = state.load([row, column]), state_low.load([row, column])
            rests = tl.load(steps + row + tl.arange(0, bm)) >= 0
            moved = tl.abs((high.to(tl.float32) - old.to(tl.float32))
                           + (low.to(tl.float32) - old_low.to(tl.float32)) * (1.0 / _LOW))  # fmt: skip
            high, low = tl.where(rests[:, None], old, high), tl.where(rests[:, None], old_low, low)
            note(moved, rests, change, row, column, size, bm, bn)
        y.store([row, column], high)
        y_low.store([row, column], low)
    else:
        rounded = value.to(tl.bfloat16)
        if last:
            old = state.load([row, column])
            rests = tl.load(steps + row + tl.arange(0, bm)) >= 0
            moved = tl.abs(rounded.to(tl.float32) - old.to(tl.float32))
            rounded = tl.where(rests[:, None], old, rounded)
            note(moved, rests, change, row, column, size, bm, bn)
        y.store([row, column], rounded)


@triton.jit
def note(moved, rests, change, row, column, size, bm: tl.constexpr, bn: tl.constexpr):
    """The largest change of each row that moves, so far."""
    inside = column + tl.arange(0, bn) < size
    most = tl.max(tl.where(inside[None, :], moved, 0.0), axis=1)
    tl.atomic_max(change + row + tl.arange(0, bm), most.to(tl.int32, bitcast=True), mask=~rests, sem="relaxed")


@triton.jit
def settle_kernel(steps, change, found, clock, rows, tolerance, least, block: tl.constexpr):
    """Behind a step: who rests, nobody if the tolerance is below 0.

    `clock` counts the steps of this run, `found` keeps the last change of each row.
    """
    place = tl.program_id(0) * block + tl.arange(0, block)
    within = place < rows
    step = tl.zeros((block,), tl.int32) + tl.load(clock)
    moving = within & (tl.load(steps + place, mask=within, other=0) < 0)
    bits = tl.load(change + place, mask=within, other=0)
    moved = bits.to(tl.float32, bitcast=True)
    tl.store(found + place, moved, mask=moving)
    tl.store(change + place, tl.zeros((block,), tl.int32), mask=within)
    rests = moving & (moved <= tolerance) & (step >= least)
    tl.store(steps + place, step, mask=rests)


@triton.jit
def unit(word):
    """(0, 1) of 32 bits, float64."""
    return (word.to(tl.float64) + 0.5) * 2.3283064365386963e-10


@triton.jit
def draws(chain, step, number, k0, k1, normal: tl.constexpr):
    """float64 draw `number` of chains: uniform in (0, 1), or standard normal by Box and Muller."""
    unsigned = chain.to(tl.uint64)
    low, high = (unsigned & 0xFFFFFFFF).to(tl.uint32), (unsigned >> 32).to(tl.uint32)
    zero = number.to(tl.uint32) * 0
    a, b, c, d = philox(low + zero, high + zero, step.to(tl.uint32) + zero, (number >> 2).to(tl.uint32) + low * 0,
                        k0, k1)  # fmt: skip
    which = (number & 3) + a.to(tl.int32) * 0
    if normal:
        first, second = tl.where(which < 2, a, c), tl.where(which < 2, b, d)
        radius = tl.sqrt(-2.0 * tl.log(unit(first)))
        turn = unit(second) * _TURN
        return radius * tl.where((which & 1) == 0, tl.cos(turn), tl.sin(turn))
    else:
        return unit(tl.where(which == 0, a, tl.where(which == 1, b, tl.where(which == 2, c, d))))


@triton.jit(do_not_specialize=["key0", "key1"])
def noise_kernel(
    out, chains, clock, size, height, width, shift, tall, wide, scale, key0, key1,
    normal: tl.constexpr, add: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """out (rows, size) float32 = [out +] scale * draw of the cell that a value lies in, cells 2**shift values wide."""
    row = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * block + tl.arange(0, block)
    within = place < size
    chain = tl.load(chains + row)
    x, y, channel = place % width, (place // width) % height, place // (width * height)
    number = (channel * tall + (y >> shift)) * wide + (x >> shift)
    drawn = scale * draws(chain, tl.load(clock), number, key0.to(tl.uint32), key1.to(tl.uint32), normal)
    target = out + row * size + place
    if add:
        drawn += tl.load(target, mask=within, other=0.0)
    tl.store(target, drawn, mask=within)


@triton.jit
def argmin_kernel(scores, own, models, out, table, stride, masked: tl.constexpr, block: tl.constexpr):
    """(rows,) first place of the smallest of `table` scores of each row, of its own network if masked."""
    row = tl.program_id(0).to(tl.int64)
    best = tl.full((), float("inf"), tl.float32)
    place = tl.full((), 0, tl.int32)
    if masked:
        model = tl.load(models + row)
    for first in range(0, table, block):
        lanes = first + tl.arange(0, block)
        within = lanes < table
        score = tl.load(scores + row * stride + lanes, mask=within, other=float("inf"))
        if masked:
            score = tl.where(tl.load(own + lanes, mask=within, other=-1) == model, score, float("inf"))
        least, where = tl.min(score, axis=0, return_indices=True, return_indices_tie_break_left=True)
        place = tl.where(least < best, first + where, place)
        best = tl.minimum(best, least)
    tl.store(out + row, place.to(tl.int64))


@triton.jit
def distance_kernel(states, table, place, out, size, span, block: tl.constexpr):
    """(rows,) RMSE of each state to its row of the table, over the range."""
    row = tl.program_id(0).to(tl.int64)
    entry = tl.load(place + row)
    total = tl.zeros((block,), tl.float32)
    for first in range(0, size, block):
        lanes = first + tl.arange(0, block)
        within = lanes < size
        apart = (tl.load(states + row * size + lanes, mask=within, other=0.0)
                 - tl.load(table + entry * size + lanes, mask=within, other=0.0))  # fmt: skip
        total += apart * apart
    tl.store(out + row, tl.sqrt(tl.sum(total, axis=0) / size) / span)
