"""Whole networks beside their peers: ours, PyTorch, ONNX Runtime, OpenVINO and ncnn in turns in one process.

    python benchmarks/networks.py [--only TEXT] [--threads N] [--training] [--memory] [--markdown FILE]

Inference: every network through `wherever.torch.accelerate`, PyTorch eager in both memory layouts, `torch.compile` with
its weights frozen, and whichever of the others is installed (the extra ``peers``). Training: one step (forward, both
gradients, SGD). Results are compared first; a row is the ratio of medians to the best peer.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from contender import Contender

# Times faster than the best peer that each network is to be.
TARGETS = {
    "VGG-16": 1.4,
    "ResNet-18": 1.7,
    "ResNet-50": 1.25,
    "MobileNetV2": 1.05,
    "ConvNeXt-T": 1.05,
    "U-Net 256": 1.5,
    "U-Net 512": 1.5,
    "detector 1024": 1.6,
    "audio": 1.1,
    "3-D U-Net level": 1.8,
}
TRAINING_TARGET = 1.3
_CLOSE = 1e-3  # of the largest result: several peers sum with less care than this engine promises
PEERS = ["torch.compile", "ONNX Runtime", "OpenVINO", "ncnn"]


def parsed() -> argparse.Namespace:
    """The command's options."""
    parser = argparse.ArgumentParser(description="Whole networks beside their peers.")
    parser.add_argument("--only", default="", help="only networks whose name contains one of these, a;b;c")
    parser.add_argument("--threads", type=int, default=1, help="threads of every library (default 1)")
    parser.add_argument("--rounds", type=int, default=11, help="samples of each contender (default 11)")
    parser.add_argument("--peers", default=";".join(PEERS), help="which libraries beside PyTorch eager, a;b;c")
    parser.add_argument("--training", action="store_true", help="steps of training instead of inference")
    parser.add_argument("--memory", action="store_true", help="resident memory, each contender in its own process")
    parser.add_argument("--report", action="store_true", help="print what accelerate did, layer by layer")
    parser.add_argument("--markdown", type=Path, help="write the table to this file")
    parser.add_argument("--alone", help=argparse.SUPPRESS)  # the process of one contender, for --memory
    return parser.parse_args()


# Inference.


def inference(name: str, threads: int, wanted: list[str], *, report: bool) -> Iterator[Contender | str]:
    """All who can compute a network, ours first; in words where one cannot."""
    import torch
    from architectures import network

    torch.set_num_threads(threads)
    model, x = network(name)
    last = _last_format(x)

    def ours() -> Contender:
        from wherever.torch import accelerate

        fast = accelerate(model, x)
        if report:
            print(fast.report)
        return Contender("wherever", lambda: fast(x), _array)

    def compiled() -> Contender:
        import torch._inductor.config as settings

        settings.freezing = True
        fast = torch.compile(copy.deepcopy(model).to(memory_format=last))
        given = x.contiguous(memory_format=last)
        return Contender("torch.compile", lambda: fast(given), _array)

    yield ours()
    yield Contender("PyTorch", lambda: model(x), _array)
    if last is not torch.contiguous_format:
        turned, given = copy.deepcopy(model).to(memory_format=last), x.contiguous(memory_format=last)
        yield Contender("PyTorch channels_last", lambda: turned(given), _array)
    with tempfile.TemporaryDirectory() as folder:
        peers = {
            "torch.compile": compiled,
            "ONNX Runtime": lambda: _onnx_runtime(model, x, threads, Path(folder)),
            "OpenVINO": lambda: _openvino(model, x, threads),
            "ncnn": lambda: _ncnn(model, x, threads, Path(folder)),
        }
        for peer, make in peers.items():
            if peer not in wanted:
                continue
            try:
                yield make()
            except Exception as error:  # what a library cannot convert it says in errors of its own
                lines = str(error).splitlines()
                yield f"{peer}: {type(error).__name__} {lines[0][:100] if lines else ''}".rstrip()


def _last_format(x: Any) -> Any:
    import torch

    return {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.ndim, torch.contiguous_format)


