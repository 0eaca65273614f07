"""The operation beside its peers: ours, PyTorch, oneDNN, SciPy, OpenCV and JAX in turns in one process.

    python benchmarks/conv.py [--only TEXT] [--seconds 60] [--threads N] [--markdown FILE] [--plot FILE.png]

Weights are prepared beforehand where a library can, ours among them, and ours is given its ``out``. Each row is the
ratio of medians to the best peer; families have a geometric mean and a lowest case, beside what they are to reach.
Pin the process (`taskset -c 0`) for steady numbers on one thread.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import time
from pathlib import Path

from cases import Case, all_cases, in_direction, in_dtype, layers


def parsed() -> argparse.Namespace:
    """The command's options."""
    parser = argparse.ArgumentParser(description="Convolutions beside their peers.")
    parser.add_argument("--only", default="", help="only cases whose family, kind or name contains one of these, a;b;c")
    parser.add_argument(
        "--problems", type=Path, help="measure the layers of this file (as problems.json) and no others"
    )
    parser.add_argument("--batch", default="1", help="images of each layer, or 'listed' for those of the file")
    parser.add_argument("--threads", type=int, default=1, help="threads of every library (default 1)")
    parser.add_argument(
        "--direction", choices=["forward", "transpose", "weight_gradient"], help="all layers in this one"
    )
    parser.add_argument("--dtype", choices=["float32", "float64"], help="all layers in this type")
    parser.add_argument(
        "--layout", choices=["channels_last", "channels_first"], default="channels_last", help="of ours"
    )
    parser.add_argument("--measure", action="store_true", help="plan ours with measure=True")
    parser.add_argument("--rounds", type=int, default=11, help="samples of each contender (default 11)")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start no case after so long: a quick look")
    parser.add_argument("--list", action="store_true", help="only list the cases")
    parser.add_argument("--details", action="store_true", help="print the time of every contender")
    parser.add_argument("--markdown", type=Path, help="write the report to this file")
    parser.add_argument("--plot", type=Path, help="draw the ratios into this PNG")
    return parser.parse_args()


def selected(options: argparse.Namespace) -> list[Case]:
    """The cases that the options ask for."""
    batch = None if options.batch == "listed" else int(options.batch)
    cases = all_cases(batch) if options.problems is None else list(layers(options.problems, batch))
    if options.direction not in (None, "forward"):
        cases = in_direction(cases, options.direction)
    if options.dtype is not None:
        cases = in_dtype(cases, options.dtype)
    words = [word for word in options.only.lower().split(";") if word]
    cases = [case for case in cases if not words or any(word in str(case).lower() for word in words)]
    if options.seconds < float("inf"):  # some of every family first
        families = [list(group) for _, group in itertools.groupby(cases, key=lambda case: case.family)]
        cases = [case for turn in itertools.zip_longest(*families) for case in turn if case is not None]
    return cases


def main() -> int:
    """Measure, print, and write what was asked for."""
    options = parsed()
    cases = selected(options)
    if options.list:
        print("\n".join(map(str, cases)))
        return 0
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):  # read when NumPy is imported
        os.environ[name] = str(options.threads)
    os.environ.pop("OPENBLAS_CORETYPE", None)  # peers may use what the processor has
    os.environ.setdefault("XLA_FLAGS", f"--xla_cpu_multi_thread_eigen={'true' if options.threads > 1 else 'false'}")
    return run(cases, options)


def run(cases: list[Case], options: argparse.Namespace) -> int:
    """Measure the cases; 1 if a peer has another result than ours anywhere."""
    # Imported here: NumPy and PyTorch read the environment when they are imported.
    import peers
    from measuring import measure
    from report import FAMILY_HEADER, HEADER, document, families, left_out, line, machine, markdown, plot

    peers.set_threads(options.threads)
    introduction = [
        f"{machine()}; {options.threads} thread(s).",
        ", ".join(f"{name} {version}" for name, version in peers.versions().items()) + ".",
        f"Weights prepared, out= given, ours {options.layout}; PyTorch in both layouts; medians of {options.rounds}.",
    ]
    print("\n".join(introduction), "", markdown(HEADER, []), sep="\n", end="")
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    start, rows, unmeasured = time.perf_counter(), [], []
    for number, case in enumerate(cases):
        if time.perf_counter() - start > options.seconds:
            unmeasured.append(f"{len(cases) - number} of {len(cases)} cases, for want of time")
            break
        if case.kind == "threads" and processors < 2:
            unmeasured.append(f"{case}: this process may use one processor only")
            continue
        row = measure(
            case, layout=options.layout, threads=options.threads, rounds=options.rounds, by_measuring=options.measure
        )
        if isinstance(row, str):
            unmeasured.append(f"{case}: {row}")
            continue
        rows.append(row)
        print("| " + " | ".join(line(row)) + " |", flush=True)
        if options.details:
            times = sorted(row.times.items(), key=lambda pair: pair[1])
            print("    " + ", ".join(f"{name} {seconds * 1e3:.3g} ms" for name, seconds in times))
    notes = [*left_out(rows), *(f"Not measured: {text}." for text in unmeasured)]
    print("", markdown(FAMILY_HEADER, [family.cells() for family in families(rows, parts=True)]), *notes, sep="\n")
    if options.markdown:
        options.markdown.write_text(document(rows, introduction), encoding="utf-8")
    if options.plot:
        plot(rows, options.plot, "wherever beside the best of its peers\n" + introduction[0])
    return int(any(row.wrong for row in rows))


if __name__ == "__main__":
    sys.exit(main())
