"""The kernel language: each construct does on the machine what it says, also for lesser processors than this one."""

import os
import subprocess
import sys

import numpy as np
import pytest
from machine_code import run

from wherever.engine.kernels.compile import Target, host
from wherever.engine.kernels.vector import Kernel


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n", [0, 1, 5, 16, 17, 100])
def test_masked_tails_touch_nothing_else(dtype, n):
    lanes = host().lanes(dtype)
    kernel = Kernel("axpy", dtype, lanes, ["x", "y"], ["n"])
    x, y, count = kernel.array("x", 1), kernel.array("y", 1), kernel.size("n")
    with kernel.loop(0, count, lanes) as i:
        mask = kernel.mask(count - i)
        y[i].store(2 * x[i].load(mask) + y[i].load(mask) - 1, mask)
    a, b = np.arange(n + 5, dtype=dtype), np.full(n + 5, 7, dtype)
    run(kernel, a, b, sizes=[n])
    np.testing.assert_array_equal(b[:n], 2 * a[:n] + 6)
    np.testing.assert_array_equal(b[n:], 7)


def test_numbers_are_computed_as_in_python():
    kernel = Kernel("numbers", "float64", 1, ["y"], ["a", "b"])
    a, b, y = kernel.size("a"), kernel.size("b"), kernel.array("y", 1)
    one = kernel.splat(1)
    cases = {
        "a + b": a + b, "3 + a": 3 + a, "a - b": a - b, "50 - a": 50 - a, "a * b": a * b, "2 * a": 2 * a,
        "a // b": a // b, "a % b": a % b, "a % 1": a % 1, "a * 0": a * 0, "min(a, b)": kernel.minimum(a, b),
        "max(a, 30)": kernel.maximum(a, 30), "min(2, 3)": kernel.minimum(2, 3),
        "a if a < b else b": kernel.where(a < b, a, b), "a if a >= 17 else b": kernel.where(a >= 17, a, b),
        "a if a == 17 and b > 4 else 0": kernel.where(a.equals(17) & (b > 4), a, 0),
        "a if a == 16 or b <= 5 else 0": kernel.where(a.equals(16) | (b <= 5), a, 0),
        "a if not a < b else b": kernel.where(~(a < b), a, b),
    }  # fmt: skip
    for value in cases.values():
        y[value].store(y[value].load() + one)  # count at the place of the value
    out = np.zeros(200)
    run(kernel, out, sizes=[17, 5])
    expected = np.zeros(200)
    for expression in cases:
        expected[eval(expression, {"a": 17, "b": 5})] += 1
    np.testing.assert_array_equal(out, expected)


def test_vectors_arrays_and_branches():
    lanes = host().lanes("float32")
    kernel = Kernel("mixed", "float32", lanes, ["x", "y"], ["rows"])
    x, rows = kernel.array("x", 2 * lanes, 1), kernel.size("rows")
    y = kernel.array("y", lanes, 1)
    with kernel.loop(rows) as r:
        row = x[r]
        negative = -row[0].load()
        row[lanes].prefetch()
        with kernel.either((r % 2).equals(0)) as (then, otherwise):
            with then:
                y[r, 0].store(kernel.fma(row[lanes].load(), row[0].splat(), negative))
            with otherwise:
                y[r, 0].store(negative)
        with kernel.when(r.equals(2)):
            y[r, 0].store(4 - x[0, 0].load())
    a = np.random.default_rng(0).standard_normal((5, 2 * lanes)).astype(np.float32)
    out = np.zeros((5, lanes), np.float32)
    run(kernel, a, out, sizes=[5])
    expected = -a[:, :lanes]
    expected[::2] += a[::2, lanes:] * a[::2, :1]
    expected[2] = 4 - a[0, :lanes]
    np.testing.assert_allclose(out, expected, rtol=1e-6, atol=1e-6)


def test_loops_count_and_may_be_empty():
    kernel = Kernel("loops", "float64", 1, ["y"], ["n"])
    y, n = kernel.array("y", 1), kernel.size("n")
    total = kernel.variables(3)
    with kernel.loop(4) as i, kernel.loop(i, n, 2):
        total[0] = total[0] + 1
    with kernel.loop(3, 3):
        total[1] = total[1] + 1
    with kernel.loop(n, 2):
        total[2] = total[2] + 1
    for k in range(3):
        y[k].store(total[k])
    out = np.zeros(3)
    run(kernel, out, sizes=[7])
    np.testing.assert_array_equal(out, [sum(len(range(i, 7, 2)) for i in range(4)), 0, 0])


def test_a_place_needs_all_its_numbers():
    kernel = Kernel("bad", "float32", 4, ["x"])
    with pytest.raises(IndexError, match="3 indices for an array of 2 axes"):
        kernel.array("x", 4, 1)[0, 0, 0]


