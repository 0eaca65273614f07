"""The kernel language: numbers, vectors, arrays and loops, from which a Python program writes a machine's kernel."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import llvmlite.ir as ir

# A kernel is a Python function that is run once, to write down what the machine will do each time. What Python computes
# while it writes (ints, loops, ifs) is folded into the code; what only the machine will know is an Int, a Vector or an
# Array here. Python's own `for` unrolls, `kernel.loop` loops.

I1, I32, I64, VOID, POINTER = ir.IntType(1), ir.IntType(32), ir.IntType(64), ir.VoidType(), ir.PointerType()
FLOATS = {"float32": ir.FloatType(), "float64": ir.DoubleType()}
_SUFFIX = {"float32": "f32", "float64": "f64"}
BYTES = {"float32": 4, "float64": 8}
# log(2) in two parts, of which the first ends with zeros: its product with an exponent is exact.
_LOG_2 = {
    "float32": (0.693145751953125, 1.4286068203094173e-06),
    "float64": (0.6931471805592082, 7.371002565167799e-13),
}
MOST_ARGUMENTS = 24  # of a kernel


@dataclass(frozen=True)
class Stored:
    """How numbers of a type lie in memory: as LLVM has them, their bytes, and their kind as NumPy names it."""

    element: ir.Type
    suffix: str
    bytes: int
    kind: str


# The types of numbers that arrays may hold; vectors are of the kernel's own type.
STORED = {
    **{name: Stored(FLOATS[name], _SUFFIX[name], BYTES[name], "f") for name in FLOATS},
    **{f"int{8 * size}": Stored(ir.IntType(8 * size), f"i{8 * size}", size, "i") for size in (1, 2, 4)},
    **{f"uint{8 * size}": Stored(ir.IntType(8 * size), f"i{8 * size}", size, "u") for size in (1, 2, 4)},
    "bool": Stored(ir.IntType(8), "i8", 1, "u"),
}


class Kernel:
    """One function of machine code, being written.

    Parameters
    ----------
    name : str
        Of the function.
    dtype : {"float32", "float64"}
        Of all arrays and vectors.
    lanes : int
        Numbers in one vector register.
    arrays : sequence of str
        Names of the pointers it is called with. They overlap nowhere.
    sizes : sequence of str
        Names of the integers it is called with (in one array of int64, the last argument).

    Notes
    -----
    Variables live in memory while the kernel is written; LLVM's SROA pass turns them into registers. All arrays are
    taken to be aligned to their elements only.
    """

    def __init__(self, name: str, dtype: str, lanes: int, arrays: Sequence[str], sizes: Sequence[str] = ()) -> None:
        self.name, self.dtype, self.lanes = name, dtype, lanes
        self.element = FLOATS[dtype]
        self.vector = ir.VectorType(self.element, lanes)
        self.bytes = BYTES[dtype]
        self.module = ir.Module(name)
        self.arguments = len(arrays) + 1
        if self.arguments > MOST_ARGUMENTS:
            raise ValueError(f"{name}: {self.arguments} arguments; at most {MOST_ARGUMENTS} are passed")
        signature = ir.FunctionType(VOID, [POINTER] * MOST_ARGUMENTS)  # the same for all, whatever they ignore
        self.function = ir.Function(self.module, signature, name)
        self.function.attributes.add("nounwind")
        self.builder = ir.IRBuilder(self.function.append_basic_block("entry"))
        self._written: dict[tuple[object, ...], ir.Value] = {}
        self._splats: dict[str, ir.Value] = {}
        self._pointers = dict(zip(arrays, self.function.args, strict=False))
        for argument in self.function.args[: self.arguments]:
            argument.add_attribute("noalias")
        self._sizes = {}
        for place, size in enumerate(sizes):
            address = self.builder.gep(self.function.args[len(arrays)], [ir.Constant(I64, place)], source_etype=I64)
            self._sizes[size] = Int(self, self.builder.load(address, typ=I64, align=8))

    # What it is called with.

    def size(self, name: str) -> Int:
        """An integer argument."""
        return self._sizes[name]

    def array(self, name: str, *strides: int | Int, dtype: str | None = None) -> Array:
        """An array argument with these strides, in elements, of its axes.

        Of the kernel's type; or of another (see `STORED`), whose numbers are converted where they are loaded and
        stored: to integers towards zero, modulo their range, of numbers that an int32 can hold.
        """
        return Array(self, self._pointers[name], 0, tuple(strides), dtype or self.dtype)

    def table(self, name: str) -> Table:
        """An array argument that holds integers (int64)."""
        return Table(self, self._pointers[name])

    # Vectors.

    def splat(self, number: float) -> Vector:
        """A vector of one number known when the kernel is written."""
        text = repr(float(number))  # which tells 0 from -0
        if text not in self._splats:  # one object, which is put into words once
            self._splats[text] = ir.Constant(self.vector, [ir.Constant(self.element, float(number))] * self.lanes)
        return Vector(self, self._splats[text])

    def variables(self, *shape: int) -> Variables:
        """Vectors that change: an array of them of this shape, zero at first, in registers as far as they suffice."""
        return Variables(self, shape)

    def fma(self, a: Vector, b: Vector, c: Vector) -> Vector:
        """A * b + c, rounded once where the machine can."""
        name = f"llvm.fmuladd.v{self.lanes}{_SUFFIX[self.dtype]}"
        function = self.intrinsic(name, self.vector, [self.vector] * 3)
        return Vector(self, self.builder.call(function, [a.value, b.value, c.value]))

    def truncated(self, a: Vector) -> Vector:
        """The nearest integers towards zero, of numbers that an int32 can hold."""
        integers = self.builder.fptosi(a.value, ir.VectorType(I32, self.lanes))
        return Vector(self, self.builder.sitofp(integers, self.vector))

    def mask(self, count: Int | int, first: Int | int = 0) -> Mask:
        """The lanes from ``first`` to before ``count`` (to the last, if there are no more than ``count``)."""
        lanes = ir.VectorType(I1, self.lanes)
        function = self.intrinsic(f"llvm.get.active.lane.mask.v{self.lanes}i1.i64", lanes, [I64, I64])

        def below(count: Int | int) -> ir.Value:
            count = self.maximum(count, 0)  # the intrinsic counts without sign
            return self.builder.call(function, [ir.Constant(I64, 0), self.number(count).value])

        return Mask(below(count) if _is(first, 0) else self.builder.xor(below(count), below(first)))

    # Numbers.

    def number(self, number: Int | int) -> Int:
        """A number as the machine has it."""
        return number if isinstance(number, Int) else Int(self, ir.Constant(I64, number))

    def minimum(self, a: Int | int, b: Int | int) -> Int | int:
        """The smaller of two numbers."""
        return min(a, b) if isinstance(a, int) and isinstance(b, int) else self.where(self.number(a) < b, a, b)

    def maximum(self, a: Int | int, b: Int | int) -> Int | int:
        """The larger of two numbers."""
        return max(a, b) if isinstance(a, int) and isinstance(b, int) else self.where(self.number(a) > b, a, b)

    def where(self, condition: Condition, a: Int | int, b: Int | int) -> Int:
        """A if the condition holds, else b."""
        return Int(self, self.builder.select(condition.value, self.number(a).value, self.number(b).value))

    def choose(self, condition: Condition, a: Array, b: Array) -> Array:
        """Array A if the condition holds, else B: where it begins, and its strides."""
        pointer = self.builder.select(condition.value, a.beginning, b.beginning)
        strides = [x if x is y else self.where(condition, x, y) for x, y in zip(a.strides, b.strides, strict=True)]
        return Array(self, pointer, 0, tuple(strides), a.dtype)

    def distance(self, a: Array, b: Array) -> Int:
        """How many elements behind A's beginning B begins."""
        first, second = (Int(self, self.builder.ptrtoint(array.beginning, I64)) for array in (a, b))
        return Int(self, self.builder.sdiv((second - first).value, ir.Constant(I64, STORED[a.dtype].bytes)))

    # Control.

    @contextmanager
    def loop(self, start: Int | int, stop: Int | int | None = None, step: Int | int = 1) -> Iterator[Int]:
        """Run the body for start, start + step, ... below stop; not at all if start is not below stop."""
        if stop is None:
            start, stop = 0, start
        builder = self.builder
        first, last = self.number(start), self.number(stop)
        body, after = builder.append_basic_block("loop"), builder.append_basic_block("after")
        if isinstance(start, int) and isinstance(stop, int) and start < stop:
            builder.branch(body)
        else:
            builder.cbranch((first < last).value, body, after)
        before = builder.block
        builder.position_at_end(body)
        number = builder.phi(I64)
        number.add_incoming(first.value, before)
        counter = Int(self, number)
        yield counter
        following = counter + step
        assert isinstance(following, Int)
        number.add_incoming(following.value, builder.block)
        builder.cbranch((following < last).value, body, after)
        builder.position_at_end(after)

    def vectors(self, start: Int | int, stop: Int | int, *, ragged: bool = True) -> Iterator[tuple[Int, Mask | None]]:
        """Run the body for the numbers from start to stop, a vector of them at a time: whole ones, then what is left.

        Yields the first number of the vector, and the mask of those that are left. Not ``ragged``: nothing is left.
        """
        first, count = self.number(start), stop - start
        if isinstance(count, int):
            ragged = count % self.lanes > 0
        whole = count // self.lanes * self.lanes if ragged else count
        with self.loop(start, start + whole, self.lanes) as place:
            yield place, None
        if ragged:
            with self.loop(first + whole, stop, self.lanes) as place:
                yield place, self.mask(stop - place)

    @contextmanager
    def when(self, condition: Condition) -> Iterator[None]:
        """Run the body if the condition holds."""
        with self.builder.if_then(condition.value):
            yield

    @contextmanager
    def either(self, condition: Condition) -> Iterator[tuple[Any, Any]]:
        """Two bodies, ``with then:`` and ``with otherwise:``, of which one is run."""
        with self.builder.if_else(condition.value) as (then, otherwise):
            yield then, otherwise

    def barrier(self) -> None:
        """Keep what is written before and behind apart: no load is moved, or made one with another, across here."""
        self.builder.fence("acq_rel", "singlethread")

    def fence(self) -> None:
        """Let other processors see what was stored before, also past the caches, ahead of what is stored after."""
        self.builder.fence("seq_cst")

    # What is written.

    def text(self) -> str:
        """The kernel in LLVM's language."""
        if not self.builder.block.is_terminated:
            self.builder.ret_void()
        return str(self.module)

    def once(self, write: Callable[[], ir.Value], *key: object) -> ir.Value:
        """What was written in this block for this key already, or is written now: half of all index arithmetic.

        LLVM would find it too, but has to read it first. Values in a key are told apart by their identity, which
        lasts: what is written holds them.
        """
        key = (id(self.builder.block), *key)
        value = self._written.get(key)
        if value is None:
            value = self._written[key] = write()
        return value

    def intrinsic(self, name: str, result: ir.Type, arguments: Sequence[ir.Type]) -> ir.Function:
        """One of LLVM's own functions, declared once."""
        known = self.module.globals.get(name)
        return known or ir.Function(self.module, ir.FunctionType(result, arguments), name)

    def register(self) -> ir.Value:
        """Memory for one vector, on the stack, taken once at the kernel's entry."""
        with self.builder.goto_entry_block():
            memory = self.builder.alloca(self.vector)
        memory.align = self.bytes * self.lanes
        return memory


