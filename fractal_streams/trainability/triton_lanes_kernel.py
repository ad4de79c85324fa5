"""Units on lanes, without tensor cores: float32 with IEEE products; and single examples in their reduced form."""

# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl

from fractal_streams.trainability.triton_primitives import account, activation, signed


@triton.jit
def sums(x, row, weights, width: tl.constexpr):
    """Sums of each unit's inputs in one row of data, one fused product after another."""
    z = weights[0] * tl.load(x + row * width)
    for k in tl.static_range(1, width):
        z = tl.fma(weights[k], tl.load(x + row * width + k) + tl.zeros_like(z), z)
    return z


@triton.jit
def lanes_kernel(
    table, w0, w2, x, y, order, probe, checkpoints, measure, diverged_at, final_loss, losses, probed,
    points, steps, kept,
    nets: tl.constexpr, width: tl.constexpr, rows: tl.constexpr, batch: tl.constexpr, alpha1: tl.constexpr,
    nonlinearity: tl.constexpr, drift: tl.constexpr, decays: tl.constexpr, checks: tl.constexpr,
    probes: tl.constexpr, unrolled: tl.constexpr,
):  # fmt: skip
    """Trains `nets` networks of depth 2 by gradient descent, in the type of w2.

    table: (8, points) float64. w0: (width, width), rows are inputs. w2: (width,). x: (rows, width), times alpha0.
    y: (rows,). order: (steps, batch) int32. probe: (width,), times alpha0. checkpoints: (checks,) int32, the last is
    `steps`.
    measure: (points, checks). losses: (points, kept).
    """
    net = tl.program_id(0).to(tl.int64) * nets + tl.arange(0, nets)[:, None]
    inside = net < points
    unit = tl.max_contiguous(tl.arange(0, width), 1)[None, :]
    kind: tl.constexpr = w2.dtype.element_ty
    zero = tl.zeros((nets, width), kind)
    here = tl.where(inside, net, points - 1) + 0 * unit  # as wide as a row of units, so that all lie on the same lanes
    lr0 = tl.load(table + here).to(kind)
    lr1 = tl.load(table + points + here).to(kind)
    decay = tl.load(table + 5 * points + here).to(kind)
    offset = tl.load(table + 6 * points + here).to(kind)
    scale = tl.load(table + 7 * points + here).to(kind)
    weights = ()
    for k in tl.static_range(width):
        loaded = tl.load(w0 + k * width + unit) * scale
        if not drift:
            loaded += offset
        weights = weights + (loaded,)
    last = tl.load(w2 + unit) * scale
    ends = tl.load(checkpoints + tl.arange(0, checks))[None, :]
    first, final = tl.zeros((nets, 1), tl.float64), tl.zeros((nets, 1), tl.float64)
    diverged = tl.zeros((nets, 1), tl.int32) + steps
    tail, total, inverse = (
        tl.zeros((nets, checks), tl.float64), tl.zeros((nets, checks), tl.float64),
        tl.zeros((nets, checks), tl.float64),
    )  # fmt: skip
    alive = 1
    loss = tl.zeros((nets, 1), tl.float64)
    for step in range(steps):
        if alive != 0:
            if drift:
                shifted = ()
                for k in tl.static_range(width):
                    shifted = shifted + (weights[k] + offset,)
                weights = shifted
            gradient = ()
            for _k in tl.static_range(width):
                gradient = gradient + (zero,)
            change = zero
            squares = tl.zeros((nets, 1), kind)
            for row in tl.range(rows, loop_unroll_factor=unrolled):
                h, slope = activation(sums(x, row, weights, width), nonlinearity)
                error = tl.sum(h * last, axis=1, keep_dims=True) * alpha1 - tl.load(y + row)
                squares += error * error
                if batch == 0:
                    change += h * error
                    delta = slope * error
                    added = ()
                    for k in tl.static_range(width):
                        added = added + (tl.fma(delta, tl.load(x + row * width + k) + zero, gradient[k]),)
                    gradient = added
            loss = squares.to(tl.float64) / rows
            if probes and step == steps - 1:
                h, slope = activation(sums(probe, 0, weights, width), nonlinearity)
                shown = tl.sum(h * last, axis=1, keep_dims=True) * alpha1
                tl.store(probed + net, shown.to(tl.float64), inside)
            if batch != 0:
                for place in range(batch):
                    row = tl.load(order + step * batch + place)
                    h, slope = activation(sums(x, row, weights, width), nonlinearity)
                    error = tl.sum(h * last, axis=1, keep_dims=True) * alpha1 - tl.load(y + row)
                    change += h * error
                    delta = slope * error
                    added = ()
                    for k in tl.static_range(width):
                        added = added + (tl.fma(delta, tl.load(x + row * width + k) + zero, gradient[k]),)
                    gradient = added
            factor: tl.constexpr = 2.0 * alpha1 / (rows if batch == 0 else batch)
            updated = ()
            for k in tl.static_range(width):
                g = gradient[k] * (last * factor)
                if decays:
                    g += decay * weights[k]
                updated = updated + (weights[k] - lr0 * g,)
            weights = updated
            g = change * factor
            if decays:
                g += decay * last
            last -= lr1 * g
            # With a NaN among the last weights every later output is NaN, and every later loss.
            dead = tl.max((last != last).to(tl.int32), axis=1)
            alive = 1 - tl.min(dead, axis=0)
        else:
            loss = tl.full((nets, 1), float("nan"), tl.float64)
        first, diverged, final, tail, total, inverse = account(
            loss, step, steps, ends, first, diverged, final, tail, total, inverse
        )
        if step < kept:
            tl.store(losses + net * kept + step, final, inside)
    tl.store(measure + net * checks + tl.arange(0, checks)[None, :], signed(ends, tail, total, inverse), inside)
    tl.store(diverged_at + net, diverged, inside)
    tl.store(final_loss + net, final, inside)


