"""Vectors of 64 bytes in Numba: one network in a lane, so that no order of sums depends on how wide a vector is.

A value of `Lanes` is 8 float64 or 16 float32 numbers. LLVM splits it where the processor's vectors
are narrower; nothing is left to the vectoriser of loops. Memory is flat: vector k of an array
begins at element k * lanes. A product and a sum are fused where `fma` says so, and nowhere else.
"""

from __future__ import annotations

import operator
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import types
from numba.core.datamodel import models
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, register_model

LINE = 64
"""Bytes of a vector, and of a line of the processor's caches."""

__all__ = [
    "LINE", "Lanes", "all_less", "any_less", "filled", "fma", "lane", "load", "nans", "power_of_two", "root", "splat",
    "store", "where_bit", "where_less", "with_lane",
]  # fmt: skip


class Lanes(types.Type):  # type: ignore[misc]
    """The type of a vector of one element type."""

    def __init__(self, element: Any) -> None:
        self.element = element
        self.count = LINE * 8 // element.bitwidth
        super().__init__(name=f"Lanes({element})")


@register_model(Lanes)
class LanesModel(models.PrimitiveModel):  # type: ignore[misc]
    """How LLVM holds them: one vector."""

    def __init__(self, manager: Any, kind: Lanes) -> None:
        element = ir.DoubleType() if kind.element is types.float64 else ir.FloatType()
        super().__init__(manager, kind, ir.VectorType(element, kind.count))


def joined(kinds: Any) -> Lanes | None:
    """The vector type of an operation's arguments, of which scalars are spread; None without a vector among them."""
    found = [kind for kind in kinds if isinstance(kind, Lanes)]
    fits = all(isinstance(kind, Lanes | types.Float | types.Integer | types.IntegerLiteral) for kind in kinds)
    return found[0] if found and fits and all(kind == found[0] for kind in found) else None


def spread(context: Any, builder: Any, value: Any, kind: Any, to: Lanes) -> Any:
    """A value as a vector."""
    if kind == to:
        return value
    vector = context.get_value_type(to)
    scalar = context.cast(builder, value, kind, to.element)
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, ir.Constant(ir.IntType(32), 0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), to.count), [0] * to.count)
    return builder.shuffle_vector(first, ir.Constant(vector, ir.Undefined), zeros)


def _operation(sign: Any, method: str) -> None:
    @infer_global(sign)
    class Typing(AbstractTemplate):  # type: ignore[misc]
        def generic(self, args: Any, kws: Any) -> Any:
            kind = joined(args) if len(args) == 2 else None
            return signature(kind, *args) if kind else None

    for left, right in ((Lanes, Lanes), (Lanes, types.Number), (types.Number, Lanes)):

        @lower_builtin(sign, left, right)
        def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            a, b = (spread(context, builder, v, k, sig.return_type) for v, k in zip(args, sig.args, strict=True))
            return getattr(builder, method)(a, b)


for _sign, _method in (
    (operator.add, "fadd"), (operator.sub, "fsub"), (operator.mul, "fmul"), (operator.truediv, "fdiv"),
):  # fmt: skip
    _operation(_sign, _method)


def _called(context: Any, builder: Any, name: str, vector: Any, values: Any) -> Any:
    """A call of one of LLVM's functions of vectors."""
    suffix = f"v{vector.count}f{64 if isinstance(vector.element, ir.DoubleType) else 32}"
    kind = ir.FunctionType(vector, [vector] * len(values))
    function = builder.module.globals.get(f"llvm.{name}.{suffix}") or ir.Function(
        builder.module, kind, f"llvm.{name}.{suffix}"
    )
    return builder.call(function, values)


def _place(context: Any, builder: Any, kind: Any, array: Any, index: Any, count: int) -> Any:
    """The address of vector `index` of an array."""
    data = context.make_array(kind)(context, builder, array).data
    position = builder.mul(index, ir.Constant(index.type, count))
    return builder.bitcast(builder.gep(data, [position]), ir.VectorType(data.type.pointee, count).as_pointer())


