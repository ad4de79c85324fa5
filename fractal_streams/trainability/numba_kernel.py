"""The CPU's training loop, a network in each lane. Its source is copied into generated modules; nobody calls it here.

All sums over rows, units and steps run in their written order within a lane. Rows go through in
blocks of `BLOCK`, so that a gradient is loaded and stored once for several of them. Offsets count vectors.
"""

# mypy: ignore-errors

import numba
import numpy as np

from fractal_streams.render.numba_primitives import widest
from fractal_streams.trainability.numba_lanes import (
    LINE,
    all_less,
    any_less,
    filled,
    fma,
    lane,
    load,
    nans,
    root,
    splat,
    store,
    where_less,
)
from fractal_streams.trainability.numba_primitives import tanh as activate, tanh_slope as slope
from fractal_streams.trainability.outcome import CAP, WINDOW
from fractal_streams.trainability.reference import EPSILON

# A generated module has its own of these; here they are of the usual network.
LANES, HALVES, N, HIDDEN, PARAMETERS, BLOCK, BIGGEST = 8, 1, 16, 1, 272, 8, 1e300
OPTIMISER, BATCHED, PLAN, CACHED = "gradient_descent", False, "rows", False

jit = numba.njit(nogil=True, forceinline=True, error_model="numpy")
# Copied from here on.

W = 0  # weights, layer by layer, rows are inputs
G = W + PARAMETERS  # gradients
M = G + PARAMETERS  # first moments
V = M + (PARAMETERS if OPTIMISER != "gradient_descent" else 0)  # second moments
Z = V + (PARAMETERS if OPTIMISER == "adam" else 0)  # sums of each hidden layer's units, of a block of rows
H = Z + HIDDEN * BLOCK * N  # the units themselves
D = H + HIDDEN * BLOCK * N  # derivatives of the loss by the sums
E = D + HIDDEN * BLOCK * N  # derivative of the loss by the output, a row each
RATE = E + BLOCK  # of each layer
MOMENTUM, BETA2, DECAY, OFFSET, FIRST, SECOND = (RATE + 3 + place for place in range(6))
SIZE = RATE + 9
LAST = HIDDEN * N * N  # the last layer's first weight
LAYER = BLOCK * N


