"""The draw on a GPU: a row of the table, or the labels, to a program."""

# mypy: ignore-errors

import triton
import triton.language as tl

from fractal_streams import rng
from fractal_streams.draw.plan import CLASS
from fractal_streams.draw.reference import EXP2_TAYLOR
from fractal_streams.priors import CHOICE, CONSTANT, INTEGER, LOG_UNIFORM, MAX_CHOICES

_M0, _M1 = tl.constexpr(rng.MULTIPLIER_0), tl.constexpr(rng.MULTIPLIER_1)
_W0, _W1 = tl.constexpr(rng.WEYL_0), tl.constexpr(rng.WEYL_1)
_ROUNDS = tl.constexpr(rng.ROUNDS)
_CLASS = tl.constexpr(CLASS)
_CONSTANT, _INTEGER, _CHOICE = tl.constexpr(CONSTANT), tl.constexpr(INTEGER), tl.constexpr(CHOICE)
_LOG_UNIFORM = tl.constexpr(LOG_UNIFORM)
_CHOICES = tl.constexpr(MAX_CHOICES)
_TERMS = tl.constexpr(len(EXP2_TAYLOR))


@triton.jit
def philox_words(index, k0, k1):
    """The first two words, uint32, of int64 indices; k0, k1 uint32 scalars."""
    unsigned = index.to(tl.uint64)
    low = (unsigned & 0xFFFFFFFF).to(tl.uint32)
    c0, c1, _, _ = philox(low, (unsigned >> 32).to(tl.uint32), low * 0, low * 0, k0, k1)
    return c0, c1


@triton.jit
def philox(c0, c1, c2, c3, k0, k1):
    """Four words, uint32, of counters; k0, k1 uint32 scalars."""
    m0 = tl.full([1], _M0, tl.uint32)
    m1 = tl.full([1], _M1, tl.uint32)
    for _ in tl.static_range(_ROUNDS):
        high0 = tl.umulhi(c0, m0)
        high1 = tl.umulhi(c2, m1)
        low0 = c0 * m0
        low1 = c2 * m1
        c0 = high1 ^ c1 ^ k0
        c1 = low1
        c2 = high0 ^ c3 ^ k1
        c3 = low0
        k0 = (k0 + tl.full([], _W0, tl.uint32)).to(tl.uint32)
        k1 = (k1 + tl.full([], _W1, tl.uint32)).to(tl.uint32)
    return c0, c1, c2, c3


@triton.jit(do_not_specialize=["start", "step", "count", "num_classes"])
def draw_kernel(
    indices, operation, level, keys, numbers, choices, taylor, index_out, labels, table,
    start: tl.int64, step: tl.int64, count: tl.int64, num_classes: tl.int64,
    rows: tl.constexpr, balanced: tl.constexpr, given: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Row `program_id(1)` of the table; the program past the last row writes indices and labels.

    The label's key is row `rows` of `keys`. Fusing multiply and add is off for this kernel.
    """
    row = tl.program_id(1)
    place = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    within = place < count
    if given:
        index = tl.load(indices + place, mask=within, other=0)
    else:
        index = start + place * step
    if balanced:
        label = index % num_classes
    else:
        low, high = philox_words(index, tl.load(keys + 2 * rows), tl.load(keys + 2 * rows + 1))
        classes = num_classes.to(tl.uint64)
        carried = (low.to(tl.uint64) * classes) >> 32
        label = ((high.to(tl.uint64) * classes + carried) >> 32).to(tl.int64)
    if row == rows:
        tl.store(index_out + place, index, mask=within)
        tl.store(labels + place, label, mask=within)
    else:
        a, b = tl.load(numbers + 4 * row), tl.load(numbers + 4 * row + 1)
        least, most = tl.load(numbers + 4 * row + 2), tl.load(numbers + 4 * row + 3)
        kind = tl.load(operation + row)
        out = table + row * count + place
        if kind == _CONSTANT:
            tl.store(out, (a + tl.zeros([block], tl.float64)).to(tl.float32), mask=within)
        else:
            counter = index
            if tl.load(level + row) == _CLASS:
                counter = label
            word, _ = philox_words(counter, tl.load(keys + 2 * row), tl.load(keys + 2 * row + 1))
            picked = (word.to(tl.uint64) * b.to(tl.uint64)) >> 32
            if kind == _INTEGER:
                tl.store(out, (a + picked.to(tl.float64)).to(tl.float32), mask=within)
            elif kind == _CHOICE:
                tl.store(out, tl.load(choices + row * _CHOICES + picked), mask=within)
            else:
                unit = (((word >> 4) << 1) | 1).to(tl.float64) * 1.862645149230957e-09  # 2**-29
                real = a + b * unit
                if kind == _LOG_UNIFORM:
                    whole = tl.floor(real)
                    part = real - whole
                    power = tl.load(taylor + _TERMS - 1) + part * 0.0
                    for k in tl.static_range(1, _TERMS):
                        power = power * part + tl.load(taylor + _TERMS - 1 - k)
                    scale = ((whole.to(tl.int64) + 1023) << 52).to(tl.float64, bitcast=True)
                    real = power * scale
                tl.store(out, tl.minimum(tl.maximum(real, least), most).to(tl.float32), mask=within)