@dataclass(frozen=True)
class Condition:
    """Something that holds or not."""

    kernel: Kernel
    value: ir.Value

    def __and__(self, other: Condition) -> Condition:
        return Condition(self.kernel, self.kernel.builder.and_(self.value, other.value))

    def __or__(self, other: Condition) -> Condition:
        return Condition(self.kernel, self.kernel.builder.or_(self.value, other.value))

    def __invert__(self) -> Condition:
        return Condition(self.kernel, self.kernel.builder.not_(self.value))


@dataclass(frozen=True)
class Mask:
    """Some of the lanes of a vector."""

    value: ir.Value

    def select(self, a: Vector, b: Vector) -> Vector:
        """The numbers of A in these lanes, those of B in the others."""
        return Vector(a.kernel, a.kernel.builder.select(self.value, a.value, b.value))


class Int:
    """An integer that the machine knows; with Python's ints it stays as simple as it can."""

    def __init__(self, kernel: Kernel, value: ir.Value) -> None:
        self.kernel, self.value = kernel, value

    def _operate(self, name: str, other: Int | int, *, swap: bool = False, **options: Any) -> Int:
        kernel = self.kernel

        def write() -> ir.Value:
            left, right = self.value, kernel.number(other).value
            operation: Callable[..., ir.Value] = getattr(kernel.builder, name)
            return operation(*((right, left) if swap else (left, right)), **options)

        operand = other if isinstance(other, int) else (id(other.value),)
        return Int(kernel, kernel.once(write, name, swap, id(self.value), operand))

    def __add__(self, other: Int | int) -> Int:
        return self if _is(other, 0) else self._operate("add", other, flags=["nsw"])

    def __radd__(self, other: int) -> Int:
        return self + other

    def __sub__(self, other: Int | int) -> Int:
        return self if _is(other, 0) else self._operate("sub", other, flags=["nsw"])

    def __rsub__(self, other: int) -> Int:
        return self._operate("sub", other, swap=True, flags=["nsw"])

    def __mul__(self, other: Int | int) -> Int | int:
        if _is(other, 0):
            return 0
        return self if _is(other, 1) else self._operate("mul", other, flags=["nsw"])

    def __rmul__(self, other: int) -> Int | int:
        return self * other

    def __floordiv__(self, other: Int | int) -> Int:
        """The quotient, of numbers that are not negative."""
        return self if _is(other, 1) else self._operate("udiv", other)

    def __mod__(self, other: Int | int) -> Int | int:
        """The remainder, of numbers that are not negative."""
        return 0 if _is(other, 1) else self._operate("urem", other)

    def _compare(self, sign: str, other: Int | int) -> Condition:
        builder = self.kernel.builder
        return Condition(self.kernel, builder.icmp_signed(sign, self.value, self.kernel.number(other).value))

    def __lt__(self, other: Int | int) -> Condition:
        return self._compare("<", other)

    def __le__(self, other: Int | int) -> Condition:
        return self._compare("<=", other)

    def __gt__(self, other: Int | int) -> Condition:
        return self._compare(">", other)

    def __ge__(self, other: Int | int) -> Condition:
        return self._compare(">=", other)

    def equals(self, other: Int | int) -> Condition:
        """Whether two numbers are the same."""
        return self._compare("==", other)


