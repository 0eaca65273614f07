"""The cache of machine code: found again, never trusted when damaged or foreign, never needed."""

import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

from wherever.engine.kernels import compile as module
from wherever.engine.kernels.places import places

ARGUMENTS = {"dtype": "float32", "rows": 2, "vectors": 2}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache directory, and no kernels in memory, but the way to call them."""
    module.compiled(places, **ARGUMENTS)
    monkeypatch.setenv("WHEREVER_CACHE_DIR", str(tmp_path))
    module._compiled.cache_clear()
    yield tmp_path / "kernels"
    module._compiled.cache_clear()


def works():
    """Compile or find the kernel, and use it."""
    module._compiled.cache_clear()
    kernel = module.compiled(places, **ARGUMENTS)
    x, w = np.arange(10, dtype=np.float32), np.array([[1, 0], [-1, 0]], np.float32)
    y, offsets = np.zeros((2, 9), np.float32), np.array([1, 0])
    sizes = np.array([1, 1, 2, 9, 10])
    kernel(*(a.ctypes.data for a in (x, w, y, offsets, sizes)))
    return np.array_equal(y, [[1] * 9, [0] * 9])


def count_compilations(monkeypatch):
    done = []
    emit = module.Target.emit
    monkeypatch.setattr(module.Target, "emit", lambda self, kernel: done.append(1) or emit(self, kernel))
    return done


def test_compiled_once_and_found_again(cache, monkeypatch):
    done = count_compilations(monkeypatch)
    assert works()
    assert works()
    assert len(done) == 1
    assert len(list(cache.iterdir())) == 1
    assert cache.stat().st_mode & 0o777 == 0o700


def damage_flip(content):
    return content[:-100] + bytes([content[-100] ^ 1]) + content[-99:]


@pytest.mark.parametrize(
    "damage", [lambda c: b"", lambda c: c[: len(c) // 2], damage_flip, lambda c: b"x" + c[1:], lambda c: c[:20]]
)
def test_a_damaged_file_is_compiled_again(cache, monkeypatch, damage):
    assert works()
    (path,) = cache.iterdir()
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    done = count_compilations(monkeypatch)
    assert works()
    assert len(done) == 1
    assert path.read_bytes() == whole


def test_the_code_of_another_kernel_is_not_run(cache, monkeypatch):
    assert works()
    (mine,) = cache.iterdir()
    module.compiled(places, dtype="float64", rows=2, vectors=2)
    (other,) = set(cache.iterdir()) - {mine}
    mine.write_bytes(other.read_bytes())
    done = count_compilations(monkeypatch)
    assert works()
    assert len(done) == 1


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="permissions as on Unix")
@pytest.mark.parametrize("place", ["file", "directory"])
def test_what_others_may_write_is_not_run(cache, monkeypatch, place):
    assert works()
    (path,) = cache.iterdir()
    (path if place == "file" else cache).chmod(0o777)
    done = count_compilations(monkeypatch)
    assert works()
    assert len(done) == 1


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes among the files of Windows")
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(cache):
    assert works()
    (path,) = cache.iterdir()
    path.unlink()
    os.mkfifo(path)
    signal.alarm(20)
    assert works()
    signal.alarm(0)


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path, monkeypatch):
    obstacle = tmp_path / "file"
    obstacle.write_text("not a directory")
    monkeypatch.setenv("WHEREVER_CACHE_DIR", str(obstacle))
    done = count_compilations(monkeypatch)
    assert works()
    assert works()
    assert len(done) == 2
    module._compiled.cache_clear()


def test_many_processes_at_once_on_an_empty_cache(tmp_path):
    code = (
        "import numpy as np; from wherever.engine.algorithms import Direct; from wherever.problem import ConvProblem\n"
        "p = ConvProblem.from_shapes((1, 3, 20, 20), (4, 3, 3, 3)); y = np.empty(p.y_shape, np.float32)\n"
        "Direct().prepare(p, np.ones(p.w_shape, np.float32)).run(np.ones(p.x_shape, np.float32), y, 2)\n"
        "assert (y == 27).all()"
    )
    environment = {**os.environ, "WHEREVER_CACHE_DIR": str(tmp_path / "cache")}
    running = [subprocess.Popen([sys.executable, "-c", code], env=environment) for _ in range(8)]
    assert [process.wait() for process in running] == [0] * 8
    names = [path.name for path in (tmp_path / "cache" / "kernels").iterdir()]
    assert names
    assert all(len(name) == 64 for name in names)  # no temporary file is left


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on Windows")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_forked_while_another_thread_compiles_compiles_too(cache):
    started, forked = threading.Event(), threading.Event()

    def inside_llvm():
        if threading.current_thread() is thread:
            started.set()
            forked.wait(0.2)

    def nothing():
        pass

    thread = threading.Thread(target=module.compiled, args=(places,), kwargs=ARGUMENTS)
    module.llvm.ffi.register_lock_callback(inside_llvm, nothing)
    try:
        thread.start()
        started.wait()
        child = os.fork()
        if child == 0:  # pragma: no cover
            module.llvm.ffi.unregister_lock_callback(inside_llvm, nothing)
            signal.alarm(20)
            os._exit(0 if works() else 1)
        forked.set()
    finally:
        thread.join()
        module.llvm.ffi.unregister_lock_callback(inside_llvm, nothing)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("name", ["nonsense", "pentium4", "bdver1"])
def test_an_unknown_processor_is_named(name):
    code = "from wherever.engine.kernels.compile import host; host()"
    environment = {**os.environ, "WHEREVER_CPU": name}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert f"ValueError: WHEREVER_CPU: {name!r} is unknown; possible are" in done.stderr


def test_an_impossible_processor_is_refused(monkeypatch):
    first = module.llvm.get_process_triple().split("-")[0]
    monkeypatch.setitem(module.PROCESSORS, first, {"future": ("telepathy",)})
    monkeypatch.setenv("WHEREVER_CPU", "future")
    with pytest.raises(ValueError, match="cannot run code for 'future': it lacks telepathy"):
        module.host.__wrapped__()


def test_without_llvm_the_portable_algorithms_serve():
    code = (
        "import llvmlite.binding as llvm\n"
        "def broken(*args, **kwargs): raise RuntimeError('no such target')\n"
        "llvm.Target.from_triple = broken\n"
        "import numpy as np; import wherever\n"
        "x, w = np.ones((3, 64, 64), np.float32), np.ones((8, 3, 3, 3), np.float32)\n"
        "assert (wherever.conv(x, w) == 27).all()\n"
        "print(wherever.plan(x.shape, w.shape))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "LLVM cannot generate kernels here: no such target" in done.stdout, done.stderr


@pytest.mark.parametrize("kept", [None, b"64", b"32", b"17", b"wide"])
def test_the_width_of_vectors_is_remembered_for_its_processor_alone(cache, kept):
    from wherever.engine.cache import write

    triple = module.llvm.get_process_triple()
    if not triple.startswith("x86_64"):
        pytest.skip("widths as on x86")
    assert module.Target(triple, "haswell").vector_bytes == 32
    (path,) = (cache.parent / "processors").iterdir()
    if kept is not None:
        write("processors", path.name, kept)
    remembered = module.Target(triple, "haswell").vector_bytes
    assert remembered == (64 if kept == b"64" else 32)
    assert module.Target(triple, "x86-64").vector_bytes == 16