@intrinsic  # type: ignore[misc]
def load(typingctx: Any, array: Any, index: Any) -> Any:
    """Vector `index` of a flat array."""
    kind = Lanes(array.dtype)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        place = _place(context, builder, sig.args[0], args[0], args[1], kind.count)
        return builder.load(place, align=array.dtype.bitwidth // 8)

    return kind(array, types.intp), codegen


@intrinsic  # type: ignore[misc]
def store(typingctx: Any, array: Any, index: Any, value: Any) -> Any:
    """Write vector `index` of a flat array."""
    kind = Lanes(array.dtype)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        place = _place(context, builder, sig.args[0], args[0], args[1], kind.count)
        builder.store(spread(context, builder, args[2], value, kind), place, align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.none(array, types.intp, value), codegen


@intrinsic  # type: ignore[misc]
def splat(typingctx: Any, array: Any, index: Any) -> Any:
    """Element `index` of a flat array in every lane."""
    kind = Lanes(array.dtype)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        data = context.make_array(sig.args[0])(context, builder, args[0]).data
        return spread(context, builder, builder.load(builder.gep(data, [args[1]])), array.dtype, kind)

    return kind(array, types.intp), codegen


@intrinsic  # type: ignore[misc]
def fma(typingctx: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c, in one rounding where the processor has such an instruction."""
    kind = joined((a, b, c))

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        values = [spread(context, builder, v, k, kind) for v, k in zip(args, sig.args, strict=True)]  # type: ignore[arg-type]
        return _called(context, builder, "fmuladd", context.get_value_type(kind), values)

    return kind(a, b, c), codegen  # type: ignore[misc]


@intrinsic  # type: ignore[misc]
def root(typingctx: Any, a: Any) -> Any:
    """The square root."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _called(context, builder, "sqrt", context.get_value_type(a), args)

    return a(a), codegen


@intrinsic  # type: ignore[misc]
def where_less(typingctx: Any, a: Any, b: Any, yes: Any, no: Any) -> Any:
    """`yes` where a < b, else, and where either is NaN, `no`."""
    kind = joined((a, b, yes, no))

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        x, y, p, q = (spread(context, builder, v, k, kind) for v, k in zip(args, sig.args, strict=True))  # type: ignore[arg-type]
        return builder.select(builder.fcmp_ordered("<", x, y), p, q)

    return kind(a, b, yes, no), codegen  # type: ignore[misc]


@intrinsic  # type: ignore[misc]
def power_of_two(typingctx: Any, shifted: Any) -> Any:
    """2**k of `shifted` = k + 1.5 * 2**52 (2**23 of float32), whose last bits are k: no conversion of numbers."""
    bits, mantissa, one = (64, 52, 1023) if shifted.element is types.float64 else (32, 23, 127)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        vector = ir.VectorType(ir.IntType(bits), shifted.count)
        whole = builder.shl(builder.bitcast(args[0], vector), ir.Constant(vector, [mantissa] * shifted.count))
        power = builder.add(whole, ir.Constant(vector, [one << mantissa] * shifted.count))
        return builder.bitcast(power, context.get_value_type(shifted))

    return shifted(shifted), codegen


@intrinsic  # type: ignore[misc]
def where_bit(typingctx: Any, shifted: Any, mask: Any, yes: Any, no: Any) -> Any:
    """`yes` where k of `shifted`, as in `power_of_two`, has a bit of the mask, else `no`."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        vector = ir.VectorType(ir.IntType(shifted.element.bitwidth), shifted.count)
        mask_of = ir.Constant(vector, [sig.args[1].literal_value] * shifted.count)
        found = builder.and_(builder.bitcast(args[0], vector), mask_of)
        zero = ir.Constant(vector, [0] * shifted.count)
        return builder.select(builder.icmp_unsigned("!=", found, zero), args[2], args[3])

    return (yes(shifted, mask, yes, no), codegen) if isinstance(mask, types.IntegerLiteral) else None


@intrinsic  # type: ignore[misc]
def filled(typingctx: Any, array: Any, value: Any) -> Any:
    """A number in every lane of a vector of an array's type."""
    kind = Lanes(array.dtype)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return spread(context, builder, args[1], sig.args[1], kind)

    return kind(array, value), codegen


@intrinsic  # type: ignore[misc]
def nans(typingctx: Any, a: Any) -> Any:
    """1 where a lane is NaN, else 0."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        kind = context.get_value_type(a)
        one, zero = (ir.Constant(kind, [value] * a.count) for value in (1.0, 0.0))
        return builder.select(builder.fcmp_unordered("uno", args[0], args[0]), one, zero)

    return a(a), codegen


@intrinsic  # type: ignore[misc]
def any_less(typingctx: Any, a: Any, b: Any) -> Any:
    """Whether a < b in some lane."""
    return types.boolean(a, b), _some(a, b, False)


@intrinsic  # type: ignore[misc]
def all_less(typingctx: Any, a: Any, b: Any) -> Any:
    """Whether a < b in every lane."""
    return types.boolean(a, b), _some(a, b, True)


def _some(a: Any, b: Any, every: bool) -> Any:
    kind: Any = joined((a, b))

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        x, y = (spread(context, builder, v, k, kind) for v, k in zip(args, sig.args, strict=True))
        mask = builder.bitcast(builder.fcmp_ordered("<", x, y), ir.IntType(kind.count))
        return builder.icmp_unsigned("==" if every else "!=", mask, ir.Constant(mask.type, -1 if every else 0))

    return codegen


@intrinsic  # type: ignore[misc]
def lane(typingctx: Any, a: Any, index: Any) -> Any:
    """The number in one lane."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.extract_element(args[0], args[1])

    return a.element(a, types.intp), codegen


@intrinsic  # type: ignore[misc]
def with_lane(typingctx: Any, a: Any, index: Any, value: Any) -> Any:
    """The vector with another number in one lane."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        scalar = context.cast(builder, args[2], sig.args[2], a.element)
        return builder.insert_element(args[0], scalar, args[1])

    return a(a, types.intp, value), codegen
