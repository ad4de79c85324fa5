"""The GPU's loop over pixels. Its source is copied beside a formula's by `bind`; nobody calls it here.

One warp renders one tile of one picture and leaves as soon as its last orbit has stopped. Names
that this file does not define (`start`, `step`, `STEPS`, ...) are the generated module's.
"""

# ruff: noqa: F821
# mypy: ignore-errors

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["count"])  # families ask for any number of each: one machine code serves all
def kernel(
    table, lookup, out, grid, count,
    height: tl.constexpr, width: tl.constexpr, supersample: tl.constexpr,
    tile_height: tl.constexpr, tile_width: tl.constexpr, vote: tl.constexpr,
    channels_last: tl.constexpr, levels: tl.constexpr,
):  # fmt: skip
    """Fill out[image] from table[:, image], a tile to a program.

    table: (P, count) float32; lookup: (3, 256) bits of each level; grid: (6,) float32, `Raster.grid`;
    out: (count, 3, height, width) or (count, height, width, 3) bits of the pixels.
    """
    across: tl.constexpr = (width + tile_width - 1) // tile_width
    tiles: tl.constexpr = across * ((height + tile_height - 1) // tile_height)
    program = tl.program_id(0)
    image = program // tiles
    tile = program % tiles
    p = gather(table + image, count)
    lane = tl.arange(0, tile_height * tile_width)
    column = (tile % across) * tile_width + lane % tile_width
    row = (tile // across) * tile_height + lane // tile_width
    within = (column < width) & (row < height)
    red = tl.zeros([tile_height * tile_width], tl.float32)
    green = red
    blue = red
    u0, u_column, u_row = tl.load(grid), tl.load(grid + 1), tl.load(grid + 2)
    v0, v_column, v_row = tl.load(grid + 3), tl.load(grid + 4), tl.load(grid + 5)
    for sample in range(supersample * supersample):
        if supersample == 1:
            i = column.to(tl.float32)
            j = row.to(tl.float32)
        else:
            i = column + (((sample % supersample) * 1.0 + 0.5) / supersample - 0.5)
            j = row + (((sample // supersample) * 1.0 + 0.5) / supersample - 0.5)
        x, y = to_plane(u0 + u_column * i + u_row * j, v0 + v_column * i + v_row * j, p)
        zr, zi, cr, ci = start(x, y, p)
        seen, zr, zi, pr, pi, a = orbit(zr, zi, cr, ci, within, p, vote)
        inside = tl.where(seen == STEPS, 1.0, 0.0)
        r, g, b = paint(seen.to(tl.float32), inside, zr, zi, pr, pi, a, p)
        red += tl.minimum(tl.maximum(r, 0.0), 1.0)
        green += tl.minimum(tl.maximum(g, 0.0), 1.0)
        blue += tl.minimum(tl.maximum(b, 0.0), 1.0)
    full: tl.constexpr = 255.0 / (supersample * supersample)
    if channels_last:
        place = out + image.to(tl.int64) * (3 * height * width) + (row * width + column) * 3
        step_by: tl.constexpr = 1
    else:
        place = out + image.to(tl.int64) * (3 * height * width) + (row * width + column)
        step_by: tl.constexpr = height * width
    write(place, lookup, (red * full).to(tl.int32), within, levels)
    write(place + step_by, lookup + 256, (green * full).to(tl.int32), within, levels)
    write(place + 2 * step_by, lookup + 512, (blue * full).to(tl.int32), within, levels)


@triton.jit
def write(place, lookup, level, within, levels: tl.constexpr):
    """Store one channel: the level itself, or its bits in another type."""
    if levels:
        tl.store(place, level.to(tl.uint8), mask=within)
    else:
        tl.store(place, tl.load(lookup + level), mask=within)


@triton.jit
def orbit(zr, zi, cr, ci, within, p, vote: tl.constexpr):
    """Iterate a tile until its last lane has stopped; asks all lanes every `vote` steps.

    Every second time, lanes whose orbit is where it was the last time stop too: it repeats for ever.
    """
    alive = within
    count = within.to(tl.int32) * 0
    pr, pi = zr, zi
    held_r, held_i = zr, zi
    a = begin(zr)
    n = 0
    live = 1
    while (n < STEPS) & (live > 0):
        for j in tl.static_range(vote):
            new_r, new_i = step(zr, zi, cr, ci, pr, pi, (n + j) * 1.0, p)
            on = alive
            if STEPS % vote != 0:
                on = on & (n + j < STEPS)
            if OBSERVES:
                a = keep(on, observe(a, new_r, new_i, zr, zi, (n + j) * 1.0, p), a)
            if CONVERGES and not LIMITED:
                gap_r, gap_i = new_r - zr, new_i - zi
            if PREVIOUS:
                pr = tl.where(on, zr, pr)
                pi = tl.where(on, zi, pi)
            inside = on
            if ESCAPES:
                inside = inside & (new_r * new_r + new_i * new_i < RADIUS_SQUARED)
            if CONVERGES:
                if LIMITED:
                    gap_r, gap_i = new_r - LIMIT_R, new_i - LIMIT_I
                inside = inside & (gap_r * gap_r + gap_i * gap_i >= TOLERANCE_SQUARED)
            if FREEZES:
                zr = tl.where(on, new_r, zr)
                zi = tl.where(on, new_i, zi)
            else:
                zr, zi = new_r, new_i
            count += inside.to(tl.int32)
            if not VISITS:
                alive = inside
        n += vote
        if CYCLES:
            if n % (2 * vote) == 0:
                again = alive & (zr == held_r) & (zi == held_i)
                count = tl.where(again, STEPS, count)
                alive = alive & (again == 0)
                held_r, held_i = zr, zi
        if not VISITS:
            live = tl.max(alive.to(tl.int32), axis=0)
    return count, zr, zi, pr, pi, a