@pytest.mark.skipif(not host().triple.startswith("x86_64"), reason="names processors of another family")
@pytest.mark.parametrize(("cpu", "width"), [("x86-64", 16), ("haswell", 32)])
def test_lesser_processors_compute_the_same(cpu, width, tmp_path):
    """The engine's property tests, on code for processors that this one can stand in for."""
    if host().vector_bytes < width:
        pytest.skip("this processor is a lesser one itself")
    environment = {**os.environ, "WHEREVER_CPU": cpu, "WHEREVER_CACHE_DIR": str(tmp_path), "WHEREVER_EXAMPLES": "20"}
    check = f"from wherever.engine.kernels.compile import host; assert host().vector_bytes == {width}"
    subprocess.run([sys.executable, "-c", check], env=environment, check=True)
    tests = os.path.join(os.path.dirname(os.path.dirname(__file__)), "test_algorithms.py")
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-k", "reference or blocks or finite"]
    done = subprocess.run([sys.executable, "-m", "pytest", *options, tests], env=environment, capture_output=True)
    assert done.returncode == 0, done.stdout.decode()


@pytest.mark.parametrize(("dtype", "stored"), [("float64", "float32"), ("float32", "float64"), ("float32", "float32")])
@pytest.mark.parametrize("count", [0, 1, 99])
def test_arrays_of_another_type_are_converted(dtype, stored, count):
    lanes = host().lanes(dtype)
    kernel = Kernel("halves", dtype, lanes, ["x", "y"], ["n"])
    x, y = kernel.array("x", 3, 1, dtype=stored).moved(3), kernel.array("y", 1, dtype=stored)
    mask = kernel.mask(kernel.size("n"))
    y[0].store(x[1, 0].load(mask) / 2 + x[0, 0].splat(), mask)
    y[lanes].copy(x[0, 1])
    a, b = np.arange(6 + lanes, dtype=stored), np.full(lanes + 1, -1, stored)
    run(kernel, a, b, sizes=[count])
    n = min(count, lanes)
    np.testing.assert_array_equal(b, [*(a[6 : 6 + n] / 2 + 3), *[-1] * (lanes - n), 4])


def test_lanes_are_moved_and_summed():
    lanes = host().lanes("float64")
    kernel = Kernel("sums", "float64", lanes, ["x", "y"])
    x, y = kernel.array("x", 1)[0].load(), kernel.array("y", lanes, 1)
    found = [x.running(), x.running(backwards=True), x.moved(1), x.moved(-1), x.lane(1), (x * x).root()]
    found.append((x <= kernel.splat(2)).select(x, -x))
    for i, vector in enumerate(found):
        y[i, 0].store(vector)
    a, b = np.arange(1.0, lanes + 1), np.zeros((7, lanes))
    run(kernel, a, b)
    truth = [np.cumsum(a), np.cumsum(a[::-1])[::-1], [0, *a[:-1]], [*a[1:], 0], [2] * lanes, a, np.where(a <= 2, a, -a)]
    np.testing.assert_array_equal(b, truth)


def test_code_is_written_for_arm_too():
    import llvmlite.binding as llvm

    from wherever.engine.kernels.direct import direct
    from wherever.engine.kernels.places import places
    from wherever.engine.kernels.windows import normalised

    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    arm = Target("aarch64-unknown-linux-gnu", "neoverse-n1")
    assert (arm.vector_bytes, arm.registers) == (16, 32)
    for dtype in ("float32", "float64"):
        assert arm.emit(places(arm, dtype=dtype, rows=4, vectors=4))[:4] == b"\x7fELF"
        assert "fmla" in arm.assembly(places(arm, dtype=dtype, rows=4, vectors=4))
        tile = {"step": 8, "row": 99, "down": 2, "across": 4, "vectors": 3, "ahead": 1}
        tile |= {"lanes": arm.lanes(dtype), "fetch_x": True, "fetch_y": True, "activation": "silu", "adds": True}
        assert arm.emit(direct(arm, dtype=dtype, **tile))[:4] == b"\x7fELF"
        assert "fmla" in arm.assembly(direct(arm, dtype=dtype, **tile))
        assert arm.emit(normalised(arm, dtype=dtype))[:4] == b"\x7fELF"


def test_the_register_tile_stays_in_registers():
    """Vector moves to and from the stack mean spills, which cost a third of the speed."""
    from wherever.engine.kernels.direct import direct
    from wherever.engine.kernels.places import places

    for rows, vectors in [(1, 8), (4, 5), (6, 4), (8, 3)]:
        if rows * vectors + vectors + 1 > host().registers:
            continue
        assert not _spills(places(host(), dtype="float32", rows=rows, vectors=vectors))
    for across, vectors in [(28, 1), (14, 2), (9, 3), (13, 1), (6, 2)]:
        if across * vectors + vectors + 1 <= host().registers:
            tile = {"step": 64, "row": 0, "down": 1, "across": across, "vectors": vectors}
            tile |= {"lanes": host().lanes("float32"), "fetch_x": False, "fetch_y": False}
            tile |= {"activation": "relu", "adds": across < 20}
            assert not _spills(direct(host(), dtype="float32", **tile, ahead=0))
            assert not _spills(direct(host(), dtype="float32", **tile, ahead=1))


def _spills(kernel):
    """Moves of vectors to and from the stack."""
    lines = host().assembly(kernel).splitlines()
    return [line for line in lines if "rsp" in line and ("vmovups" in line or "vmovaps" in line)]
