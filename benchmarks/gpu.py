"""Where sparse wins on a GPU: builds, tests and measures in at most eight minutes. `python benchmarks/gpu.py`

Needs torch with CUDA, Triton, and what filigree requires; to build the kernels also pip, scikit-build-core, nanobind,
CMake and ninja. Nothing is fetched. The most telling cells come first, and the record is written after each, so that a
run that is cut leaves what it has. `--rehearse` runs all of it at tiny sizes on the CPU, in Triton's interpreter.
`--table RECORD` prints the tables of a record.
"""

import argparse
import contextlib
import datetime
import gc
import itertools
import json
import os
import runpy
import signal
import subprocess
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PRODUCTS = ("training step", "forward", "input gradient", "weight gradient")
BUILDING = 180  # seconds at most
RESERVE = 15  # seconds for the last record and tables


def full_plan() -> list[dict]:
    """The cells, the most telling first: 4096 wide, structured layers, tiles, then 16384 wide."""
    sparsities, batches = (0.95, 0.99, 0.9, 0.98, 0.995), (128, 2048, 1)
    narrow, wide = (
        [{"kind": "sparse", "width": w, "sparsity": s, "batch": b} for s in sparsities for b in batches]
        for w in (4096, 16384)
    )
    structured = [{"kind": "structured", "width": w, "batch": b} for w in (4096, 16384) for b in batches]
    tiles = [{"kind": "tiles", "width": 4096, "sparsity": 0.95, "batch": b} for b in batches]
    return narrow + structured + tiles + wide


def rehearsed_plan() -> list[dict]:
    sparse = {"kind": "sparse", "width": 4, "sparsity": 0.5, "batch": 3}
    return [sparse, {"kind": "structured", "width": 8, "batch": 2}, {**sparse, "kind": "tiles", "batch": 1}]


# -- building ---------------------------------------------------------------------------------------------------------


def load_filigree() -> str:
    """Import the library: the one that is installed, else one built from this tree, else without compiled kernels."""
    with contextlib.suppress(ImportError):
        import filigree  # noqa: F401

        return "installed"
    target = ROOT / "build" / "gpu"
    options = ["--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--upgrade", "--target", str(target)]
    command = [sys.executable, "-m", "pip", "install", *options, str(ROOT)]
    pip = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        _, errors = pip.communicate(timeout=BUILDING)
        problem = errors.strip()[-500:] if pip.returncode else ""
    except subprocess.TimeoutExpired:
        os.killpg(pip.pid, signal.SIGTERM)  # ninja then ends its compilers
        pip.wait()
        problem = f"the build took more than {BUILDING} s"
    if not problem:
        sys.path.insert(0, str(target))
        return "built"
    print(f"The compiled kernels could not be built: {problem}")
    sys.path.insert(0, str(ROOT / "src"))
    sys.modules["filigree.ops._kernels"] = AbsentKernels("filigree.ops._kernels")
    return f"absent: {problem}"


class AbsentKernels(types.ModuleType):
    """In place of the compiled kernels, which CUDA tensors do not need: whoever calls one is told."""

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)

        def absent(*_: object) -> None:
            raise NotImplementedError(f"the compiled kernels, {name} among them, were not built")

        return absent


# -- measuring --------------------------------------------------------------------------------------------------------


def rows_of(cells: list[dict], device: str, seconds: float) -> Iterator[tuple[dict, list[dict]]]:
    """Each cell with its rows; what cells of one matrix share is made once."""
    import gpu_contestants as contestants
    import torch

    shared, key = None, None
    for cell in cells:
        if (new := {name: value for name, value in cell.items() if name != "batch"}) != key:
            shared, key = None, new  # the old one goes before the new one comes
            gc.collect()
            torch.cuda.empty_cache()
        try:
            if shared is None:
                structured = cell["kind"] == "structured"
                shared = contestants.StructuredCell(cell["width"], device) if structured else contestants.SparseCell(
                    cell["width"], cell["sparsity"], device
                )  # fmt: skip
            if cell["kind"] == "tiles":
                rows = tile_rows(shared, cell["batch"], device, seconds)
            else:
                rows = [
                    {"product": product, **row}
                    for product, of_product in shared.contestants(cell["batch"]).items()
                    for row in contestants.measured(of_product, seconds, device)
                ]
        except RuntimeError as problem:  # memory, most likely
            rows = [{"product": "all", "contestant": "all", "failed": str(problem)[:200]}]
        yield cell, rows


def tile_rows(shared: object, batch: int, device: str, seconds: float) -> list[dict]:
    """Forward and weight gradient with other tiles than `gpu.tile` chooses."""
    import gpu_contestants as contestants

    from filigree.ops import gpu

    chosen, rows = gpu.tile, []
    tiles = [(128, 1, 1), (64, 1, 2), (128, 1, 4), (256, 1, 4)] if batch == 1 else [
        (8, 128, 2), (16, 128, 4), (32, 128, 4), (32, 128, 8), (32, 64, 4), (8, 256, 4), (16, 256, 8)
    ]  # fmt: skip
    try:
        for tile in tiles if device == "cuda" else tiles[:1]:
            gpu.tile = lambda batch, tile=tile: gpu.Tile(*tile)
            products = shared.contestants(batch)
            for product in ("forward", "weight gradient"):
                ours = [one for one in products[product] if one.name.startswith("sparse")]
                measured = contestants.measured(ours, seconds, device)
                rows += [{"product": product, "tile": list(tile), **row} for row in measured]
    finally:
        gpu.tile = chosen
    return rows


