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
    table, lookup, out, count,
    height: tl.constexpr, width: tl.constexpr, supersample: tl.constexpr,
    tile_height: tl.constexpr, tile_width: tl.constexpr, vote: tl.constexpr,
    channels_last: tl.constexpr, levels: tl.constexpr,
):  # fmt: skip
    """Fill out[image] from table[:, image], a tile to a program.

    table: (P, count) float32; lookup: (3, 256) bits of each level;
    out: (count, 3, height, width) or (count, height, width, 3) bits of the pixels.
    """
    across: tl.constexpr = (width + tile_width - 1) // tile_width
    tiles: tl.constexpr = across * ((height + tile_height - 1) // tile_height)
    program = tl.program_id(0)
    image = program // tiles
    tile = program % tiles
    p = gather(table, image, count)
    lane = tl.arange(0, tile_height * tile_width)
    column = (tile % across) * tile_width + lane % tile_width
    row = (tile // across) * tile_height + lane // tile_width
    within = (column < width) & (row < height)
    red = tl.zeros([tile_height * tile_width], tl.float32)
    green = red
    blue = red
    for sample in range(supersample * supersample):
        if supersample == 1:
            i = column.to(tl.float32)
            j = row.to(tl.float32)
        else:
            i = column + (((sample % supersample) * 1.0 + 0.5) / supersample - 0.5)
            j = row + (((sample // supersample) * 1.0 + 0.5) / supersample - 0.5)
        x, y = to_plane(along(U0, U_COLUMN, i, U_ROW, j), along(V0, V_COLUMN, i, V_ROW, j), p)
        zr, zi, cr, ci = start(x, y, p)
        if SPAN == 0:
            seen, zr, zi, pr, pi, a = orbit(zr, zi, cr, ci, within, p, vote)
        else:
            a = begin(zr)
            if OUTWARD == 2:
                if stays_out(p):
                    seen, zr, zi, pr, pi = orbit_in_groups(zr, zi, cr, ci, within, p, True)
                else:
                    seen, zr, zi, pr, pi = orbit_in_groups(zr, zi, cr, ci, within, p, False)
            else:
                seen, zr, zi, pr, pi = orbit_in_groups(zr, zi, cr, ci, within, p, OUTWARD == 1)
        inside = tl.where(seen == STEPS, 1.0, 0.0)
        r, g, b = paint(seen.to(tl.float32), inside, zr, zi, pr, pi, a, p)
        r, g, b = clip(r), clip(g), clip(b)
        if supersample == 1:
            red, green, blue = r, g, b
        else:
            red, green, blue = red + r, green + g, blue + b
    full: tl.constexpr = 255.0 / (supersample * supersample)
    apart: tl.constexpr = 3 if channels_last else 1
    step_by: tl.constexpr = 1 if channels_last else height * width
    place = out + image.to(tl.int64) * (3 * height * width) + unseen((row * width + column) * apart)
    write(place, lookup, whole(red * full), within, levels)
    write(place + step_by, lookup + 256, whole(green * full), within, levels)
    write(place + 2 * step_by, lookup + 512, whole(blue * full), within, levels)


@triton.jit
def along(first, by_column: tl.constexpr, column, by_row: tl.constexpr, row):
    """A coordinate of the view; upright pictures have one term, those in matrix order the other."""
    if by_row == 0.0:
        return first + by_column * column
    else:
        return first + by_row * row


@triton.jit
def clip(x):
    """Into [0, 1]; NaN becomes 0."""
    return tl.minimum(tl.maximum(x, 0.0), 1.0)


@triton.jit
def unseen(places):
    """The same places, whose order the compiler can't see: it would shuffle lanes to store two pixels at once."""
    if INTERPRETED:
        return places
    else:
        return tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [places], tl.int32, True, 1)


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


@triton.jit
def orbit_in_groups(zr, zi, cr, ci, within, p, outward: tl.constexpr):
    """Iterate a tile in groups of `SPAN` steps, but for the lanes whose c is known to lie in the interior.

    No step freezes the lanes that have stopped: of each lane is kept where the group began that stopped it, and
    the step at which it did is found by running that group again, see `replay`.
    outward: lanes that have left stay out, and are asked at the end of a group only.
    """
    if INTERIOR:
        inner = interior(cr, ci, p)
        seen = tl.where(inner, STEPS, 0)
        pr, pi = zr, zi
        if tl.max((within & (inner == 0)).to(tl.int32), axis=0) > 0:
            seen, zr, zi, pr, pi = run(zr, zi, cr, ci, within & (inner == 0), p, outward)
            seen = tl.where(inner, STEPS, seen)
    else:
        seen, zr, zi, pr, pi = run(zr, zi, cr, ci, within, p, outward)
    return seen, zr, zi, pr, pi


@triton.jit
def run(zr, zi, cr, ci, alive, p, outward: tl.constexpr):
    """A first group of what is left over, then whole ones until the last lane has stopped; and the replay."""
    count = alive.to(tl.int32) * 0
    pr, pi = zr, zi
    held, held_r, held_i, before_r, before_i = count, zr, zi, zr, zi
    first: tl.constexpr = STEPS % SPAN
    if first > 0:
        zr, zi, pr, pi, alive, count = group(zr, zi, cr, ci, pr, pi, alive, count, 0, p, first, outward)
    n = first
    live = 1
    while (n < STEPS) & (live > 0):
        held = tl.where(alive, n, held)
        held_r, held_i = tl.where(alive, zr, held_r), tl.where(alive, zi, held_i)
        before_r, before_i = tl.where(alive, pr, before_r), tl.where(alive, pi, before_i)
        zr, zi, pr, pi, alive, count = group(zr, zi, cr, ci, pr, pi, alive, count, n, p, SPAN, outward)
        n += SPAN
        live = tl.max(alive.to(tl.int32), axis=0)
    ahead = tl.minimum(count - held, SPAN - 1)
    ran, zr, zi, pr, pi = replay(held_r, held_i, cr, ci, before_r, before_i, held, ahead, p, outward)
    return tl.where(alive, STEPS, ran), zr, zi, pr, pi


@triton.jit
def group(zr, zi, cr, ci, pr, pi, alive, count, n, p, steps: tl.constexpr, outward: tl.constexpr):
    """Run all lanes for some steps, those too that have stopped; unless outward, count what the living end inside."""
    for j in tl.static_range(steps):
        new_r, new_i = step(zr, zi, cr, ci, pr, pi, (n + j) * 1.0, p)
        pr, pi, zr, zi = zr, zi, new_r, new_i
        if not outward:
            alive = alive & (zr * zr + zi * zi < RADIUS_SQUARED)
            count = tl.where(alive, count + 1, count)
    if outward:
        alive = alive & (zr * zr + zi * zi < RADIUS_SQUARED)
    return zr, zi, pr, pi, alive, count


@triton.jit
def replay(zr, zi, cr, ci, pr, pi, ran, ahead, p, outward: tl.constexpr):
    """Run each lane's last group again, to its last step inside and one further, in halves as a search goes.

    Arithmetic may round here otherwise than it did before. So where the lane left is found anew from the same
    steps that give its z: that z lies beyond the radius, or by a rounding short of it, which is painted alike.
    ran: steps before that group; ahead: its steps that ended inside, unless outward.
    """
    for turn in tl.static_range(SPAN):
        if SPAN >> (turn + 1) > 0:
            zr, zi, pr, pi, ran = further(zr, zi, cr, ci, pr, pi, ran, ahead, p, SPAN >> (turn + 1), outward)
    new_r, new_i = step(zr, zi, cr, ci, pr, pi, ran.to(tl.float32), p)
    return ran, new_r, new_i, zr, zi


@triton.jit
def further(zr, zi, cr, ci, pr, pi, ran, ahead, p, steps: tl.constexpr, outward: tl.constexpr):
    """Go on by some steps where they end inside, and nowhere else."""
    far_r, far_i, near_r, near_i = zr, zi, pr, pi
    for j in tl.static_range(steps):
        new_r, new_i = step(far_r, far_i, cr, ci, near_r, near_i, (ran + j).to(tl.float32), p)
        near_r, near_i, far_r, far_i = far_r, far_i, new_r, new_i
    if outward:
        on = far_r * far_r + far_i * far_i < RADIUS_SQUARED
    else:
        on = (ahead & steps) != 0
    zr, zi = tl.where(on, far_r, zr), tl.where(on, far_i, zi)
    pr, pi = tl.where(on, near_r, pr), tl.where(on, near_i, pi)
    return zr, zi, pr, pi, tl.where(on, ran + steps, ran)