def _is(number: Int | int, value: int) -> bool:
    return isinstance(number, int) and number == value


class Vector:
    """As many numbers as one register holds."""

    def __init__(self, kernel: Kernel, value: ir.Value) -> None:
        self.kernel, self.value = kernel, value

    def _operate(self, name: str, other: Vector | float, *, swap: bool = False) -> Vector:
        right = other if isinstance(other, Vector) else self.kernel.splat(other)
        operands = (right.value, self.value) if swap else (self.value, right.value)
        return Vector(self.kernel, getattr(self.kernel.builder, name)(*operands))

    def __add__(self, other: Vector | float) -> Vector:
        return self._operate("fadd", other)

    def __sub__(self, other: Vector | float) -> Vector:
        return self._operate("fsub", other)

    def __mul__(self, other: Vector | float) -> Vector:
        return self._operate("fmul", other)

    __radd__, __rmul__ = __add__, __mul__

    def __rsub__(self, other: float) -> Vector:
        return self._operate("fsub", other, swap=True)

    def __truediv__(self, other: Vector | float) -> Vector:
        return self._operate("fdiv", other)

    def __neg__(self) -> Vector:
        return Vector(self.kernel, self.kernel.builder.fneg(self.value))

    def __le__(self, other: Vector | float) -> Mask:
        other = other if isinstance(other, Vector) else self.kernel.splat(other)
        return Mask(self.kernel.builder.fcmp_ordered("<=", self.value, other.value))

    def root(self) -> Vector:
        """The square roots."""
        kernel = self.kernel
        function = kernel.intrinsic(f"llvm.sqrt.v{kernel.lanes}{_SUFFIX[kernel.dtype]}", kernel.vector, [kernel.vector])
        return Vector(kernel, kernel.builder.call(function, [self.value]))

    def limited(self, low: float, high: float) -> Vector:
        """The numbers, or the bound that they are beyond; NaN stays NaN."""
        kernel = self.kernel
        above = (self <= low).select(kernel.splat(low), self)
        return (kernel.splat(high) <= above).select(kernel.splat(high), above)

    def exponential(self) -> Vector:
        """The exponential function, where it neither overflows nor underflows, to 2 units in the last place.

        Cody and Waite's reduction, and Taylor's polynomial between -log(2)/2 and log(2)/2.
        """
        kernel = self.kernel
        # A number so large that its last digit is 1: what is added to it is rounded to an integer, in its last digits.
        digits, bias, terms = (52, 1023, 13) if kernel.dtype == "float64" else (23, 127, 7)
        large = 1.5 * 2.0**digits
        whole = (kernel.fma(self, kernel.splat(1 / math.log(2)), kernel.splat(large))) - large
        first, second = _LOG_2[kernel.dtype]
        rest = kernel.fma(whole, kernel.splat(-second), kernel.fma(whole, kernel.splat(-first), self))
        result = kernel.splat(1 / math.factorial(terms))
        for power in reversed(range(terms)):
            result = kernel.fma(result, rest, kernel.splat(1 / math.factorial(power)))
        integer = ir.IntType(8 * kernel.bytes)
        integers, builder = ir.VectorType(integer, kernel.lanes), kernel.builder
        bits = builder.bitcast((whole + (large + bias)).value, integers)
        shifted = builder.shl(bits, ir.Constant(integers, [ir.Constant(integer, digits)] * kernel.lanes))
        return result * Vector(kernel, builder.bitcast(shifted, kernel.vector))

    def lane(self, number: int) -> Vector:
        """The number of one lane, in every lane."""
        return self.shuffled(self, [number] * self.kernel.lanes)

    def running(self, *, backwards: bool = False) -> Vector:
        """Sums of the lanes up to each one (or from each one on)."""
        total, step = self, 1
        while step < self.kernel.lanes:
            total = total + total.moved(-step if backwards else step)
            step *= 2
        return total

    def moved(self, lanes: int) -> Vector:
        """The numbers, so many lanes later (or earlier, if negative); zeros where none arrive."""
        count = self.kernel.lanes
        order = [i - lanes if 0 <= i - lanes < count else count for i in range(count)]
        return self.shuffled(self.kernel.splat(0), order)

    def shuffled(self, other: Vector, lanes: Sequence[int]) -> Vector:
        """The numbers of these lanes, counted through this vector and then the other."""
        order = ir.Constant(ir.VectorType(I32, len(lanes)), list(lanes))
        return Vector(self.kernel, self.kernel.builder.shuffle_vector(self.value, other.value, order))


