"""From kernels to machine code: for which processor, through LLVM, and kept on disk for the next time."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import os
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import llvmlite
import llvmlite.binding as llvm

from wherever.engine.cache import read
from wherever.engine.cache import write as keep
from wherever.engine.kernels.entry import HEADER, NATIVE, Entry, Way, address, entry
from wherever.engine.kernels.vector import BYTES, Kernel

__all__ = [
    "PROCESSORS",
    "Entry",
    "Program",
    "Target",
    "address",
    "callable_from_python",
    "compiled",
    "host",
    "link",
    "unavailable",
]

# A kernel is written, optimised and compiled once (tens of milliseconds); its object code is kept in a file and linked
# from there later (under a millisecond). The name of the file is a hash of everything that the code depends on, and the
# file carries a hash of its content: what is damaged, or not ours, is compiled again and never run.

_lock = threading.RLock()


class Program(Protocol):
    """What can be compiled: a `Kernel`, or the way into kernels."""

    name: str
    arguments: int

    def text(self) -> str:
        """The program in LLVM's language."""


@dataclass(frozen=True)
class Target:
    """A processor to write code for.

    Attributes
    ----------
    triple : str
        Architecture and system, in LLVM's words.
    cpu : str
        The processor's name, in LLVM's words.
    features : str
        What it can do beyond (or short of) its name.
    """

    triple: str
    cpu: str
    features: str = ""

    @functools.cached_property
    def machine(self) -> llvm.TargetMachine:
        """LLVM's compiler for it."""
        return self._machine(2)

    def _machine(self, effort: int) -> llvm.TargetMachine:
        target = llvm.Target.from_triple(self.triple)
        return target.create_target_machine(cpu=self.cpu, features=self.features, opt=effort, reloc="pic", jit=True)

    @functools.cached_property
    def vector_bytes(self) -> int:
        """Bytes of its widest vector register: asked of LLVM, by adding two long vectors, and remembered on disk."""
        parts = [self.triple, self.cpu, self.features, llvmlite.__version__, ".".join(map(str, llvm.llvm_version_info))]
        key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
        kept = read("processors", key)
        if kept in (b"16", b"32", b"64"):
            return int(kept)
        kernel = Kernel("width", "float32", 16, ["x"])
        place = kernel.array("x", 1)[0]
        place.store(place.load() + place.load())
        text = self.assembly(kernel)
        found = 64 if re.search(r"\bzmm\d", text) else 32 if re.search(r"\bymm\d", text) else 16
        keep("processors", key, str(found).encode())
        return found

    @property
    def registers(self) -> int:
        """How many vector registers it has."""
        return 16 if self.triple.startswith(("x86_64", "i")) and self.vector_bytes < 64 else 32

    @property
    def halves(self) -> bool:
        """Whether it works on its widest vectors in two halves, so that one of half the width costs half."""
        return self.cpu == "znver4" and self.vector_bytes == 64

    def lanes(self, dtype: str) -> int:
        """Numbers of this type in one vector register."""
        return self.vector_bytes // BYTES[dtype]

    def emit(self, program: Program) -> bytes:
        """Compile a kernel to object code."""
        if isinstance(program, Way):  # straight as it is written; compiled in a quarter of the time
            return bytes(self._machine(0).emit_object(self._parsed(program)))
        return bytes(self.machine.emit_object(self._module(program)))

    def assembly(self, program: Program) -> str:
        """Compile a kernel to assembly, to be read."""
        return str(self.machine.emit_assembly(self._module(program)))

    def _parsed(self, program: Program) -> llvm.ModuleRef:
        module = llvm.parse_assembly(program.text())
        module.triple = self.triple
        module.verify()
        return module

    def _module(self, program: Program) -> llvm.ModuleRef:
        module = self._parsed(program)
        builder = llvm.create_pass_builder(self.machine, llvm.create_pipeline_tuning_options(speed_level=2))
        passes = llvm.create_new_function_pass_manager()
        passes.add_sroa_pass()  # variables into registers; what else LLVM could do at this level brought no speed
        passes.add_instruction_combine_pass()
        for function in module.functions:
            if not function.is_declaration:
                passes.run(function, builder)
        return module


# Processors that ``WHEREVER_CPU`` may name, and what a machine must have to stand in for them.
_X86_3 = ("avx2", "bmi2", "f16c", "fma", "lzcnt", "movbe")
_X86_4 = (*_X86_3, "avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl")
PROCESSORS: dict[str, dict[str, tuple[str, ...]]] = {
    "x86_64": {
        "x86-64": (),
        "x86-64-v2": ("popcnt", "sse4.2", "ssse3"),
        "x86-64-v3": _X86_3,
        "haswell": _X86_3,
        "x86-64-v4": _X86_4,
        "skylake-avx512": (*_X86_4, "adx", "aes", "pclmul", "pku", "rdseed"),
    },
    "aarch64": {"generic": ()},
}