@jit
def aligned(count, like):
    """Numbers in memory that begins where a vector may: one that crosses a line costs two accesses."""
    held = np.empty(count + LINE // like.itemsize, like.dtype)
    begin = (-held.ctypes.data % LINE) // like.itemsize
    return held[begin : begin + count]


@jit
def row_element(x, k):
    return splat(x, k)


@jit
def unit(x, k):
    return load(x, k)


@jit
def sums(read, x, begin, s, weights, across, down, to, count):
    """Z[to + r, j] = sum over i of x[begin + r, i] W[weights + i * down + j * across], for `count` rows."""
    whole = count - count % 4
    for r in range(0, whole, 4):
        p0 = begin + r * N
        p1, p2, p3 = p0 + N, p0 + 2 * N, p0 + 3 * N
        q0 = to + r * N
        q1, q2, q3 = q0 + N, q0 + 2 * N, q0 + 3 * N
        for j in range(0, N, 4):
            a00 = a01 = a02 = a03 = a10 = a11 = a12 = a13 = filled(s, 0.0)
            a20 = a21 = a22 = a23 = a30 = a31 = a32 = a33 = filled(s, 0.0)
            for i in range(N):
                k = weights + i * down + j * across
                w0, w1 = load(s, k), load(s, k + across)
                w2, w3 = load(s, k + 2 * across), load(s, k + 3 * across)
                v = read(x, p0 + i)
                a00 = fma(v, w0, a00)
                a01 = fma(v, w1, a01)
                a02 = fma(v, w2, a02)
                a03 = fma(v, w3, a03)
                v = read(x, p1 + i)
                a10 = fma(v, w0, a10)
                a11 = fma(v, w1, a11)
                a12 = fma(v, w2, a12)
                a13 = fma(v, w3, a13)
                v = read(x, p2 + i)
                a20 = fma(v, w0, a20)
                a21 = fma(v, w1, a21)
                a22 = fma(v, w2, a22)
                a23 = fma(v, w3, a23)
                v = read(x, p3 + i)
                a30 = fma(v, w0, a30)
                a31 = fma(v, w1, a31)
                a32 = fma(v, w2, a32)
                a33 = fma(v, w3, a33)
            store(s, q0 + j, a00)
            store(s, q0 + j + 1, a01)
            store(s, q0 + j + 2, a02)
            store(s, q0 + j + 3, a03)
            store(s, q1 + j, a10)
            store(s, q1 + j + 1, a11)
            store(s, q1 + j + 2, a12)
            store(s, q1 + j + 3, a13)
            store(s, q2 + j, a20)
            store(s, q2 + j + 1, a21)
            store(s, q2 + j + 2, a22)
            store(s, q2 + j + 3, a23)
            store(s, q3 + j, a30)
            store(s, q3 + j + 1, a31)
            store(s, q3 + j + 2, a32)
            store(s, q3 + j + 3, a33)
    for r in range(whole, count):
        row_sums(read, x, begin + r * N, s, weights, across, down, to + r * N)


@jit
def row_sums(read, x, begin, s, weights, across, down, to):
    """The same of one row."""
    for j in range(0, N, 4):
        a0 = a1 = a2 = a3 = filled(s, 0.0)
        for i in range(N):
            k = weights + i * down + j * across
            v = read(x, begin + i)
            a0 = fma(v, load(s, k), a0)
            a1 = fma(v, load(s, k + across), a1)
            a2 = fma(v, load(s, k + 2 * across), a2)
            a3 = fma(v, load(s, k + 3 * across), a3)
        store(s, to + j, a0)
        store(s, to + j + 1, a1)
        store(s, to + j + 2, a2)
        store(s, to + j + 3, a3)


@jit
def gradients(read, x, begin, s, layer, count, fresh):
    """Add x[begin + r, i] D[layer, r, j] of `count` rows to a hidden layer's gradient, or begin it."""
    to, deltas = G + layer * N * N, D + layer * LAYER
    for i in range(0, N, 4):
        g0 = to + i * N
        g1, g2, g3 = g0 + N, g0 + 2 * N, g0 + 3 * N
        for j in range(0, N, 4):
            if fresh:
                a00 = a01 = a02 = a03 = a10 = a11 = a12 = a13 = filled(s, 0.0)
                a20 = a21 = a22 = a23 = a30 = a31 = a32 = a33 = filled(s, 0.0)
            else:
                a00, a01, a02, a03 = load(s, g0 + j), load(s, g0 + j + 1), load(s, g0 + j + 2), load(s, g0 + j + 3)
                a10, a11, a12, a13 = load(s, g1 + j), load(s, g1 + j + 1), load(s, g1 + j + 2), load(s, g1 + j + 3)
                a20, a21, a22, a23 = load(s, g2 + j), load(s, g2 + j + 1), load(s, g2 + j + 2), load(s, g2 + j + 3)
                a30, a31, a32, a33 = load(s, g3 + j), load(s, g3 + j + 1), load(s, g3 + j + 2), load(s, g3 + j + 3)
            for r in range(count):
                k = deltas + r * N + j
                d0, d1, d2, d3 = load(s, k), load(s, k + 1), load(s, k + 2), load(s, k + 3)
                p = begin + r * N + i
                v = read(x, p)
                a00 = fma(v, d0, a00)
                a01 = fma(v, d1, a01)
                a02 = fma(v, d2, a02)
                a03 = fma(v, d3, a03)
                v = read(x, p + 1)
                a10 = fma(v, d0, a10)
                a11 = fma(v, d1, a11)
                a12 = fma(v, d2, a12)
                a13 = fma(v, d3, a13)
                v = read(x, p + 2)
                a20 = fma(v, d0, a20)
                a21 = fma(v, d1, a21)
                a22 = fma(v, d2, a22)
                a23 = fma(v, d3, a23)
                v = read(x, p + 3)
                a30 = fma(v, d0, a30)
                a31 = fma(v, d1, a31)
                a32 = fma(v, d2, a32)
                a33 = fma(v, d3, a33)
            store(s, g0 + j, a00)
            store(s, g0 + j + 1, a01)
            store(s, g0 + j + 2, a02)
            store(s, g0 + j + 3, a03)
            store(s, g1 + j, a10)
            store(s, g1 + j + 1, a11)
            store(s, g1 + j + 2, a12)
            store(s, g1 + j + 3, a13)
            store(s, g2 + j, a20)
            store(s, g2 + j + 1, a21)
            store(s, g2 + j + 2, a22)
            store(s, g2 + j + 3, a23)
            store(s, g3 + j, a30)
            store(s, g3 + j + 1, a31)
            store(s, g3 + j + 2, a32)
            store(s, g3 + j + 3, a33)


@jit
def onward(s, alpha0, count):
    """The units of a first of two hidden layers times alpha0, and, in Z, their slopes times alpha0; the next sums."""
    for k in range(count * N):
        z = load(s, Z + k)
        h = activate(z)
        store(s, H + k, alpha0 * h)
        store(s, Z + k, alpha0 * slope(z, h))
    if count == 1:
        row_sums(unit, s, H, s, W + N * N, 1, N, Z + LAYER)
    else:
        sums(unit, s, H, s, W + N * N, 1, N, Z + LAYER, count)


@jit
def output(s, r):
    """Sum of the last hidden layer's units in one row, times the last weights; the units are left in H."""
    place = (HIDDEN - 1) * LAYER + r * N
    out = filled(s, 0.0)
    for j in range(N):
        h = activate(load(s, Z + place + j))
        store(s, H + place + j, h)
        out = fma(h, load(s, W + LAST + j), out)
    return out


@jit
def backward(x, begin, s, count, fresh):
    """Gradients of `count` rows whose E is known."""
    place = (HIDDEN - 1) * LAYER
    for j in range(N):
        w = load(s, W + LAST + j)
        g = filled(s, 0.0) if fresh else load(s, G + LAST + j)
        for r in range(count):
            k = place + r * N + j
            h, e = load(s, H + k), load(s, E + r)
            g = fma(h, e, g)
            store(s, D + k, slope(load(s, Z + k), h) * (e * w))
        store(s, G + LAST + j, g)
    if HIDDEN == 2:
        gradients(unit, s, H, s, 1, count, fresh)
        sums(unit, s, D + LAYER, s, W + N * N, N, 1, D, count)
        for k in range(count * N):
            store(s, D + k, load(s, D + k) * load(s, Z + k))
    gradients(row_element, x, begin, s, 0, count, fresh)


@jit
def pass_through(x, y, rows, s, alpha0, alpha1, learns):
    """The mean loss of all rows; their gradients too if `learns`."""
    factor = 2.0 / rows * alpha1
    total = filled(s, 0.0)
    for row in range(0, rows, BLOCK):
        count = min(BLOCK, rows - row)
        sums(row_element, x, row * N, s, W, 1, N, Z, count)
        if HIDDEN == 2:
            onward(s, alpha0, count)
        for r in range(count):
            error = output(s, r) * alpha1 - splat(y, row + r)
            total = fma(error, error, total)
            store(s, E + r, error * factor)
        if learns:
            backward(x, row * N, s, count, row == 0)
    return total / rows


@jit
def update(s, begin, end, layer):
    """One step of the optimiser for some of the weights."""
    rate, decay = load(s, RATE + layer), load(s, DECAY)
    for p in range(begin, end):
        w = load(s, W + p)
        g = fma(decay, w, load(s, G + p))
        if OPTIMISER == "momentum":
            g = fma(load(s, MOMENTUM), load(s, M + p), g)
            store(s, M + p, g)
        if OPTIMISER == "adam":
            m, b = load(s, MOMENTUM), load(s, BETA2)
            first = fma(m, load(s, M + p), (1.0 - m) * g)
            second = fma(b, load(s, V + p), (1.0 - b) * g * g)
            store(s, M + p, first)
            store(s, V + p, second)
            g = first / load(s, FIRST) / (root(second / load(s, SECOND)) + EPSILON)
        store(s, W + p, w - rate * g)


@jit
def only_row(x, y, s, alpha1):
    """A step of plain descent with one row, whose sums are in Z: the loss; Z becomes the next sums."""
    error = output(s, 0) * alpha1 - splat(y, 0)
    e = error * (2.0 * alpha1)
    rate, decay = load(s, RATE), load(s, DECAY)
    infinite = filled(s, 0.0)
    for j in range(N):
        h, w, z = load(s, H + j), load(s, W + LAST + j), load(s, Z + j)
        infinite = where_less(BIGGEST, z * z, 1.0, infinite)
        store(s, D + j, slope(z, h) * (e * w))
        g = fma(decay, w, h * e)
        store(s, W + LAST + j, w - load(s, RATE + 1) * g)
    # A weight that is infinite makes its sum so or NaN; decay, be it 0, makes the weight NaN.
    if any_less(0.0, infinite) or any_less(decay, 0.0) or any_less(0.0, decay):
        for j in range(N):
            z, d = filled(s, 0.0), load(s, D + j)
            for i in range(N):
                w, v = load(s, W + i * N + j), splat(x, i)
                w = w - rate * fma(decay, w, v * d)
                store(s, W + i * N + j, w)
                z = fma(v, w, z)
            store(s, Z + j, z)
        return error * error
    for j in range(0, N, 4):
        d0, d1, d2, d3 = load(s, D + j), load(s, D + j + 1), load(s, D + j + 2), load(s, D + j + 3)
        z0 = z1 = z2 = z3 = filled(s, 0.0)
        for i in range(N):
            v, k = splat(x, i), W + i * N + j
            w0 = load(s, k) - rate * (v * d0)
            w1 = load(s, k + 1) - rate * (v * d1)
            w2 = load(s, k + 2) - rate * (v * d2)
            w3 = load(s, k + 3) - rate * (v * d3)
            store(s, k, w0)
            store(s, k + 1, w1)
            store(s, k + 2, w2)
            store(s, k + 3, w3)
            z0 = fma(v, w0, z0)
            z1 = fma(v, w1, z1)
            z2 = fma(v, w2, z2)
            z3 = fma(v, w3, z3)
        store(s, Z + j, z0)
        store(s, Z + j + 1, z1)
        store(s, Z + j + 2, z2)
        store(s, Z + j + 3, z3)
    return error * error


@jit
def reduced(y, s, alpha1, square):
    """A step of one row in its sums alone, which change along the row's own direction."""
    error = output(s, 0) * alpha1 - splat(y, 0)
    e = error * (2.0 * alpha1)
    for j in range(N):
        h, w, z = load(s, H + j), load(s, W + LAST + j), load(s, Z + j)
        store(s, Z + j, fma(load(s, RATE) * (-square), slope(z, h) * (e * w), z))
        store(s, W + LAST + j, w - load(s, RATE + 1) * (h * e))
    return error * error


@jit
def begin(s, x, weights, table, at, drifts):
    """Write the hyperparameters and the initial weights of the networks from column `at` of the table."""
    for k in range(LANES):
        for layer in range(3):
            s[(RATE + layer) * LANES + k] = table[layer, at + k]
        s[MOMENTUM * LANES + k] = table[3, at + k]
        s[BETA2 * LANES + k] = table[4, at + k]
        s[DECAY * LANES + k] = table[5, at + k]
        s[OFFSET * LANES + k] = table[6, at + k]
        for p in range(PARAMETERS):
            shift = table[6, at + k] if p < N * N and not drifts else 0.0
            s[(W + p) * LANES + k] = table[7, at + k] * weights[p] + shift
    for p in range(M, Z):
        store(s, p, filled(s, 0.0))
    if PLAN != "rows":
        row_sums(row_element, x, 0, s, W, 1, N, Z)


@jit
def finished(s, loss):
    """Whether no lane's loss will ever be a number again: each has lost one of its last weights."""
    if not all_less(0.0, nans(loss)):
        return False
    lost = filled(s, 0.0)
    for j in range(N):
        lost = lost + nans(load(s, W + LAST + j))
    return all_less(0.0, lost)


@jit
def read_out(losses, steps, ends, at, measures, diverged, final, kept):
    """What `outcome_of` says of these losses; they become quotients."""
    for half in range(HALVES):
        place = at // 8 + half
        first = load(losses, half)
        first = where_less(first, np.inf, first, CAP)
        lost = where_less(CAP, first, np.inf, filled(losses, CAP))
        total = inverse = filled(losses, 0.0)
        blown = filled(losses, np.float64(steps))
        end = 0
        for t in range(steps):
            raw = load(losses, t * HALVES + half)
            quotient = where_less(raw, np.inf, raw, lost) / first
            off = where_less(quotient, CAP, where_less(raw, np.inf, 0.0, 1.0), 1.0)
            quotient = where_less(quotient, CAP, quotient, CAP)
            now = where_less(0.0, off, filled(losses, np.float64(t)), blown)
            blown = where_less(now, blown, now, blown)
            store(losses, t * HALVES + half, quotient)
            total = total + quotient
            inverse = inverse + 1.0 / quotient
            if t < kept.shape[0]:
                store(kept[t], place, quotient)
            while end < len(ends) and t + 1 == ends[end]:
                tail = filled(losses, 0.0)
                low = max(0, t + 1 - WINDOW)
                for back in range(low, t + 1):
                    tail = tail + load(losses, back * HALVES + half)
                store(measures[end], place, where_less(tail, np.float64(t + 1 - low), 0.0 - total, inverse))
                end += 1
        store(final, place, load(losses, (steps - 1) * HALVES + half))
        store(diverged, place, blown)


@numba.njit(nogil=True, cache=CACHED, error_model="numpy")
def kernel(
    x, y, order, probe, weights, table, steps, alpha0, alpha1, drifts, exits, ends,
    measures, diverged, final, kept, probes, first, last,
):  # fmt: skip
    """Train the networks of columns first to last, multiples of the number of lanes, of the table.

    x: (D n) rows times alpha0; y: (D,); order: (T, B) rows, used if `BATCHED`; probe: (n,) times alpha0;
    weights: (P,); table: (8, N); ends: step counts, the last is `steps`.
    Results, float64: measures (len(ends), N), diverged (N,), final (N,), kept (k, N), probes (N,) or (0,).
    """
    widest()
    s = aligned(SIZE * LANES, x)
    losses = aligned(steps * LANES, weights)
    few_x, few_y = np.empty(order.shape[1] * N, x.dtype), np.empty(order.shape[1], x.dtype)
    square = np.float64(0.0)
    for i in range(N):
        square += np.float64(x[i]) * np.float64(x[i])
    for at in range(first, last, LANES):
        begin(s, x, weights, table, at, drifts)
        ended = False
        shrunk, faded = np.ones(LANES), np.ones(LANES)
        for t in range(steps):
            if ended:
                for k in range(LANES):
                    losses[t * LANES + k] = np.nan
                continue
            if drifts:
                for p in range(N * N):
                    store(s, W + p, load(s, W + p) + load(s, OFFSET))
            if len(probes) and t == steps - 1:
                read_probe(s, probe, alpha0, alpha1, probes, at)
            if PLAN == "only row":
                loss = only_row(x, y, s, alpha1)
            elif PLAN == "reduced":
                loss = reduced(y, s, alpha1, square)
            else:
                loss = pass_through(x, y, len(y), s, alpha0, alpha1, not BATCHED)
                if BATCHED:
                    for r in range(order.shape[1]):
                        few_y[r] = y[order[t, r]]
                        for i in range(N):
                            few_x[r * N + i] = x[order[t, r] * N + i]
                    pass_through(few_x, few_y, len(few_y), s, alpha0, alpha1, True)
                if OPTIMISER == "adam":
                    for k in range(LANES):
                        shrunk[k] *= table[3, at + k]
                        faded[k] *= table[4, at + k]
                        s[FIRST * LANES + k], s[SECOND * LANES + k] = 1.0 - shrunk[k], 1.0 - faded[k]
                for layer in range(HIDDEN):
                    update(s, layer * N * N, (layer + 1) * N * N, layer)
                update(s, LAST, PARAMETERS, HIDDEN)
            for k in range(LANES):
                losses[t * LANES + k] = np.float64(lane(loss, k))
            ended = exits and finished(s, loss)
        if ended and len(probes):
            probes[at : at + LANES] = np.nan
        read_out(losses, steps, ends, at, measures, diverged, final, kept)


@jit
def read_probe(s, probe, alpha0, alpha1, probes, at):
    """The outputs at the probe, with Z and H as they were: a single row's sums are needed yet."""
    for j in range(N):
        store(s, D + j, load(s, Z + j))
    row_sums(row_element, probe, 0, s, W, 1, N, Z)
    if HIDDEN == 2:
        onward(s, alpha0, 1)
    out = output(s, 0) * alpha1
    for k in range(LANES):
        probes[at + k] = np.float64(lane(out, k))
    for j in range(N):
        store(s, Z + j, load(s, D + j))
