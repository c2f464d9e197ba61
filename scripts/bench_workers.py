"""What a second worker brings: requests per second of one and of two, in turn, on all cores of this machine.

    python3 scripts/bench_workers.py [--seconds 8] [--rounds 3]

Needs Linux and `wrk` on PATH. The load and the database run on the same cores, so the ratio is a lower bound of what
two workers bring where those have cores of their own.
"""

import os
import shutil
import statistics
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import environment
from bench import WORKLOADS, load, read_options, server, stored


def main() -> None:
    environment.enter("requirements-dev.txt")
    if not shutil.which("wrk"):
        sys.exit("wrk is needed: apt-get install wrk")
    options = read_options()
    cores = ",".join(str(core) for core in sorted(os.sched_getaffinity(0)))
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="octopus-bench-")))
        targets, url = stack.enter_context(stored(folder))
        servers = [
            stack.enter_context(server(folder, "octopus", url, cores=cores, workers=workers)) for workers in (1, 2)
        ]
        print(f"{'':36}{'one/s':>9}{'two/s':>9}{'ratio':>7}", flush=True)
        for workload in WORKLOADS:
            runs: list[list[float]] = []
            for _ in range(options.rounds + 1):  # the first warms up
                rates = []
                for base in servers:
                    shown = targets[workload.credential]
                    rates.append(load(f"{base}/api/v1", workload, shown, folder, options.seconds).per_second)
                runs.append(rates)
            one, two = (statistics.median(rates[at] for rates in runs[1:]) for at in (0, 1))
            ratio = statistics.median(rates[1] / rates[0] for rates in runs[1:])
            print(f"{workload.name:36}{one:9.0f}{two:9.0f}{ratio:7.2f}", flush=True)


if __name__ == "__main__":
    main()
