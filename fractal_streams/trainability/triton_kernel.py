"""A network to a warp: every step on chip, both products of a step on tensor cores.

Matrices are kept transposed, (units, inputs): then the product that makes the sums of a tile of data leaves them as
the product that makes the gradient takes them, and no number moves between lanes but for the sum over units.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fractal_streams.trainability.triton_primitives import (
    account,
    activation,
    contraction,
    fold,
    operand,
    parted,
    product,
    product_onto,
    signed,
)

TILE = tl.constexpr(16)
EPSILON = tl.constexpr(1e-8)


@triton.jit
def taken(at, rest, tile, rows: tl.constexpr, columns: tl.constexpr, precision: tl.constexpr):
    """The operand of a tile and its rest."""
    held = operand(at + tile * (rows * columns), rows, columns)
    if precision == "tf32x3":
        return held, operand(at + rest + tile * (rows * columns), rows, columns)
    else:
        return held, held


@triton.jit
def gathered(x, order, start, count, alpha0: tl.constexpr, width: tl.constexpr, precision: tl.constexpr):
    """Both operands, with their rests, of the 16 rows that `order` names from `start` on; from `count` on row 0."""
    place, inputs = tl.arange(0, TILE), tl.arange(0, width)
    turned = contraction(place)
    rows = tl.load(order + start + place, place < count, 0)
    across = tl.load(order + start + turned, turned < count, 0)
    b1 = tl.load(x + rows[None, :] * width + contraction(inputs)[:, None]) * alpha0
    b2 = tl.load(x + across[:, None] * width + inputs[None, :]) * alpha0
    b1, b1_rest = parted(b1, precision)
    b2, b2_rest = parted(b2, precision)
    return rows, b1, b1_rest, b2, b2_rest


@triton.jit
def forward(
    a0, a0_rest, w1, last, b1, b1_rest, alpha0: tl.constexpr, alpha1: tl.constexpr, width: tl.constexpr,
    depth: tl.constexpr, nonlinearity: tl.constexpr, precision: tl.constexpr,
):  # fmt: skip
    """First hidden units and slopes, those of the last hidden layer, and the outputs of 16 rows."""
    h0, s0 = activation(product(a0, a0_rest, b1, b1_rest, precision), nonlinearity)
    if depth == 3:
        left, left_rest = parted(w1, precision)
        right, right_rest = parted(h0, precision)
        h1, s1 = activation(product(left, left_rest, right, right_rest, precision) * alpha0, nonlinearity)
    else:
        h1, s1 = h0, s0
    return h0, s0, h1, s1, tl.sum(h1 * last[:, None], axis=0) * alpha1


@triton.jit
def backward(
    h0, s0, h1, s1, error, valid, w1, last, b2, b2_rest, g0, g1, g2, alpha0: tl.constexpr, width: tl.constexpr,
    depth: tl.constexpr, masked: tl.constexpr, precision: tl.constexpr,
):  # fmt: skip
    """The gradients with those of 16 rows added; of depth 2 that of W0 lacks the factor `last`."""
    if masked:
        h1 = tl.where(valid[None, :], h1, 0.0)
        s1 = tl.where(valid[None, :], s1, 0.0)
    g2 += h1 * error[None, :]
    delta = s1 * error[None, :]
    if depth == 3:
        delta = delta * (last * alpha0)[:, None]
        left, left_rest = parted(delta, precision)
        right, right_rest = parted(tl.trans(h0), precision)
        if masked:
            right = tl.where(valid[:, None], right, 0.0)
            right_rest = tl.where(valid[:, None], right_rest, 0.0)
        g1 = product_onto(g1, left, left_rest, right, right_rest, precision)
        back, back_rest = parted(tl.trans(w1), precision)
        delta = s0 * product(back, back_rest, left, left_rest, precision)
        if masked:
            delta = tl.where(valid[None, :], delta, 0.0)
    left, left_rest = parted(fold(delta, width, TILE), precision)
    return product_onto(g0, left, left_rest, b2, b2_rest, precision), g1, g2


@triton.jit
def moved(w, g, m, u, rate, decay, momentum, beta2, power1, power2, optimiser: tl.constexpr, decays: tl.constexpr):
    """(weights, first state, second state) after one update."""
    if decays:
        g += decay * w
    if optimiser == "gradient_descent":
        return w - rate * g, m, u
    elif optimiser == "momentum":
        m = momentum * m + g
        return w - rate * m, m, u
    else:
        m = momentum * m + (1.0 - momentum) * g
        u = beta2 * u + (1.0 - beta2) * g * g
        unbiased = tl.sqrt(u * (1.0 / (1.0 - power2)).to(w.dtype)) + EPSILON
        return w - rate * (m * (1.0 / (1.0 - power1)).to(w.dtype) / unbiased), m, u


@triton.jit
def train_kernel(
    table, w0, w1, w2, xa, xb, x, y, order, probe, checkpoints,
    measure, diverged_at, final_loss, losses, probed,
    points, steps, kept,
    width: tl.constexpr, units: tl.constexpr, depth: tl.constexpr, rows: tl.constexpr, batch: tl.constexpr,
    alpha0: tl.constexpr, alpha1: tl.constexpr, nonlinearity: tl.constexpr, optimiser: tl.constexpr,
    drift: tl.constexpr, decays: tl.constexpr, checks: tl.constexpr, probes: tl.constexpr, precision: tl.constexpr,
):  # fmt: skip
    """Trains network `program_id(0)` of `points`.

    table: (8, points) float64. w0, w1: (width, width), transposed; w2: (width,). xa, xb: operands of each 16 rows, of
    "tf32x3" those of the rests behind them. x: (rows, width). y: (tiles * 16,). order: (steps, batch) int32.
    checkpoints: (checks,) int32, the last is `steps`. measure: (points, checks). losses: (points, kept).
    """
    net = tl.program_id(0).to(tl.int64)
    unit, place = tl.arange(0, width), tl.arange(0, TILE)
    kind: tl.constexpr = w2.dtype.element_ty
    tiles: tl.constexpr = (rows + 15) // 16
    batch_tiles: tl.constexpr = (batch + 15) // 16
    rest: tl.constexpr = tiles * 16 * width
    lr0 = tl.load(table + net).to(kind)
    lr1 = tl.load(table + points + net).to(kind)
    lr2 = tl.load(table + 2 * points + net).to(kind)
    momentum = tl.load(table + 3 * points + net)
    beta2 = tl.load(table + 4 * points + net)
    decay = tl.load(table + 5 * points + net).to(kind)
    offset = tl.load(table + 6 * points + net).to(kind)
    scale = tl.load(table + 7 * points + net).to(kind)
    square = unit[:, None] * width + unit[None, :]
    inside = (unit[:, None] < units) & (unit[None, :] < units)
    shift = tl.where(inside, offset, 0.0).to(kind)
    weights0 = tl.load(w0 + square) * scale
    if not drift:
        weights0 += shift
    weights1 = tl.zeros((1,), kind)
    if depth == 3:
        weights1 = tl.load(w1 + square) * scale
    last = tl.load(w2 + unit) * scale
    if optimiser == "gradient_descent":
        m0, m1, m2, u0, u1, u2 = lr0, lr0, lr0, lr0, lr0, lr0
    else:
        m0, u0 = tl.zeros((width, width), kind), tl.zeros((width, width), kind)
        m2, u2 = tl.zeros((width,), kind), tl.zeros((width,), kind)
        if depth == 3:
            m1, u1 = tl.zeros((width, width), kind), tl.zeros((width, width), kind)
        else:
            m1, u1 = lr0, lr0
    power1, power2 = momentum * 0.0 + 1.0, beta2 * 0.0 + 1.0
    ends = tl.load(checkpoints + tl.arange(0, checks))[None, :]
    first, final = tl.zeros((1, 1), tl.float64), tl.zeros((1, 1), tl.float64)
    diverged = tl.zeros((1, 1), tl.int32) + steps
    tail, total, inverse = (
        tl.zeros((1, checks), tl.float64), tl.zeros((1, checks), tl.float64), tl.zeros((1, checks), tl.float64)
    )  # fmt: skip
    alive = 1
    for step in range(steps):
        loss = tl.full((), float("nan"), tl.float64)
        if alive != 0:
            if drift:
                weights0 += shift
            a0, a0_rest = parted(fold(weights0, width, width), precision)
            g0, g2 = tl.zeros((width, width), kind), tl.zeros((width, TILE), kind)
            g1 = tl.zeros((1,), kind)
            if depth == 3:
                g1 = tl.zeros((width, width), kind)
            squares = tl.zeros((TILE,), kind)
            for tile in range(tiles):
                b1, b1_rest = taken(xa, rest, tile, width, TILE, precision)
                h0, s0, h1, s1, output = forward(
                    a0, a0_rest, weights1, last, b1, b1_rest, alpha0, alpha1, width, depth, nonlinearity, precision
                )
                valid = tile * TILE + place < rows
                error = output - tl.load(y + tile * TILE + place)
                if rows % 16 != 0:
                    error = tl.where(valid, error, 0.0)
                squares += error * error
                if batch == 0:
                    b2, b2_rest = taken(xb, rest, tile, TILE, width, precision)
                    g0, g1, g2 = backward(
                        h0, s0, h1, s1, error, valid, weights1, last, b2, b2_rest, g0, g1, g2, alpha0, width, depth,
                        rows % 16 != 0, precision,
                    )  # fmt: skip
            loss = tl.sum(squares, axis=0).to(tl.float64) / rows
            if probes:
                if step == steps - 1:
                    hp, sp = activation(
                        tl.sum(weights0 * tl.load(probe + unit)[None, :], axis=1) * alpha0, nonlinearity
                    )
                    if depth == 3:
                        hp, sp = activation(tl.sum(weights1 * hp[None, :], axis=1) * alpha0, nonlinearity)
                    tl.store(probed + net, (tl.sum(hp * last, axis=0) * alpha1).to(tl.float64))
            if batch != 0:
                for tile in range(batch_tiles):
                    start = step * batch + tile * TILE
                    named, b1, b1_rest, b2, b2_rest = gathered(
                        x, order, start, batch - tile * TILE, alpha0, width, precision
                    )
                    h0, s0, h1, s1, output = forward(
                        a0, a0_rest, weights1, last, b1, b1_rest, alpha0, alpha1, width, depth, nonlinearity, precision
                    )
                    valid = tile * TILE + place < batch
                    error = tl.where(valid, output - tl.load(y + named), 0.0)
                    g0, g1, g2 = backward(
                        h0, s0, h1, s1, error, valid, weights1, last, b2, b2_rest, g0, g1, g2, alpha0, width, depth,
                        batch % 16 != 0, precision,
                    )  # fmt: skip
            factor: tl.constexpr = 2.0 * alpha1 / (rows if batch == 0 else batch)
            power1 *= momentum
            power2 *= beta2
            mu, b2_ = momentum.to(kind), beta2.to(kind)
            if depth == 3:
                g0 = g0 * factor
                rate = lr2
                weights1, m1, u1 = moved(
                    weights1, g1 * factor, m1, u1, lr1, decay, mu, b2_, power1, power2, optimiser, decays
                )
            else:
                g0 = g0 * (last * factor)[:, None]
                rate = lr1
            weights0, m0, u0 = moved(weights0, g0, m0, u0, lr0, decay, mu, b2_, power1, power2, optimiser, decays)
            last, m2, u2 = moved(
                last, tl.sum(g2, axis=1) * factor, m2, u2, rate, decay, mu, b2_, power1, power2, optimiser, decays
            )
            if loss != loss:  # with a NaN among the last weights every later output is NaN, and every later loss
                alive = 1 - tl.max((last != last).to(tl.int32), axis=0)
        first, diverged, final, tail, total, inverse = account(
            tl.full((1, 1), 0.0, tl.float64) + loss, step, steps, ends, first, diverged, final, tail, total, inverse
        )
        if step < kept:
            tl.store(losses + net * kept + step + tl.zeros((1, 1), tl.int32), final)
    one = tl.zeros((1, 1), tl.int32)
    tl.store(measure + net * checks + tl.arange(0, checks)[None, :], signed(ends, tail, total, inverse))
    tl.store(diverged_at + net + one, diverged)
    tl.store(final_loss + net + one, final)
