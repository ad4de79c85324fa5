"""The CPU's loop over pixels. Its source is copied beside a formula's by `bind`; nobody calls it here.

A tile of pixels runs in step, so that the innermost loop is over lanes and becomes vector code; a
tile ends when its last orbit has. The names in capitals and the lower-case calls that this file
does not define (`start`, `arrive`, `keep`, ...) are the generated module's.
"""

# ruff: noqa: F821
# mypy: ignore-errors

import numba
import numpy as np

from fractal_streams.render.numba_primitives import FLAGS

CACHED = False  # True in a generated module, whose folder is writable; this file's need not be

TILE_HEIGHT = 8
TILE_WIDTH = 16
LANES = TILE_HEIGHT * TILE_WIDTH
ENDLESS = np.float32(-1.0)
"""The count of an orbit that is known to stay inside, and of a lane without a pixel."""
CYCLE = 4
"""Steps between two looks for orbits that repeat; those of periods 1, 2 and 4 are found."""

# Rows of the scratch memory. One array with constant offsets, because LLVM gives up on a loop over
# many arrays: it would have to prove that no two of them overlap.
ZR, ZI, PR, PI, CR, CI, RED, GREEN, BLUE, COUNT, KEPT = (row * LANES for row in range(11))


@numba.njit(nogil=True, cache=CACHED, fastmath=FLAGS)
def kernel(table, lookup, out, grid, offsets, first, last, top, bottom):
    """Fill out[first:last, :, top:bottom] from table[:, first:last].

    out: (B, 3, H, W) bits of the pixels; lookup: (3, 256) bits of each level; grid: (6,) float32,
    `Raster.grid`; offsets: (S, 2) float32, `Raster.offsets`; top: a multiple of the tile's height.
    """
    widest()
    s = np.empty((11 + ACCUMULATORS + SLOTS) * LANES, np.float32)
    u0, u_column, u_row, v0, v_column, v_row = grid[0], grid[1], grid[2], grid[3], grid[4], grid[5]
    width = out.shape[3]
    full = np.float32(255.0) / np.float32(len(offsets))
    for image in range(first, last):
        p = gather(table, image)
        for row0 in range(top, bottom, TILE_HEIGHT):
            for column0 in range(0, width, TILE_WIDTH):
                tall, wide = min(TILE_HEIGHT, bottom - row0), min(TILE_WIDTH, width - column0)
                for k in range(LANES):
                    s[RED + k], s[GREEN + k], s[BLUE + k] = ZERO, ZERO, ZERO
                for sample in range(len(offsets)):
                    column = np.float32(column0) + offsets[sample, 0]
                    row = np.float32(row0) + offsets[sample, 1]
                    for j in range(TILE_HEIGHT):
                        down = row + np.float32(np.int32(j))
                        for i in range(TILE_WIDTH):
                            across = column + np.float32(np.int32(i))
                            k = j * TILE_WIDTH + i
                            x, y = to_plane(
                                u0 + u_column * across + u_row * down, v0 + v_column * across + v_row * down, p
                            )
                            zr, zi, cr, ci = start(x, y, p)
                            s[ZR + k], s[ZI + k], s[CR + k], s[CI + k] = zr, zi, cr, ci
                            s[PR + k], s[PI + k] = zr, zi
                            known = INTERIOR & interior(cr, ci, p)
                            s[COUNT + k] = ZERO if (j < tall) & (i < wide) & ~known else ENDLESS
                            begin(s, k)
                    orbit(s, p)
                    for k in range(LANES):
                        count = s[COUNT + k] if s[COUNT + k] >= ZERO else ITERATIONS
                        inside = ONE if count == ITERATIONS else ZERO
                        red, green, blue = paint(
                            count, inside, s[ZR + k], s[ZI + k], s[PR + k], s[PI + k], kept_at(s, k), p
                        )
                        s[RED + k] += clip(red)
                        s[GREEN + k] += clip(green)
                        s[BLUE + k] += clip(blue)
                for channel in range(3):
                    for j in range(tall):
                        for i in range(wide):
                            level = np.int32(s[RED + channel * LANES + j * TILE_WIDTH + i] * full)
                            out[image, channel, row0 + j, column0 + i] = lookup[channel, level]


@numba.njit(nogil=True, forceinline=True, fastmath=FLAGS)
def clip(x):
    """Into [0, 1]; NaN becomes 0."""
    low = x if x > ZERO else ZERO
    return low if low < ONE else ONE


@numba.njit(nogil=True, forceinline=True, fastmath=FLAGS)
def orbit(s, p):
    """Iterate a tile until its last lane has stopped, or is found where it was `CYCLE` steps ago."""
    widest()
    for n in range(STEPS):
        turn = np.float32(n)
        live = np.int32(0)
        advance(s, turn, p)
        for k in range(LANES):
            was_r, was_i = s[ZR + k], s[ZI + k]
            on = VISITS | (s[COUNT + k] >= turn)
            new_r, new_i = arrive(s, k, was_r, was_i, s[CR + k], s[CI + k], s[PR + k], s[PI + k], turn, p)
            if OBSERVES:
                keep(s, k, on, observe(kept_at(s, k), new_r, new_i, was_r, was_i, turn, p))
            if PREVIOUS:
                s[PR + k] = was_r if on else s[PR + k]
                s[PI + k] = was_i if on else s[PI + k]
            s[ZR + k] = new_r if on else was_r
            s[ZI + k] = new_i if on else was_i
            inside = True
            if ESCAPES:
                inside = new_r * new_r + new_i * new_i < RADIUS_SQUARED
            if CONVERGES:
                goal_r = LIMIT_R if LIMITED else was_r
                goal_i = LIMIT_I if LIMITED else was_i
                gap_r, gap_i = new_r - goal_r, new_i - goal_i
                inside = inside & ~(gap_r * gap_r + gap_i * gap_i < TOLERANCE_SQUARED)
            stays = np.int32(on & inside)
            s[COUNT + k] += np.float32(stays)
            live = np.int32(live | stays)
        if CYCLES and n % CYCLE == CYCLE - 1:
            live = np.int32(0)
            for k in range(LANES):
                on = s[COUNT + k] > turn
                again = on & (s[ZR + k] == s[PR + k]) & (s[ZI + k] == s[PI + k])
                s[COUNT + k] = ENDLESS if again else s[COUNT + k]
                s[PR + k], s[PI + k] = s[ZR + k], s[ZI + k]
                live = np.int32(live | np.int32(1 if on & ~again else 0))
        if not VISITS and live == np.int32(0):
            break