def transposed(vectors: Sequence[Vector]) -> list[Vector]:
    """The columns of a square matrix of as many vectors as each has lanes: blocks on the diagonal stay, others swap."""
    result, lanes = list(vectors), len(vectors)
    step = 1
    while step < lanes:
        stay = [lane if not lane & step else lanes + lane - step for lane in range(lanes)]
        swap = [lane + step if not lane & step else lanes + lane for lane in range(lanes)]
        for first in (i for i in range(lanes) if not i & step):
            a, b = result[first], result[first + step]
            result[first], result[first + step] = a.shuffled(b, stay), a.shuffled(b, swap)
        step *= 2
    return result


class Variables:
    """Vectors that change, by their index."""

    def __init__(self, kernel: Kernel, shape: tuple[int, ...]) -> None:
        self.kernel, self.shape = kernel, shape
        self._memory = {}
        zero = kernel.splat(0)
        for index in itertools.product(*(range(n) for n in shape)):
            self._memory[index] = kernel.register()
            self[index] = zero

    def __getitem__(self, index: int | tuple[int, ...]) -> Vector:
        memory = self._memory[index if isinstance(index, tuple) else (index,)]
        return Vector(self.kernel, self.kernel.builder.load(memory, typ=self.kernel.vector))

    def __setitem__(self, index: int | tuple[int, ...], vector: Vector) -> None:
        memory = self._memory[index if isinstance(index, tuple) else (index,)]
        self.kernel.builder.store(vector.value, memory)