@functools.cache
def host() -> Target:
    """The processor that kernels are written for: this one, or the one that ``WHEREVER_CPU`` names.

    Raises
    ------
    ValueError
        If the name is none of `PROCESSORS`, or this processor cannot run code for that one.
    """
    with _lock:
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        triple, name, features = llvm.get_process_triple(), os.environ.get("WHEREVER_CPU"), llvm.get_host_cpu_features()
        if not name:
            return Target(triple, llvm.get_host_cpu_name(), features.flatten())
        possible = PROCESSORS.get(triple.split("-")[0], {})
        if name not in possible:
            raise ValueError(f"WHEREVER_CPU: {name!r} is unknown; possible are {', '.join(possible) or 'none'}")
        lacking = [feature for feature in possible[name] if not features.get(feature)]
        if lacking:
            raise ValueError(
                f"WHEREVER_CPU: this processor cannot run code for {name!r}: it lacks {', '.join(lacking)}"
            )
        return Target(triple, name)


@functools.cache
def unavailable() -> str | None:
    """Why no kernel can be generated here, in words; None where they can."""
    try:
        with _lock:
            host().lanes("float32")
            _linker()
    except (RuntimeError, OSError, NotImplementedError) as error:
        return f"LLVM cannot generate kernels here: {error}"
    return None


_numbers = itertools.count()


@functools.cache
def _linker() -> llvm.LLJIT:
    """LLVM's linker, for this process; it links whatever processor the code was written for."""
    return llvm.create_lljit_compiler(Target(host().triple, "").machine)


def compiled(write: Callable[..., Kernel], **parameters: Any) -> Entry:
    """The kernel that ``write(target, **parameters)`` writes, for this processor: from memory, from disk, or compiled.

    Parameters
    ----------
    write : function
        Of a module of this package: its file is part of the key under which code is kept.
    **parameters : int, str, float, bool, None, or tuples of them
        Everything else that the code depends on.

    Returns
    -------
    Entry
        To be called with the arrays of the kernel, or their addresses, the last of which are its sizes (int64). What is
        meant by an address has to be there until it returns. Releases the GIL.
    """
    return _compiled(write, host(), tuple(sorted(parameters.items())))


@functools.lru_cache(maxsize=4096)
def _compiled(write: Callable[..., Kernel], target: Target, parameters: tuple[tuple[str, Any], ...]) -> Entry:
    name = write.__name__
    return callable_from_python(name, *_found(name, write, target, parameters))


def callable_from_python(name: str, library: llvm.ResourceTracker, arguments: int) -> Entry:
    """A kernel of so many arguments, in memory, to be called."""
    way = _way() if NATIVE else None
    return entry(name, library[name], arguments, None if way is None else way[Way.name], library, way)


@functools.cache
def _way() -> llvm.ResourceTracker:
    """The function by which CPython calls kernels, in memory."""
    library, _ = _found(Way.name, Way, host(), (("header", HEADER),))
    return library


def _found(
    name: str, write: Callable[..., Program], target: Target, parameters: tuple[tuple[str, Any], ...]
) -> tuple[llvm.ResourceTracker, int]:
    """Machine code in memory, linked from disk or compiled; and the arguments of the function."""
    with _lock:  # LLVM compiles one kernel at a time, and two threads that want the same one compile it once
        key = _key(write, target, parameters)
        stored = read("kernels", key)
        if stored is not None:
            try:
                return link(stored[1:], name), stored[0]
            except RuntimeError:  # hashed right, but no code that LLVM can link: compile it again
                pass
        program = write(target, **dict(parameters))
        code = target.emit(program)
        keep("kernels", key, bytes([program.arguments]) + code)
        return link(code, name), program.arguments


def link(code: bytes, name: str) -> llvm.ResourceTracker:
    """Put object code into memory, where it is as long as what is returned lives; and find a function by its name."""
    with _lock:
        builder = llvm.JITLibraryBuilder().add_object_img(code).export_symbol(name)
        return builder.link(_linker(), f"{name}.{next(_numbers)}")


def _key(write: Callable[..., Program], target: Target, parameters: tuple[tuple[str, Any], ...]) -> str:
    """A hash of everything that the code depends on."""
    versions = [_sources(), llvmlite.__version__, ".".join(map(str, llvm.llvm_version_info))]
    parts = [write.__module__, write.__qualname__, parameters, target.triple, target.cpu, target.features, versions]
    return hashlib.sha256(json.dumps(parts, default=repr).encode()).hexdigest()


@functools.cache
def _sources() -> str:
    """A hash of the programs that write kernels: a changed program does not find what the old one wrote."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


if hasattr(os, "register_at_fork"):
    # No child is forked while another thread is inside LLVM: it would wait for ever for locks of LLVM's and llvmlite's.
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)