# -- tables -----------------------------------------------------------------------------------------------------------


def tables(record: dict) -> str:
    """Markdown: milliseconds call by call, and in brackets as a CUDA graph; the fastest of a line is bold."""
    parts = []
    for kind, product in itertools.product(("sparse", "structured"), PRODUCTS):
        rows = [row for row in record["rows"] if (row["kind"], row["product"]) == (kind, product)]
        names = list(dict.fromkeys(row["contestant"] for row in rows))
        lines: dict[tuple, dict[str, dict]] = {}
        for row in rows:
            lines.setdefault((row["width"], row["batch"], row.get("sparsity", 0)), {})[row["contestant"]] = row
        if names:
            parts.append(f"| {product} | batch | sparsity | {' | '.join(names)} |\n|{'---|' * (len(names) + 3)}")
        for (width, batch, sparsity), of_line in sorted(lines.items()):
            best = min((row["ms"] for row in of_line.values() if "ms" in row), default=0.0)
            cells = [_cell(of_line.get(name), best) for name in names]
            parts[-1] += f"\n| {width} | {batch} | {f'{sparsity:.1%}' if sparsity else ''} | {' | '.join(cells)} |"
    return "\n\n".join(parts)


def _cell(row: dict | None, best: float) -> str:
    if row is None:
        return ""
    if "ms" not in row:
        return "failed"
    text = f"{row['ms']:.3g}" + (f" ({row['graph_ms']:.3g})" if "graph_ms" in row else "")
    return f"**{text}**" if row["ms"] == best else text


# -- the run ----------------------------------------------------------------------------------------------------------


def machine(device: str) -> dict:
    import torch

    if device == "cpu":
        return {"gpu": None}
    properties = torch.cuda.get_device_properties(0)
    return {
        "gpu": properties.name, "multiprocessors": properties.multi_processor_count, "cuda": torch.version.cuda,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "level2_mib": getattr(properties, "L2_cache_size", 0) / 2**20,
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0, help="nothing is begun that may not end within these")
    parser.add_argument(
        "--record", type=Path, help="where the record goes; by default benchmarks/results/gpu-NAME.json"
    )
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes on the CPU, in Triton's interpreter")
    parser.add_argument("--table", type=Path, help="print the tables of this record, and do nothing else")
    arguments = parser.parse_args()
    if arguments.table:
        print(tables(json.loads(arguments.table.read_text())))
        return 0
    began = time.monotonic()
    if arguments.rehearse:
        os.environ["TRITON_INTERPRET"] = "1"  # read as Triton is imported
    kernels = load_filigree()

    import torch
    import triton

    from filigree.io.storage import write_json
    from filigree.train import Record

    if not arguments.rehearse and not torch.cuda.is_available():
        sys.exit("gpu.py: there is no CUDA device. `--rehearse` runs on the CPU.")
    device = "cpu" if arguments.rehearse else "cuda"
    seconds, plan = (0.0, rehearsed_plan()) if arguments.rehearse else (0.05, full_plan())
    run = Record.start()
    where = run.machine | machine(device)
    path = arguments.record or ROOT / "benchmarks" / "results" / f"gpu-{_slug(where['gpu'] or 'rehearsal')}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "suite": "gpu", "date": str(datetime.date.today()), "commit": run.commit, "dirty": run.dirty,
        "machine": where, "versions": run.versions | {"triton": triton.__version__}, "kernels": kernels,
        "rehearsal": arguments.rehearse, "minutes": arguments.minutes, "tests": None, "rows": [], "left_out": plan,
        "seconds": {"building": time.monotonic() - began},
    }  # fmt: skip

    def save(stage: str) -> None:
        record["seconds"][stage] = round(time.monotonic() - began - sum(record["seconds"].values()), 2)
        write_json(path, record)

    torch.manual_seed(0)
    if not arguments.rehearse:  # the suite tests the interpreter by itself
        try:
            runpy.run_path(str(ROOT / "tests" / "ops" / "gpu_kernels.py"))["check"](device)
            record["tests"] = "passed"
        except Exception as problem:  # measured results are checked again, each by itself
            record["tests"] = f"failed: {type(problem).__name__}: {problem}"[:1000]
        print(f"tests {record['tests']}")
    save("tests")
    longest = 0.0
    left, last = arguments.minutes * 60 - RESERVE, time.monotonic()
    for cell, rows in rows_of(plan, device, seconds):
        record["rows"] += [{**cell, **row} for row in rows]
        record["left_out"] = plan[plan.index(cell) + 1 :]
        longest, last = max(longest, time.monotonic() - last), time.monotonic()
        save(" ".join(str(value) for value in cell.values()))
        print(f"{last - began:6.1f} s  {cell}", flush=True)
        if last - began + longest > left:
            break
    print(tables(record))
    for cell in record["left_out"]:
        print(f"left out, for lack of time: {cell}")
    print(path)
    unsound = [row for row in record["rows"] if "failed" in row and row["contestant"] != "cuSPARSE"]
    for row in unsound:
        print(f"failed: {row}")
    return int(bool(unsound) or "failed" in (record["tests"] or ""))


def _slug(text: str) -> str:
    return "-".join(text.lower().split())


if __name__ == "__main__":
    sys.exit(main())