def _array(result: Any) -> Any:
    return result.detach().numpy()


def _openvino(model: Any, x: Any, threads: int) -> Contender:
    openvino = importlib.import_module("openvino")
    options = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    converted = openvino.convert_model(model, example_input=x)
    request = openvino.Core().compile_model(converted, "CPU", options).create_infer_request()
    given = x.numpy()
    return Contender("OpenVINO", lambda: request.infer([given]), lambda y: next(iter(y.values())))


def _onnx_runtime(model: Any, x: Any, threads: int, folder: Path) -> Contender:
    import torch

    runtime = importlib.import_module("onnxruntime")
    path = str(folder / "model.onnx")
    torch.onnx.export(model, (x,), path, dynamo=False, opset_version=17)
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: x.numpy()}
    return Contender("ONNX Runtime", lambda: session.run(None, feed), lambda y: y[0])


def _ncnn(model: Any, x: Any, threads: int, folder: Path) -> Contender:
    import numpy as np
    import torch

    ncnn, pnnx = importlib.import_module("ncnn"), importlib.import_module("pnnx")
    path = str(folder / "model.pt")
    torch.jit.trace(model, (x,)).save(path)
    sizes = "[" + ",".join(map(str, x.shape)) + "]f32"
    # Its converter as a program: called from Python it imports what it wrote, which is no Python for these names.
    command = [pnnx.EXEC_PATH, path, f"inputshape={sizes}", "fp16=0"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    net = ncnn.Net()
    net.opt.num_threads = threads
    for narrow in ("use_fp16_storage", "use_fp16_packed", "use_fp16_arithmetic", "use_bf16_storage"):
        setattr(net.opt, narrow, False)
    net.load_param(str(folder / "model.ncnn.param"))
    net.load_model(str(folder / "model.ncnn.bin"))
    given = ncnn.Mat(x[0].numpy()).clone()  # without a copy of its own it looks at memory that NumPy may give back

    def run() -> Any:
        extractor = net.create_extractor()
        extractor.input("in0", given)
        return extractor.extract("out0")[1]

    return Contender("ncnn", run, lambda y: np.array(y)[None])


# Training: one step, from a batch to changed weights.

STEPS = {"ResNet-18, 16 of 32x32": ("ResNet-18", (16, 3, 32, 32)), "detector 256": ("detector 1024", (1, 3, 256, 256))}


def training(name: str, threads: int) -> Iterator[Contender]:
    """A step of ours, and of PyTorch in both memory layouts; the result is the loss."""
    import torch
    from architectures import network

    from wherever.torch import replace

    torch.set_num_threads(threads)
    which, shape = STEPS[name]
    formats = {"PyTorch": torch.contiguous_format, "PyTorch channels_last": torch.channels_last}
    for who, form in {"wherever": torch.channels_last, **formats}.items():
        torch.manual_seed(0)
        model = network(which)[0].train().to(memory_format=form)
        x = torch.randn(shape).contiguous(memory_format=form)
        with torch.no_grad():
            wanted = torch.randn_like(model(x))
        if who == "wherever":
            model = replace(model)
        steps = torch.optim.SGD(model.parameters(), lr=1e-4)

        def run(model: Any = model, x: Any = x, wanted: Any = wanted, steps: Any = steps) -> Any:
            steps.zero_grad()
            loss = torch.nn.functional.mse_loss(model(x), wanted)
            loss.backward()
            steps.step()
            return loss

        yield Contender(who, run, _array)


# How it is measured and shown.


def measure(found: Iterator[Contender | str], rounds: int) -> tuple[dict[str, float], list[str]]:
    """Median seconds of each, in turns; and who is left out, with the reason."""
    import numpy as np

    running: list[Contender] = []
    notes: list[str] = []
    truth: Any = None
    for contender in found:
        if isinstance(contender, str):
            notes.append(contender)
            continue
        try:
            result = np.array(contender.array(contender.run()))
        except Exception as error:  # compilers run when they are first called
            notes.append(f"{contender.name}: {type(error).__name__}")
            continue
        if truth is None:
            truth = result
        error = float(np.abs(result - truth).max() / np.abs(truth).max())
        if not error < _CLOSE:
            notes.append(f"{contender.name}: differs from ours by {error:.1e} of the largest result")
            continue
        running.append(contender)
    times: dict[str, list[float]] = {contender.name: [] for contender in running}
    for turn in range(rounds + 1):
        for contender in running:
            start = time.perf_counter()
            contender.run()
            if turn:
                times[contender.name].append(time.perf_counter() - start)
    return {name: statistics.median(each) for name, each in times.items()}, notes


HEADER = ["network", "ours, ms", "best peer, ms", "which", "ratio", "target", "all, ms"]


def line(name: str, times: dict[str, float], target: float) -> list[str]:
    """A row of the table."""
    peer = min((who for who in times if who != "wherever"), key=times.__getitem__)
    every = ", ".join(f"{who} {seconds * 1e3:.3g}" for who, seconds in sorted(times.items(), key=lambda p: p[1]))
    ratio = times[peer] / times["wherever"]
    numbers = [f"{times['wherever'] * 1e3:.3g}", f"{times[peer] * 1e3:.3g}", peer, f"{ratio:.2f}", f"{target:g}"]
    return [name, *numbers, every]


def resident(name: str, who: str, threads: int) -> float:
    """MiB that a contender holds after a few calls, beyond PyTorch and its imports."""
    command = [sys.executable, __file__, "--only", name, "--alone", who, "--threads", str(threads), "--peers", who]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    return float(lines[-1]) if done.returncode == 0 and lines else math.nan


def alone(name: str, who: str, threads: int) -> int:
    """Run one contender and print what it holds."""
    import gc

    import torch
    from architectures import network

    def now() -> float:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    with torch.inference_mode():
        model, x = network(name)
        model(x)  # whatever PyTorch itself keeps
        del model, x
        gc.collect()
        before = now()
        for contender in inference(name, threads, [who], report=False):
            if isinstance(contender, Contender) and contender.name == who:
                for _ in range(3):
                    contender.run()
                gc.collect()
                print(now() - before)
                return 0
    return 1


def main() -> int:
    """Measure, print, and write what was asked for."""
    options = parsed()
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):  # read at import
        os.environ[variable] = str(options.threads)
    if options.alone:
        return alone(options.only, options.alone, options.threads)
    import torch
    from peers import versions
    from report import machine, markdown

    words = [word for word in options.only.lower().split(";") if word]
    targets = dict.fromkeys(STEPS, TRAINING_TARGET) if options.training else TARGETS
    names = [name for name in targets if not words or any(word in name.lower() for word in words)]
    present = {name: importlib.util.find_spec(name) for name in ("onnxruntime", "openvino", "ncnn")}
    introduction = [
        f"{machine()}; {options.threads} thread(s), float32; medians of {options.rounds}, in turns.",
        ", ".join(f"{name} {version}" for name, version in versions().items()) + ".",
        "Also here: " + (", ".join(name for name, spec in present.items() if spec) or "no other peer") + ".",
    ]
    print("\n".join(introduction), "", markdown(HEADER, []), sep="\n", end="")
    rows, notes, wanted = [], [], options.peers.split(";")
    for name in names:
        if options.memory:
            held = {who: resident(name, who, options.threads) for who in ("wherever", "PyTorch", "OpenVINO")}
            print(f"{name}: " + ", ".join(f"{who} {mib:.0f} MiB" for who, mib in held.items()), flush=True)
            continue
        with torch.enable_grad() if options.training else torch.inference_mode():
            found = (
                training(name, options.threads)
                if options.training
                else inference(name, options.threads, wanted, report=options.report)
            )
            times, missing = measure(found, options.rounds)
        notes += [f"{name}: {text}." for text in missing]
        if "wherever" in times and len(times) > 1:
            rows.append(line(name, times, targets[name]))
            print("| " + " | ".join(rows[-1]) + " |", flush=True)
    print("", *notes, sep="\n")
    if options.markdown:
        table = markdown(HEADER, rows)
        options.markdown.write_text("\n".join([*introduction, "", table, *notes]) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