@triton.jit
def reduced_kernel(
    table, z0, direction, w2, y, checkpoints, measure, diverged_at, final_loss, losses, points, steps, kept,
    nets: tl.constexpr, width: tl.constexpr, units: tl.constexpr, alpha1: tl.constexpr, norm: tl.constexpr,
    nonlinearity: tl.constexpr, checks: tl.constexpr,
):  # fmt: skip
    """Trains `nets` networks of depth 2 on one example by gradient descent, in their sums z and last weights.

    W0 changes along the example x alone, so z = alpha0 * x W0 changes by -lr0 * norm * dL/dz, norm = |alpha0 x|**2.

    z0: (width,), alpha0 * x W0 before `scale` and `offset`. direction: (1,), alpha0 times the sum of x, by which an
    offset moves z. w2: (width,). y: (1,). The rest as in `lanes_kernel`.
    """
    net = tl.program_id(0).to(tl.int64) * nets + tl.arange(0, nets)
    inside = net < points
    here = tl.where(inside, net, points - 1)
    unit = tl.arange(0, width)[:, None]
    kind: tl.constexpr = w2.dtype.element_ty
    lr0 = (tl.load(table + here) * norm).to(kind)
    lr1 = tl.load(table + points + here).to(kind)
    offset = tl.load(table + 6 * points + here).to(kind)
    scale = tl.load(table + 7 * points + here).to(kind)
    z = tl.load(z0 + unit) * scale[None, :] + (offset * tl.load(direction))[None, :]
    z = tl.where(unit < units, z, 0.0).to(kind)
    last = tl.load(w2 + unit) * scale[None, :]
    target = tl.load(y)
    ends = tl.load(checkpoints + tl.arange(0, checks))[None, :]
    first, final = tl.zeros((nets, 1), tl.float64), tl.zeros((nets, 1), tl.float64)
    diverged = tl.zeros((nets, 1), tl.int32) + steps
    tail, total, inverse = (
        tl.zeros((nets, checks), tl.float64), tl.zeros((nets, checks), tl.float64),
        tl.zeros((nets, checks), tl.float64),
    )  # fmt: skip
    for step in range(steps):
        h, slope = activation(z, nonlinearity)
        error = tl.sum(h * last, axis=0) * alpha1 - target
        moved = error * (2.0 * alpha1)
        z -= (lr0 * moved)[None, :] * (last * slope)
        last -= (lr1 * moved)[None, :] * h
        loss = (error * error).to(tl.float64)[:, None]
        first, diverged, final, tail, total, inverse = account(
            loss, step, steps, ends, first, diverged, final, tail, total, inverse
        )
        if step < kept:
            tl.store(losses + net[:, None] * kept + step, final, inside[:, None])
    across, outside = net[:, None], inside[:, None]
    tl.store(measure + across * checks + tl.arange(0, checks)[None, :], signed(ends, tail, total, inverse), outside)
    tl.store(diverged_at + across, diverged, outside)
    tl.store(final_loss + across, final, outside)
