"""Time and memory of one update of a redundancy average, by number of channels and size of the map.

    python benchmarks/accumulation_kernel.py [--json] [--memory-limit GIB] [--device cuda] [--stride 1 4]

Each case runs in its own process, forked from one with all imports. Its extra memory is the growth of the process's
peak (on a GPU, of torch's allocated memory) beyond features and accumulators: at most one chunk
(`sirfp.redundancy.sobel.CHUNK_BYTES`) and the buffers of the matrix product. Cases whose features and matrix exceed
the limit are skipped. Times are medians of repeats; repeats end after a few seconds.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import resource
import statistics
import time

import torch

from sirfp.redundancy import RedundancyAverage
from sirfp.redundancy.sobel import CHUNK_BYTES

CHANNELS = (64, 256, 1024, 2048, 4096)
ENOUGH = 4.0  # seconds after which a case is not repeated again
SIZES = ((16, 32), (32, 64), (64, 128), (128, 256), (256, 512))


def peak(device: str) -> int:
    """Peak memory in bytes."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(case: dict, answers: multiprocessing.Queue) -> None:
    torch.set_num_threads(case["threads"])
    device, channels = case["device"], case["channels"]
    # A small first call loads the libraries.
    RedundancyAverage().update(torch.rand(1, 256, 4, 4, device=device))
    average = RedundancyAverage(stride=case["stride"])
    features = torch.zeros(case["images"], channels, *case["size"], dtype=torch.bfloat16, device=device).uniform_(-1, 1)
    if case["channels_last"]:
        features = features.contiguous(memory_format=torch.channels_last)
    average.update(torch.ones(1, channels, 1, 1, device=device))  # allocates the accumulators
    average._sums["matrix"].fill_(0)  # and touches their pages
    before = peak(device)
    times = []
    for _ in range(case["repeats"]):
        start = time.perf_counter()
        average.update(features)
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
        if sum(times) > ENOUGH:
            break
    answers.put({**case, "seconds": statistics.median(times), "extra_bytes": peak(device) - before})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--memory-limit", type=float, default=4.0, help="GiB of features and matrix (default 4)")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--stride", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    fixed = {name: getattr(args, name) for name in ("device", "images", "channels_last", "threads", "repeats")}

    context = multiprocessing.get_context("forkserver")
    rows, skipped = [], []
    if not args.json:
        print(f"{'channels':>8} {'map':>9} {'stride':>6} {'time':>10} {'extra memory':>13}")
    for channels in CHANNELS:
        for size in SIZES:
            needs = 2 * args.images * channels * size[0] * size[1] + 4 * channels**2
            if needs > args.memory_limit * 2**30:
                skipped.append({"channels": channels, "size": size, "bytes": needs})
                continue
            for stride in args.stride:
                answers = context.Queue()
                case = {"channels": channels, "size": size, "stride": stride, **fixed}
                process = context.Process(target=measure, args=(case, answers))
                process.start()
                row = answers.get(timeout=600)
                process.join()
                rows.append(row)
                if not args.json:
                    print(
                        f"{channels:>8} {size[0]:>3} x {size[1]:>3} {stride:>6} {row['seconds'] * 1e3:>7.1f} ms "
                        f"{row['extra_bytes'] / 2**20:>9.0f} MiB"
                    )
    name = torch.cuda.get_device_name() if args.device == "cuda" else platform.machine()
    machine = {"device": name, "cores": os.cpu_count(), "threads": args.threads, "torch": torch.__version__}
    if args.json:
        result = {"chunk_bytes": CHUNK_BYTES, "rows": rows, "skipped": skipped, "machine": machine}
        print(json.dumps(result, indent=2))
    else:
        print(f"a chunk: {CHUNK_BYTES / 2**20:.0f} MiB; skipped above {args.memory_limit} GiB: {len(skipped)}")
        print(", ".join(f"{key} {value}" for key, value in machine.items()))


if __name__ == "__main__":
    main()