class Array:
    """An array in memory: where it begins, and how far apart the elements of each axis are.

    Indexed with as many numbers as it has axes it is one `Place`; with fewer, the array of what is left.
    """

    def __init__(
        self, kernel: Kernel, pointer: ir.Value, offset: int, strides: tuple[int | Int, ...], dtype: str | None = None
    ) -> None:
        self.kernel, self.pointer, self.offset, self.strides = kernel, pointer, offset, strides
        self.dtype = dtype or kernel.dtype

    def __getitem__(self, index: int | Int | tuple[int | Int, ...]) -> Any:
        index = index if isinstance(index, tuple) else (index,)
        if len(index) > len(self.strides):
            raise IndexError(f"{len(index)} indices for an array of {len(self.strides)} axes")
        fixed, moving = self.offset, None
        for number, stride in zip(index, self.strides, strict=False):
            step = number * stride
            if isinstance(step, int):
                fixed += step  # kept apart: it becomes part of the instruction
            else:
                moving = step if moving is None else moving + step
        pointer = self.pointer if moving is None else self._beyond(moving.value)
        rest = self.strides[len(index) :]
        if rest:
            return Array(self.kernel, pointer, fixed, rest, self.dtype)
        return Place(self.kernel, pointer, fixed, self.dtype)

    @property
    def beginning(self) -> ir.Value:
        """Where it begins, as a pointer."""
        return Place(self.kernel, self.pointer, self.offset, self.dtype).address

    def moved(self, elements: int | Int) -> Array:
        """The array that begins so many elements later."""
        if isinstance(elements, int):
            return Array(self.kernel, self.pointer, self.offset + elements, self.strides, self.dtype)
        return Array(self.kernel, self._beyond(elements.value), self.offset, self.strides, self.dtype)

    def _beyond(self, elements: ir.Value) -> ir.Value:
        return self.kernel.builder.gep(
            self.pointer, [elements], inbounds=False, source_etype=STORED[self.dtype].element
        )


