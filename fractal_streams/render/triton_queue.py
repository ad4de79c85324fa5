"""The GPU's loop over a queue of pixels, for colours that follow from the count alone; see `triton_kernel`.

One program owns a region of a picture. A lane whose orbit has stopped takes the region's next pixel as
soon as `idle` lanes wait for one, so that no orbit waits for its neighbours. What a lane counted lies
in the picture itself until all of the region is counted; then the same program colours it, each count
once and each pixel by a lookup. Names that this file does not define are the generated module's.
"""

# ruff: noqa: F821
# mypy: ignore-errors

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["count"])
def queue(
    table, lookup, out, count,
    height: tl.constexpr, width: tl.constexpr, matrix: tl.constexpr,
    tall: tl.constexpr, wide: tl.constexpr, tile_height: tl.constexpr, tile_width: tl.constexpr,
    vote: tl.constexpr, idle: tl.constexpr, block: tl.constexpr, shades: tl.constexpr,
    channels_last: tl.constexpr, levels: tl.constexpr,
):  # fmt: skip
    """Fill out[image] from table[:, image], a region of tall x wide pixels to a program.

    table: (P, count) float32; lookup: (3, 256) bits of each level; out: (count, 3, height, width) or
    (count, height, width, 3) bits of the pixels. The sides of regions and tiles are powers of two.
    """
    across: tl.constexpr = (width + wide - 1) // wide
    regions: tl.constexpr = across * ((height + tall - 1) // tall)
    apart: tl.constexpr = 3 if channels_last else 1
    program = tl.program_id(0)
    image = program // regions
    left = (program % regions) % across * wide
    top = (program % regions) // across * tall
    p = gather(table + image, count)
    picture = out + image.to(tl.int64) * (3 * height * width)
    if VISITS:
        tally_all(
            picture, p, top, left, height, width, matrix, tall, wide, tile_height, tile_width, vote, apart, levels
        )
    else:
        tally(
            picture, p, top, left, height, width, matrix, tall, wide, tile_height, tile_width, vote, idle, apart, levels
        )  # fmt: skip
    tl.debug_barrier()
    colour(picture, lookup, p, top, left, height, width, tall, wide, block, shades, apart, levels)


@triton.jit
def tally(
    picture, p, top, left, height: tl.constexpr, width: tl.constexpr, matrix: tl.constexpr, tall: tl.constexpr,
    wide: tl.constexpr, tile_height: tl.constexpr, tile_width: tl.constexpr, vote: tl.constexpr, idle: tl.constexpr,
    apart: tl.constexpr, levels: tl.constexpr,
):  # fmt: skip
    """Count every pixel of a region; the counts lie where the pixels will be."""
    by: tl.constexpr = 1 if apart == 3 else height * width
    area: tl.constexpr = tall * wide
    lanes: tl.constexpr = tile_height * tile_width
    lane = tl.arange(0, lanes)
    row, column = spot(lane, top, left, wide, tile_height, tile_width)
    place = (row * width + column) * apart
    valid = fits(row, column, height, width, tall, wide)
    zr, zi, cr, ci = seat(row, column, height, width, matrix, p)
    alive = valid
    seen = lane * 0
    held_r, held_i = zr, zi
    head = lanes
    live = 1
    while live > 0:
        for turn in tl.static_range(2 if CYCLES else 1):
            zr, zi, seen, alive = advance(zr, zi, cr, ci, seen, alive, p, vote)
            if turn == 1:  # an orbit that is where it was two votes ago repeats for ever
                seen = tl.where(alive & (zr == held_r) & (zi == held_i), STEPS, seen)
                held_r, held_i = zr, zi
            alive = alive & (seen < STEPS)
            live = tl.sum(alive.to(tl.int32), axis=0)
            if (head < area) & (live <= lanes - idle):
                free = alive == 0
                note(picture + place, seen, valid & free, by, levels)
                number = head + rank(free.to(tl.int32), lanes)
                free = free & (number < area)
                row, column = spot(number, top, left, wide, tile_height, tile_width)
                sr, si, kr, ki = seat(row, column, height, width, matrix, p)
                place = tl.where(free, (row * width + column) * apart, place)
                zr, zi = tl.where(free, sr, zr), tl.where(free, si, zi)
                cr, ci = tl.where(free, kr, cr), tl.where(free, ki, ci)
                held_r = tl.where(free, float("nan"), held_r)
                seen = tl.where(free, 0, seen)
                if height % tall != 0 or width % wide != 0:
                    valid = tl.where(free, fits(row, column, height, width, tall, wide), valid)
                alive = alive | (free & valid)
                head += lanes - live
                live = 1
    note(picture + place, seen, valid, by, levels)


@triton.jit
def advance(zr, zi, cr, ci, seen, alive, p, vote: tl.constexpr):
    """So many steps of every lane. What a lane does once it has stopped is not counted."""
    lasted = seen * 0
    for j in tl.static_range(vote):
        zr, zi = step(zr, zi, cr, ci, zr, zi, 0.0, p)
        alive = alive & (zr * zr + zi * zi < RADIUS_SQUARED)
        lasted = tl.where(alive, j + 1, lasted)
    return zr, zi, seen + lasted, alive


@triton.jit
def note(place, seen, which, by: tl.constexpr, levels: tl.constexpr):
    """Keep counts in their pixels, in two channels' bytes if need be; a last vote may have gone beyond STEPS."""
    seen = tl.minimum(seen, STEPS)
    tl.store(place, seen.to(place.dtype.element_ty), mask=which)
    if levels and STEPS > 255:
        tl.store(place + by, (seen >> 8).to(place.dtype.element_ty), mask=which)


@triton.jit
def tally_all(
    picture, p, top, left, height: tl.constexpr, width: tl.constexpr, matrix: tl.constexpr, tall: tl.constexpr,
    wide: tl.constexpr, tile_height: tl.constexpr, tile_width: tl.constexpr, vote: tl.constexpr, apart: tl.constexpr,
    levels: tl.constexpr,
):  # fmt: skip
    """As `tally` where orbits run through: all lanes stop together, and tiles follow one another."""
    lanes: tl.constexpr = tile_height * tile_width
    by: tl.constexpr = 1 if apart == 3 else height * width
    for head in range(0, tall * wide, lanes):
        row, column = spot(head + tl.arange(0, lanes), top, left, wide, tile_height, tile_width)
        zr, zi, cr, ci = seat(row, column, height, width, matrix, p)
        seen = zr * 0.0
        for _ in range(STEPS // vote):
            for _j in tl.static_range(vote):
                zr, zi = step(zr, zi, cr, ci, zr, zi, 0.0, p)
                seen += below(zr * zr + zi * zi)
        within = fits(row, column, height, width, tall, wide)
        note(picture + (row * width + column) * apart, seen.to(tl.int32), within, by, levels)


@triton.jit
def below(square):
    """1 where an orbit is inside, else 0: one instruction less than a comparison and a conversion."""
    if INTERPRETED:
        return (square < RADIUS_SQUARED).to(tl.float32)
    else:
        bound = tl.full(square.shape, RADIUS_SQUARED, tl.float32)
        return tl.inline_asm_elementwise("set.lt.f32.f32 $0, $1, $2;", "=f,f,f", [square, bound], tl.float32, True, 1)


@triton.jit
def colour(
    picture, lookup, p, top, left, height: tl.constexpr, width: tl.constexpr, tall: tl.constexpr, wide: tl.constexpr,
    block: tl.constexpr, shades: tl.constexpr, apart: tl.constexpr, levels: tl.constexpr,
):  # fmt: skip
    """Turn the counts of a region into its pixels."""
    by: tl.constexpr = 1 if apart == 3 else height * width
    if shades > 0:
        palette = shade(tl.arange(0, shades), p)
    for begin in range(0, tall * wide, block):
        at = begin + tl.arange(0, block)
        row, column = top + at // wide, left + at % wide
        within = fits(row, column, height, width, tall, wide)
        place = picture + (row * width + column) * apart
        seen = tl.load(place, mask=within, other=0).to(tl.int32)
        if levels:
            seen = seen & 255
            if STEPS > 255:
                seen = seen | (tl.load(place + by, mask=within, other=0).to(tl.int32) << 8)
        if shades > 0:
            rgb = tl.gather(palette, seen, axis=0)
        else:
            rgb = shade(seen, p)
        write(place, lookup, rgb & 255, within, levels)
        write(place + by, lookup + 256, (rgb >> 8) & 255, within, levels)
        write(place + 2 * by, lookup + 512, rgb >> 16, within, levels)


@triton.jit
def shade(seen, p):
    """The colour of a count: red, green and blue levels in one integer."""
    inside = tl.where(seen == STEPS, 1.0, 0.0)
    none = inside * 0.0
    r, g, b = paint(seen.to(tl.float32), inside, none, none, none, none, (none,), p)
    return whole(clip(r) * 255.0) | (whole(clip(g) * 255.0) << 8) | (whole(clip(b) * 255.0) << 16)


@triton.jit
def fits(row, column, height: tl.constexpr, width: tl.constexpr, tall: tl.constexpr, wide: tl.constexpr):
    """Whether a pixel lies in the picture."""
    if height % tall == 0 and width % wide == 0:
        return row >= 0
    else:
        return (row < height) & (column < width)


@triton.jit
def spot(place, top, left, wide: tl.constexpr, tile_height: tl.constexpr, tile_width: tl.constexpr):
    """Row and column of a place in the queue: tile after tile, each row after row."""
    lanes: tl.constexpr = tile_height * tile_width
    tiles: tl.constexpr = wide // tile_width
    number = place.to(tl.uint32, bitcast=True)  # whose quotients by powers of two are shifts
    tile = number // lanes
    row = tile // tiles * tile_height + number % lanes // tile_width
    column = tile % tiles * tile_width + number % tile_width
    return top + row.to(tl.int32, bitcast=True), left + column.to(tl.int32, bitcast=True)


@triton.jit
def seat(row, column, height: tl.constexpr, width: tl.constexpr, matrix: tl.constexpr, p):
    """Where the orbit of a pixel begins, and its c; the grid is `Raster.grid`, its numbers known here."""
    i = column.to(tl.float32)
    j = row.to(tl.float32)
    if matrix:
        u, v = (2.0 / (height - 1)) * j - 1.0, (2.0 / (width - 1)) * i - 1.0
    else:
        u, v = (2.0 / width) * i + (1.0 / width - 1.0), (-2.0 / width) * j + ((height - 1.0) / width)
    x, y = to_plane(u, v, p)
    return start(x, y, p)


RANKS = tl.constexpr(
    "{ .reg .pred q; .reg .b32 below, a, b, c; mov.u32 below, %lanemask_lt;"
    " setp.ne.b32 q, $2, 0; vote.sync.ballot.b32 a, q, 0xffffffff;"
    " setp.ne.b32 q, $3, 0; vote.sync.ballot.b32 b, q, 0xffffffff;"
    " popc.b32 c, a; and.b32 a, a, below; popc.b32 $0, a;"
    " and.b32 b, b, below; popc.b32 b, b; add.u32 $1, b, c; }"
)
"""For one warp with two lanes of the tile to a thread."""


@triton.jit
def rank(free, lanes: tl.constexpr):
    """The number of a free lane among the free ones, from 0."""
    if INTERPRETED or lanes != 64:
        return tl.cumsum(free, axis=0) - 1
    else:
        return tl.inline_asm_elementwise(RANKS, "=&r,=&r,r,r", [free], tl.int32, False, 2)
