"""The CPU's loop over pixels. Its source is copied beside a formula's by `bind`; nobody calls it here.

A tile of pixels runs in step, so that the innermost loop is over lanes and becomes vector code; a
tile ends when its last orbit has. The names in capitals and the lower-case calls that this file
does not define (`start`, `step`, `keep`, ...) are the generated module's.
"""

# ruff: noqa: F821
# mypy: ignore-errors

import numba
import numpy as np

from fractal_streams.render.numba_primitives import FLAGS

TILE_HEIGHT = 8
TILE_WIDTH = 16


@numba.njit(nogil=True, cache=True, fastmath=FLAGS)
def kernel(table, lookup, out, grid, offsets, first, last, top, bottom):
    """Fill out[first:last, :, top:bottom] from table[:, first:last].

    out: (B, 3, H, W) bits of the pixels; lookup: (3, 256) bits of each level; grid: (6,) float32,
    `Raster.grid`; offsets: (S, 2) float32, `Raster.offsets`; top: a multiple of the tile's height.
    """
    lanes = TILE_HEIGHT * TILE_WIDTH
    zr, zi = np.empty(lanes, np.float32), np.empty(lanes, np.float32)
    pr, pi = np.empty(lanes, np.float32), np.empty(lanes, np.float32)
    cr, ci = np.empty(lanes, np.float32), np.empty(lanes, np.float32)
    count, alive = np.empty(lanes, np.int32), np.empty(lanes, np.int32)
    kept = np.empty((KEPT, lanes), np.float32)
    colour = np.empty((3, lanes), np.float32)
    u0, u_column, u_row, v0, v_column, v_row = grid[0], grid[1], grid[2], grid[3], grid[4], grid[5]
    height, width = out.shape[2], out.shape[3]
    full = np.float32(255.0) / np.float32(len(offsets))
    for image in range(first, last):
        p = gather(table, image)
        for row0 in range(top, bottom, TILE_HEIGHT):
            for column0 in range(0, width, TILE_WIDTH):
                colour[:] = np.float32(0.0)
                for sample in range(len(offsets)):
                    across, down = offsets[sample, 0], offsets[sample, 1]
                    for k in range(lanes):
                        column = np.float32(np.int32(column0 + k % TILE_WIDTH)) + across
                        row = np.float32(np.int32(row0 + k // TILE_WIDTH)) + down
                        x, y = to_plane(
                            u0 + u_column * column + u_row * row, v0 + v_column * column + v_row * row, p
                        )
                        zr[k], zi[k], cr[k], ci[k] = start(x, y, p)
                        pr[k], pi[k] = zr[k], zi[k]
                        count[k] = np.int32(0)
                        within = (column0 + k % TILE_WIDTH < width) & (row0 + k // TILE_WIDTH < bottom)
                        alive[k] = np.int32(1) if within else np.int32(0)
                        begin(kept, k)
                    orbit(zr, zi, pr, pi, cr, ci, count, alive, kept, p)
                    for k in range(lanes):
                        inside = np.float32(1.0) if count[k] == ITERATIONS else np.float32(0.0)
                        red, green, blue = paint(
                            np.float32(count[k]), inside, zr[k], zi[k], pr[k], pi[k], kept_at(kept, k), p
                        )
                        colour[0, k] += min(max(red, np.float32(0.0)), np.float32(1.0))
                        colour[1, k] += min(max(green, np.float32(0.0)), np.float32(1.0))
                        colour[2, k] += min(max(blue, np.float32(0.0)), np.float32(1.0))
                wide, tall = min(TILE_WIDTH, width - column0), min(TILE_HEIGHT, bottom - row0)
                for channel in range(3):
                    for down_by in range(tall):
                        for k in range(wide):
                            level = np.int32(colour[channel, down_by * TILE_WIDTH + k] * full)
                            out[image, channel, row0 + down_by, column0 + k] = lookup[channel, level]


@numba.njit(nogil=True, fastmath=FLAGS)
def orbit(zr, zi, pr, pi, cr, ci, count, alive, kept, p):
    """Iterate a tile until its last lane has stopped."""
    for n in range(ITERATIONS):
        turn = np.float32(n)
        live = np.int32(0)
        for k in range(TILE_HEIGHT * TILE_WIDTH):
            was_r, was_i = zr[k], zi[k]
            on = alive[k] != np.int32(0)
            new_r, new_i = step(was_r, was_i, cr[k], ci[k], pr[k], pi[k], turn, p)
            if OBSERVES:
                keep(kept, k, on, observe(kept_at(kept, k), new_r, new_i, was_r, was_i, turn, p))
            if PREVIOUS:
                pr[k] = was_r if on else pr[k]
                pi[k] = was_i if on else pi[k]
            zr[k] = new_r if on else was_r
            zi[k] = new_i if on else was_i
            inside = True
            if ESCAPES:
                inside = new_r * new_r + new_i * new_i < RADIUS_SQUARED
            if CONVERGES:
                goal_r = LIMIT_R if LIMITED else was_r
                goal_i = LIMIT_I if LIMITED else was_i
                gap_r, gap_i = new_r - goal_r, new_i - goal_i
                inside = inside & ~(gap_r * gap_r + gap_i * gap_i < TOLERANCE_SQUARED)
            stays = np.int32(1) if on & inside else np.int32(0)
            count[k] = np.int32(count[k] + stays)
            if not VISITS:
                alive[k] = stays
            live = np.int32(live + stays)
        if not VISITS:
            if live == np.int32(0):
                break