@dataclass(frozen=True)
class Table:
    """Integers in memory, by their number."""

    kernel: Kernel
    pointer: ir.Value

    def __getitem__(self, number: int | Int) -> Int:
        builder = self.kernel.builder
        return Int(self.kernel, builder.load(self._address(number), typ=I64, align=8))

    def __setitem__(self, number: int | Int, value: int | Int) -> None:
        self.kernel.builder.store(self.kernel.number(value).value, self._address(number), align=8)

    def _address(self, number: int | Int) -> ir.Value:
        return self.kernel.builder.gep(self.pointer, [self.kernel.number(number).value], source_etype=I64)


@dataclass(frozen=True)
class Place:
    """One place in memory, and the lanes that follow it."""

    kernel: Kernel
    pointer: ir.Value
    offset: int
    dtype: str

    @property
    def address(self) -> ir.Value:
        """The place as a pointer."""
        if not self.offset:
            return self.pointer
        builder = self.kernel.builder
        return builder.gep(self.pointer, [ir.Constant(I64, self.offset)], source_etype=self._stored.element)

    def load(self, mask: Mask | None = None) -> Vector:
        """The vector that begins here; zeros in the lanes that the mask leaves out, whose memory is not touched."""
        kernel, kind = self.kernel, self._vector
        if mask is None:
            return self._converted(kernel.builder.load(self.address, typ=kind, align=self._stored.bytes))
        name = f"llvm.masked.load.v{kernel.lanes}{self._stored.suffix}.p0"
        function = kernel.intrinsic(name, kind, [POINTER, mask.value.type, kind])
        nothing = ir.Constant(kind, [ir.Constant(kind.element, 0)] * kernel.lanes)
        return self._converted(kernel.builder.call(function, [self.address, mask.value, nothing]))

    def store(self, vector: Vector, mask: Mask | None = None, *, streamed: bool = False) -> None:
        """Put a vector here; lanes that the mask leaves out are not touched.

        ``streamed``: past the caches, for what nobody reads soon; whole vectors only, here must be a multiple of a
        vector's bytes, and `Kernel.fence` must follow.
        """
        kernel, stored, kind, value = self.kernel, self._stored, self._vector, vector.value
        if stored.kind != "f":
            value = kernel.builder.fptosi(value, ir.VectorType(I32, kernel.lanes))
            value = value if stored.bytes == 4 else kernel.builder.trunc(value, kind)
        elif self.dtype != kernel.dtype:
            convert = kernel.builder.fptrunc if stored.bytes < kernel.bytes else kernel.builder.fpext
            value = convert(value, kind)
        if mask is None:
            align = stored.bytes * kernel.lanes if streamed else stored.bytes
            instruction = kernel.builder.store(value, self.address, align=align)
            if streamed:
                instruction.set_metadata("nontemporal", kernel.module.add_metadata([ir.Constant(I32, 1)]))
            return
        name = f"llvm.masked.store.v{kernel.lanes}{stored.suffix}.p0"
        function = kernel.intrinsic(name, VOID, [kind, POINTER, mask.value.type])
        kernel.builder.call(function, [value, self.address, mask.value])

    @property
    def _stored(self) -> Stored:
        return STORED[self.dtype]

    @property
    def _vector(self) -> ir.VectorType:
        return ir.VectorType(self._stored.element, self.kernel.lanes)

    def _converted(self, value: ir.Value) -> Vector:
        """A loaded vector in the kernel's type."""
        return Vector(self.kernel, self._number(value, self.kernel.vector))

    def _number(self, value: ir.Value, kind: ir.Type) -> ir.Value:
        """A loaded number, or vector, as ``kind``, of the kernel's type."""
        kernel, stored = self.kernel, self._stored
        if self.dtype == kernel.dtype:
            return value
        if stored.kind == "f":
            return (kernel.builder.fpext if stored.bytes < kernel.bytes else kernel.builder.fptrunc)(value, kind)
        return (kernel.builder.sitofp if stored.kind == "i" else kernel.builder.uitofp)(value, kind)

    def copy(self, source: Place) -> None:
        """Put the one number that is at another place here: of the same type, or here of the kernel's."""
        builder, stored = self.kernel.builder, source._stored
        number = builder.load(source.address, typ=stored.element, align=stored.bytes)
        if source.dtype != self.dtype:
            number = source._number(number, self.kernel.element)
        builder.store(number, self.address, align=self._stored.bytes)

    def splat(self) -> Vector:
        """The one number that is here, in every lane."""
        kernel, builder, stored = self.kernel, self.kernel.builder, self._stored
        number = builder.load(self.address, typ=stored.element, align=stored.bytes)
        nothing = ir.Constant(self._vector, ir.Undefined)
        first = builder.insert_element(nothing, number, ir.Constant(I32, 0))
        zeros = ir.Constant(ir.VectorType(I32, kernel.lanes), None)
        return self._converted(builder.shuffle_vector(first, nothing, zeros))

    def prefetch(self, level: int = 1, *, write: bool = False) -> None:
        """Ask for the cache line that is here, to read or to write: level 1, 2 or 3. Never fails, wherever here is."""
        function = self.kernel.intrinsic("llvm.prefetch.p0", VOID, [POINTER, I32, I32, I32])
        locality = ir.Constant(I32, 4 - level)
        self.kernel.builder.call(function, [self.address, ir.Constant(I32, int(write)), locality, ir.Constant(I32, 1)])
