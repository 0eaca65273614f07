"""The way from Python into kernels: builtins of machine code that read where arrays lie; ctypes, where they cannot."""

from __future__ import annotations

import ctypes
import functools
import operator
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from wherever.engine.kernels.vector import MOST_ARGUMENTS

# Through ctypes a call with eight addresses takes 1.5 microseconds, and `array.ctypes.data` another for each of them:
# more than the arithmetic of a small convolution. So kernels are called by a function that is a builtin to CPython. It
# relies on what the ABIs of CPython and NumPy fix: an object begins with a header whose last field is its type, and in
# an array the address of its numbers follows. `NATIVE` says whether that was found to be so.

Entry = Callable[..., None]

HEADER = object.__basicsize__  # bytes
_WORD = 8  # bytes of a pointer
_METH_FASTCALL = 0x80

_at = ctypes.c_void_p.from_address


class _Table(np.ndarray[Any, np.dtype[np.uintp]]):
    """Addresses of what a builtin calls; the object whose method it is, and which keeps in memory what it needs."""

    needed: tuple[object, ...]


def _as_expected() -> bool:
    """Whether objects and arrays lie in memory as this module takes them to."""
    if sys.implementation.name != "cpython" or ctypes.sizeof(ctypes.c_void_p) != _WORD:
        return False
    arrays: list[npt.NDArray[Any]] = [np.zeros(3), np.zeros((2, 5), "f")[:, 1:], np.zeros(4, np.uintp).view(_Table)]
    return all(
        (_at(id(a) + HEADER - _WORD).value, _at(id(a) + HEADER).value) == (id(type(a)), a.ctypes.data) for a in arrays
    )


NATIVE = _as_expected()

if NATIVE:

    def address(array: npt.NDArray[Any]) -> int:
        """Where the numbers of an array begin: `array.ctypes.data` in a fifth of the time."""
        return _at(id(array) + HEADER).value or 0

else:

    def address(array: npt.NDArray[Any]) -> int:
        """Where the numbers of an array begin."""
        return array.ctypes.data


# The table of a builtin: these, and its kernel's address and number of arguments.
_FUNCTIONS = (
    "PyType_IsSubtype",
    "PyLong_AsVoidPtr",
    "PyErr_Occurred",
    "PyErr_BadArgument",
    "PyEval_SaveThread",
    "PyEval_RestoreThread",
    "Py_IncRef",
)
_OBJECTS = {"array": np.ndarray, "integer": int, "None": None}
_PLACES = {name: place for place, name in enumerate((*_FUNCTIONS, *_OBJECTS, "kernel", "count"))}


@functools.cache
def _table() -> tuple[int | None, ...]:
    """What all tables of this process begin with."""
    functions = (ctypes.cast(getattr(ctypes.pythonapi, name), ctypes.c_void_p).value for name in _FUNCTIONS)
    return (*functions, *map(id, _OBJECTS.values()))


class Way:
    """The function that CPython calls, of an owner and arguments: it calls the kernel that the owner's table names.

    Arguments are integers, or arrays, whose addresses are meant. A program like a `Kernel`, to be compiled once for
    all kernels; the machine code is the same in every process.
    """

    name = "way"
    arguments = 0

    def __init__(self, target: object, *, header: int) -> None:
        self.header = header

    def text(self) -> str:
        """The function in LLVM's language."""
        numbers = range(MOST_ARGUMENTS)
        return f"""
define ptr @{self.name}(ptr %owner, ptr %arguments, i64 %given) nounwind {{
begin:
  %addresses = alloca [{MOST_ARGUMENTS} x ptr]
{self._field("table", "owner", self.header)}
{chr(10).join(self._field(name, "table", _WORD * place) for name, place in _PLACES.items())}
  %wanted = ptrtoint ptr %count to i64
  %counted = icmp eq i64 %given, %wanted
  br i1 %counted, label %each, label %wrong

each:
  %i = phi i64 [ 0, %begin ], [ %next, %found ]
  %argument.at = getelementptr ptr, ptr %arguments, i64 %i
  %argument = load ptr, ptr %argument.at
{self._field("type", "argument", self.header - _WORD)}
  %is.integer = icmp eq ptr %type, %integer
  br i1 %is.integer, label %number, label %other

number:
  %converted = call ptr %PyLong_AsVoidPtr(ptr %argument)
  %is.null = icmp eq ptr %converted, null
  br i1 %is.null, label %doubt, label %found

doubt:
  %error = call ptr %PyErr_Occurred()
  %fine = icmp eq ptr %error, null
  br i1 %fine, label %found, label %failed

other:
  %subtype = call i32 %PyType_IsSubtype(ptr %type, ptr %array)
  %is.array = icmp ne i32 %subtype, 0
  br i1 %is.array, label %numbers, label %wrong

numbers:
{self._field("first", "argument", self.header)}
  br label %found

found:
  %address = phi ptr [ %converted, %number ], [ null, %doubt ], [ %first, %numbers ]
  %address.at = getelementptr ptr, ptr %addresses, i64 %i
  store ptr %address, ptr %address.at
  %next = add i64 %i, 1
  %more = icmp ult i64 %next, %wanted
  br i1 %more, label %each, label %run

run:
{chr(10).join(self._field(f"a{i}", "addresses", _WORD * i) for i in numbers)}
  %thread = call ptr %PyEval_SaveThread()
  call void %kernel({", ".join(f"ptr %a{i}" for i in numbers)})
  call void %PyEval_RestoreThread(ptr %thread)
  call void %Py_IncRef(ptr %None)
  ret ptr %None

wrong:
  %bad = call i32 %PyErr_BadArgument()
  br label %failed

failed:
  ret ptr null
}}
"""

    @staticmethod
    def _field(name: str, base: str, offset: int) -> str:
        """Read the pointer that stands so many bytes behind another."""
        return f"  %{name}.at = getelementptr i8, ptr %{base}, i64 {offset}\n  %{name} = load ptr, ptr %{name}.at"


class _Method(ctypes.Structure):
    """CPython's PyMethodDef."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("function", ctypes.c_void_p),
        ("flags", ctypes.c_int),
        ("doc", ctypes.c_char_p),
    )


@functools.cache
def _new_builtin() -> Callable[..., Any]:
    """CPython's function that makes a builtin of a PyMethodDef, its owner, and the name of its module."""
    prototype = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.py_object, ctypes.c_void_p)
    return prototype(("PyCFunction_NewEx", ctypes.pythonapi))


def entry(name: str, kernel: int, count: int, way: int | None, *needed: object) -> Entry:
    """Return what Python calls to run a kernel, with its arrays or their addresses.

    Parameters
    ----------
    kernel : int
        Where it is in memory.
    count : int
        Its arguments.
    way : int, optional
        Where the function of `Way` is; None: through ctypes.
    *needed
        What keeps both in memory.
    """
    if way is not None:
        method = _Method(name.encode(), way, _METH_FASTCALL, None)
        owner = np.array([*_table(), kernel, count], np.uintp).view(_Table)
        owner.needed = method, *needed
        made: Entry = _new_builtin()(ctypes.addressof(method), owner, None)
        return made
    function = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * MOST_ARGUMENTS)(kernel)
    rest = (0,) * (MOST_ARGUMENTS - count)

    def through_ctypes(*arguments: int | npt.NDArray[Any], needed: tuple[object, ...] = needed) -> None:
        if len(arguments) != count:
            raise TypeError(f"{name}: {len(arguments)} arguments instead of {count}")
        function(*(a.ctypes.data if isinstance(a, np.ndarray) else operator.index(a) for a in arguments), *rest)

    return through_ctypes
