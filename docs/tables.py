"""The tables that come from records: `python docs/tables.py` writes them into README.md and docs/.

A block begins with `<!-- table: NAME -->` and ends with `<!-- end -->`; a test checks that they are current.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
OPTIMIZED_ON = "amd-epyc-avx512"  # the processor of the records of `optimize_`, with VNNI
_WITH_TABLES = (
    "comparison", "export", "inference", "integrations", "microcontroller", "one-shot", "performance", "pruning",
    "several-machines", "shrink", "transformers",
)  # fmt: skip
PAGES = ("README.md", *(f"docs/{page}.md" for page in _WITH_TABLES))
SETS = {
    "digits": "digits", "fashion-mnist": "Fashion-MNIST", "cifar-10": "CIFAR-10", "orl": "ORL",
    "prostate-ge": "Prostate-GE", "glioma": "GLIOMA", "tox-171": "TOX-171",
}  # fmt: skip

TEXTS = "shakespeare", "shakespeare-180", "ptb"  # records of benchmarks/gpt_quality.py


def comparisons() -> dict[str, Any]:
    """The recorded comparisons by data set."""
    files = {name: ROOT / "papers" / "results" / f"compare-{name}.json" for name in SETS}
    return {name: json.loads(file.read_text()) for name, file in files.items() if file.is_file()}


def accuracies() -> str:
    """Test accuracy of each method on each data set, in bold where the interval of the difference to dense omits 0."""
    records = comparisons()
    methods = list(dict.fromkeys(row["method"] for record in records.values() for row in record["rows"]))
    lines = [_line("", *(SETS[name] for name in records)), "|---|" + "---|" * len(records)]
    for method in methods:
        rows = [next((r for r in record["rows"] if r["method"] == method), None) for record in records.values()]
        lines.append(_line(method, *("" if row is None else _accuracy(row) for row in rows)))
    return "\n".join(lines)


def _accuracy(row: dict[str, Any]) -> str:
    text = f"{100 * row['accuracy']:.1f}" + ("" if row["interval"] is None else f" ± {100 * row['interval']:.1f}")
    against = row["against_dense"]
    return f"**{text}**" if against and (against[1] > 0 or against[2] < 0) else text


def costs(name: str) -> str:
    """What each method costs on one data set, as ratios to dense."""
    record = comparisons().get(name)
    if record is None:
        return ""
    shown = {"parameters": "parameters", "bytes_disk": "bytes on disk", "train_seconds": "training time",
             "single_ms": "one sample", "batch_ms": "a batch"}  # fmt: skip
    lines = [_line("", "accuracy %", *shown.values()), "|---|" + "---|" * (len(shown) + 1)]
    for row in record["rows"]:
        ratios = [row["ratios"][key] for key in shown]
        lines.append(_line(row["method"], _accuracy(row), *("-" if r is None else f"{r:.2g}" for r in ratios)))
    return "\n".join(lines)


SPEEDS = [  # what is measured, the suite whose record holds it, how to find the row
    ("784-1000-1000-1000-10", "training_step", {"network": "3 x 1000", "contestant": "filigree"}),
    ("784-4000-1000-4000-10", "training_step", {"network": "4000-1000-4000", "contestant": "filigree"}),
    ("784-4000-4000-4000-4000-10", "training_step", {"network": "4 x 4000", "contestant": "filigree"}),
    ("GPT of 40 million parameters, attention 70% and feed-forward 90% sparse, 8 x 128 tokens", "gpt",
     {"contestant": "filigree"}),
    ("the same, 95% of all linear layers but the head", "gpt", {"sparse": "95%", "contestant": "filigree"}),
    ("3x3 convolution, 64 channels at 32 x 32, 95% sparse, batch 64", "conv",
     {"channels": 64, "batch": 64, "contestant": "filigree"}),
    ("residual network, 3x3 convolutions 95% sparse, batch 64", "conv",
     {"network": "resnet 64-128-256", "batch": 64, "contestant": "filigree"}),
    ("ACDC layer of 4096 units", "structured", {"n": 4096, "layer": "ACDC"}),
    ("adaptive Fastfood layer of 4096 units", "structured", {"n": 4096, "layer": "Fastfood"}),
    ("backward pass of 1024 -> 1024, top-k 40", "asymmetric", {"layer": "1024 -> 1024", "what": "top-k"}),
    ("the same, one choice for the whole batch (unified)", "asymmetric",
     {"layer": "1024 -> 1024", "what": "unified top-k"}),
    ("noisy LSTM, 50 steps of 64 x 256, against torch's plain one", "noise",
     {"network": "LSTM", "hidden": 256, "gates": "NAH"}),
    ("noisy GRU, the same", "noise", {"network": "GRU", "hidden": 256, "gates": "NAH"}),
    ("ternary layer of 4096 x 4096, 12% of the weights, one sample", "sampling", {"n": 4096, "batch": 1}),
    ("the same, 128 samples", "sampling", {"n": 4096, "batch": 128}),
]  # fmt: skip


def speeds(rows: list[tuple[str, str, dict[str, Any]]] = SPEEDS) -> str:
    """Milliseconds of dense torch and of filigree in one run, their ratio, and the ratio to the best peer if any.

    The last two columns are the same ratios with the kernels of AVX2, where there is a record of them.
    """
    heads = "", "dense torch", "filigree", "times dense", "times the best peer", "AVX2: times dense", "the best peer"
    lines = [_line(*heads), "|---" * len(heads) + "|"]
    for what, suite, key in rows:
        speed_by_isa = {isa: _speed(suite, isa, key) for isa in ("avx512", "avx2")}
        if speed_by_isa["avx512"] is None:
            continue
        row, times, peer = speed_by_isa["avx512"]
        _, times_avx2, peer_avx2 = speed_by_isa["avx2"] or (None, None, None)
        shown = _ms(times), _ms(peer), _ms(times_avx2), _ms(peer_avx2)
        lines.append(_line(what, f"{_ms(row['ms'] * times)} ms", f"{_ms(row['ms'])} ms", *shown))
    return "\n".join(lines)


def shares() -> str:
    """Our kernels as shares of plain intrinsics and of the bound of a stream, with AVX-512 and with AVX2."""
    rows = {isa: _kernels(isa) for isa in ("avx512", "avx2")}
    heads = "", "AVX-512: of the reference", "of the bound", "AVX2: of the reference", "of the bound"
    lines = [_line(*heads), "|---" * len(heads) + "|"]
    for what in dict.fromkeys(what for by_product in rows.values() for what in by_product):
        cells = [rows[isa].get(what, {}).get(f"share_of_{of}") for isa in rows for of in ("reference", "bound")]
        lines.append(_line(what, *("" if share is None else f"{share:.2f}" for share in cells)))
    return "\n".join(lines)


def _kernels(isa: str) -> dict[str, dict[str, Any]]:
    """The shares in the record of the kernels, by what was measured."""
    file = ROOT / "benchmarks" / "results" / f"kernels-amd-epyc-{isa}.json"
    by_product: dict[str, dict[str, Any]] = {}
    for row in json.loads(file.read_text())["rows"] if file.is_file() else []:
        if "goal" in row and "network" not in row:
            if "chosen" in row:
                what = f"{row['chosen']} rows of {row['width']}"
            else:
                what = row.get("convolution") or row.get("layer") or f"{row['width']} units"
            by_product.setdefault(f"{what}, {row['kernel']}", {}).update(row)
    return by_product


def _speed(suite: str, isa: str, key: dict[str, Any]) -> tuple[dict[str, Any], float, float | None] | None:
    """The row of a record, dense torch's time over ours, and the best peer's; None where there is no record."""
    file = ROOT / "benchmarks" / "results" / f"{suite}-amd-epyc-{isa}.json"
    records = json.loads(file.read_text())["rows"] if file.is_file() else []
    row = next((r for r in records if key.items() <= r.items()), None)
    if row is None:
        return None
    times = row["times_dense"] if "times_dense" in row else 1 / row["times_torch"]
    peers = [r for r in records if r.get("contestant") == "SparseProp" and _setting(r) == _setting(row)]
    return row, times, row.get("times_best_peer") or (peers[0]["ms"] / row["ms"] if peers else None)


def genes() -> str:
    """scikit-learn's estimators beside `SparseMLPClassifier`, on the same folds."""
    files = [ROOT / "benchmarks" / "results" / f"sklearn_{of}-amd-epyc-avx512.json" for of in ("genes", "tables")]
    rows = [row for file in files for row in json.loads(file.read_text())["rows"]]
    lines = [_line("data", "estimator", "folds", "accuracy", "ours more accurate by", "its time / ours (quartiles)")]
    lines.append("|---|---|---|---|---|---|")
    for row in rows:
        by, times = "", "1"
        if "times_ours" in row:
            low, high = (100 * bound for bound in row["interval"])
            by = f"{100 * row['ours_more_accurate_by']:+.1f} ({low:+.1f} to {high:+.1f})"
            ratios = row["times_ours"], *row["times_ours_quartiles"]
            middle, low, high = (f"{ratio:.1f}" if ratio >= 1 else f"{ratio:.2g}" for ratio in ratios)
            times = f"{middle} ({low} - {high})"
        accuracy = f"{100 * row['accuracy']:.1f}%"
        lines.append(_line(row["data"], row["contestant"], str(row["folds"]), accuracy, by, times))
    return "\n".join(lines)


def _setting(row: dict[str, Any]) -> dict[str, Any]:
    """What two contestants of one comparison share."""
    return {key: row.get(key) for key in ("network", "channels", "side", "batch")}


def _ms(number: float | None) -> str:
    return "" if number is None else f"{number:.2g}" if number < 100 else f"{number:.0f}"


def _line(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def crossovers() -> str:
    """A transformer's layers by rows of the batch: times dense at 90% and 70%, and from where on sparse is faster."""
    heads = "layer", "rows", "90% sparse: times dense", "70%: times dense", "faster than dense from"
    lines = [_line(*heads, "AVX2: 90%", "70%", "from"), "|---" * 8 + "|"]
    records = {
        isa: json.loads(file.read_text())["rows"]
        for isa in ("avx512", "avx2")
        if (file := ROOT / "benchmarks" / "results" / f"wide_batches-amd-epyc-{isa}.json").is_file()
    }
    for layer, rows in dict.fromkeys((r["layer"], r["rows"]) for r in records.get("avx512", [])):
        cells: list[str] = []
        for isa in ("avx512", "avx2"):
            mine = [r for r in records.get(isa, []) if (r["layer"], r["rows"]) == (layer, rows)]
            times = [next((_ms(r["times_dense"]) for r in mine if r.get("sparsity") == s), "") for s in (0.9, 0.7)]
            crossing = next((r["crossover"] for r in mine if "crossover" in r), "")
            cells += [*times, "below 50%" if crossing == "below 0.5" else f"{crossing:.0%}" if crossing else ""]
        lines.append(_line(layer, str(rows), *cells))
    return "\n".join(lines)


ONE_SHOT = "network", "method", "sparsity", "bits"


def one_shot(bits: bool = False) -> str:
    """Error of the outputs and decisions kept, by network and method, at each sparsity or number of bits."""
    rows = [row for row in newest_rows("one_shot", ONE_SHOT) if ("bits" in row) == bits]
    settings = list(dict.fromkeys(_one_shot_setting(row) for row in rows))
    lines = [_line("network", "method", *settings), "|---" * (len(settings) + 2) + "|"]
    named, networks = "", list(dict.fromkeys(row["network"] for row in rows))
    tried = dict.fromkeys((row["network"], row["method"]) for row in rows)
    for network, method in sorted(tried, key=lambda each: networks.index(each[0])):
        mine = [row for row in rows if (row["network"], row["method"]) == (network, method)]
        shown = {_one_shot_setting(row): f"{row['error']:.2f}, {100 * row['agree']:.1f}%" for row in mine}
        lines.append(_line("" if network == named else network, method, *(shown.get(each, "") for each in settings)))
        named = network
    return "\n".join(lines)


def _one_shot_setting(row: dict[str, Any]) -> str:
    gone = f"{row['sparsity']:.0%} gone"
    return gone if "bits" not in row else f"{row['bits']} bits" + (f", {gone}" if row["sparsity"] else "")


def inference() -> str:
    """Networks that `optimize_` laid out, and ONNX Runtime, as times of torch's dense float32 in the same run."""
    columns = "torch", "exact", "int8", "ONNX Runtime", "its int8"
    lines = [_line("", "batch", "connections", *columns), "|---" * (3 + len(columns)) + "|"]
    cells: dict[tuple[str, int, str], dict[str, str]] = {}
    for row in _optimized():
        share, column = _contestant(row["kind"])
        cell = cells.setdefault((row["network"], row["batch"], share), {"torch": f"{_ms(row['torch_ms'])} ms"})
        if column not in cell or float(cell[column]) < row["times_torch"]:  # of two ways to int8 the better one
            cell[column] = f"{row['times_torch']:.2g}"
    lines += [_line(n, str(b), share, *(cell.get(c, "") for c in columns)) for (n, b, share), cell in cells.items()]
    return "\n".join(lines)


def _optimized() -> Iterator[dict[str, Any]]:
    """The rows of the records of `optimize_`."""
    for suite in ("optimize", "optimize_layers", "optimize_transformers"):
        file = ROOT / "benchmarks" / "results" / f"{suite}-{OPTIMIZED_ON}.json"
        yield from json.loads(file.read_text())["rows"] if file.is_file() else []


def others() -> str:
    """Convolutional networks of timm's that `optimize_` laid out, and ONNX Runtime, as times of torch."""
    lines = [_line("", "batch", "torch", "`fg.optimize_`", "ONNX Runtime"), "|---" * 5 + "|"]
    cells: dict[tuple[str, int], dict[str, str]] = {}
    for row in newest_rows("optimize_others", ("network", "batch", "kind")):
        text = f"{_ms(row['ms'])} ms" if row["kind"] == "torch" else f"{row['times_torch']:.2g}"
        cells.setdefault((row["network"], row["batch"]), {})[row["kind"]] = text
    columns = "torch", "ours", "ONNX Runtime"
    return "\n".join(
        [*lines, *(_line(n, str(b), *(cell.get(c, "") for c in columns)) for (n, b), cell in cells.items())]
    )


def _contestant(kind: str) -> tuple[str, str]:
    """Of what a row of such a record is about: how many of the connections there are, and in which column it stands."""
    if not kind.startswith("ours"):
        return "all", "its int8" if kind.endswith("int8") else kind
    share = kind.removeprefix("ours").removesuffix("int8").strip(" ,")
    return {"1.0": "all", "integers": "all, integers"}.get(share, share), "int8" if kind.endswith("int8") else "exact"


def newest_rows(suite: str, keys: tuple[str, ...] = ("network",)) -> list[dict[str, Any]]:
    """Of each network (or whatever the keys tell apart) the newest rows in the records of a suite, whatever the
    processor.
    """
    files = sorted((ROOT / "benchmarks" / "results").glob(f"{suite}-*.json"))
    tried: list[tuple[str, tuple[Any, ...], list[dict[str, Any]]]] = []  # when, what, rows
    for record in map(json.loads, map(Path.read_text, files)):
        rows: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
        for row in record["rows"]:
            rows.setdefault(tuple(row.get(key) for key in keys), []).append(row)
        tried += [(some[0].get("date", record["date"]), what, some) for what, some in rows.items()]
    newest = {what: some for _, what, some in sorted(tried, key=lambda each: each[0])}
    return [row for some in newest.values() for row in some]


def architectures() -> str:
    """Half of the hidden units and heads of usual architectures: errors on unseen data, files, seconds."""
    rows = newest_rows("architectures")
    heads = "", "subset: refitted", "not", "ratio", "magnitude: refitted", "not", "ratio"
    lines = [_line(*heads, "loads", "ONNX", "seconds"), "|---" * 10 + "|"]
    for network in dict.fromkeys(row["network"] for row in rows):
        mine = {row["method"]: row for row in rows if row["network"] == network}
        cells = []
        for row in (mine["subset"], mine.get("magnitude")):
            ratio = [] if row is None else [row["error"], row["without"], row["error"] / row["without"]]
            cells += [f"{number:.2g}" for number in ratio] or [""] * 3
        cells += ["yes" if all(row[key] for row in mine.values()) else "no" for key in ("loads", "exports")]
        lines.append(_line(network, *cells, f"{mine['subset']['seconds']:.0f}"))
    return "\n".join(lines)


def onnx_runtime() -> str:
    """What `fg.export` writes, in ONNX Runtime, as times of the dense network there, with each set of instructions."""
    folder = ROOT / "benchmarks" / "results"
    records = {
        isa: json.loads((folder / f"onnx_runtime-amd-epyc-{isa}.json").read_text()) for isa in ("avx512", "avx2")
    }
    rows: dict[tuple[str, int, str], dict[str, Any]] = {}
    for isa, record in records.items():
        for row in record["rows"]:
            rows.setdefault((row["network"], row["batch"], row["kind"]), {})[isa] = row
    heads = "", "batch", "", "AVX-512, ms", "times dense", "AVX2 alone, ms", "times dense", "bytes"
    lines = [_line(*heads), "|---" * len(heads) + "|"]
    for (network, batch, kind), by_isa in rows.items():
        cells = [
            cell
            for isa in records
            for cell in ((_ms(by_isa[isa]["ms"]), f"{by_isa[isa]['times_dense']:.2g}") if isa in by_isa else ("", ""))
        ]
        size = next(iter(by_isa.values()))["bytes"]
        lines.append(_line(network, str(batch), kind, *cells, f"{size:,}"))
    return "\n".join(lines)


def gpt_speeds() -> str:
    """A training step of a GPT on each machine that there is a record of: dense torch, ours, and sparselab."""
    heads = "processor", "kernels", "sparse", "dense torch", "filigree", "times dense", "times sparselab"
    lines = [_line(*heads), "|---" * len(heads) + "|"]
    for file in sorted((ROOT / "benchmarks" / "results").glob("gpt-*.json")):
        record = json.loads(file.read_text())
        cpu, isa = re.sub(r"\(R\)|Processor", "", record["machine"]["cpu"]).strip(), record["machine"]["isa"]
        kernels = {"avx512": "AVX-512", "avx2": "AVX2"}.get(isa, isa)
        for row in record["rows"]:
            if row["contestant"] == "filigree":
                times = _ms(row["times_dense"]), _ms(row["times_best_peer"])
                dense, ours = f"{_ms(row['ms'] * row['times_dense'])} ms", f"{_ms(row['ms'])} ms"
                sparse = row.get("sparse", "attention 70%, feed-forward 90%")
                lines.append(_line(cpu, kernels, sparse, dense, ours, *times))
    return "\n".join(lines)


def gpt_memory() -> str:
    """Peak memory of training steps of GPT-2 small's shape, and its share of dense's."""
    file = next(iter(sorted((ROOT / "benchmarks" / "results").glob("gpt_memory-*.json"))), None)
    heads = "", "parameters", "after building", "training", "of plain dense", "of dense trained alike"
    lines = [_line(*heads), "|---" * len(heads) + "|"]
    for row in json.loads(file.read_text())["rows"] if file else []:
        numbers = f"{row['parameters']:,}", f"{row['built_megabytes']:,.0f} MiB", f"{row['step_megabytes']:,.0f} MiB"
        shares = f"{row['share_of_dense']:.0%}", f"{row['share_of_dense_alike']:.0%}"
        lines.append(_line(row["contestant"], *numbers, *shares))
    return "\n".join(lines)


def gpt_first_steps() -> str:
    """Losses (means of 20 steps) and seconds a step of the first steps of GPT-2 small's shape."""
    record = json.loads((ROOT / "benchmarks" / "results" / "gpt_first_steps.json").read_text())
    ends = 50, 100, 200, 300
    lines = [_line("", *(f"loss at step {end}" for end in ends), "seconds a step (quartiles)", "all steps")]
    lines.append("|---" * (len(ends) + 3) + "|")
    for name, losses in record["losses"].items():
        seconds = record["seconds"][name]
        low, middle, high = statistics.quantiles(seconds, n=4)
        means = (f"{statistics.fmean(losses[end - 20 : end]):.2f}" for end in ends)
        lines.append(_line(name, *means, f"{middle:.2f} ({low:.2f}, {high:.2f})", f"{sum(seconds):.0f} s"))
    return "\n".join(lines)


def gpt_quality(data: str) -> str:
    """Steps in equal time of the contestants of `benchmarks/gpt_quality.py`, and their losses where they have run."""
    file = ROOT / "benchmarks" / "results" / f"gpt_quality-{data}.json"
    record = json.loads(file.read_text())
    heads = "", "ms a step (lowest, highest round)", "steps", "parameters", "learning rate", "test loss (seeds)"
    lines = [_line(*heads), "|---" * len(heads) + "|"]
    first = [row for row in record["rows"] if row["seed"] == 0]
    rates = len({row["lr"] for row in first})
    for name, rounds in record["step_seconds"].items():
        step = statistics.median(rounds)
        times = f"{1e3 * step:.0f} ({1e3 * min(rounds):.0f}, {1e3 * max(rounds):.0f})"
        rows = [row for row in record["rows"] if row["contestant"] == name]
        tried = [row for row in first if row["contestant"] == name]
        cells = "", "", ""
        if tried and len(tried) == rates:  # each at its best rate of the grid
            best = min(tried, key=lambda row: row["val_loss"])
            losses = [row["test_loss"] for row in rows if row["lr"] == best["lr"]]
            cells = f"{best['parameters']:,}", f"{best['lr']:g}", f"{statistics.mean(losses):.3f} ({len(losses)})"
        lines.append(_line(name, times, f"{int(record['settings']['budget'] / step):,}", *cells))
    return "\n".join(lines)


def shrunk() -> str:
    """Pretrained networks before and after, single methods and ONNX Runtime, from `examples/`."""
    lines = [_line("network", "batch", "", "kept", "ms", "times torch", "bytes"), "|---" * 7 + "|"]
    files = sorted((ROOT / "benchmarks" / "results").glob("shrink-*.json"))
    records = [json.loads(file.read_text()) for file in files]
    records.sort(key=lambda record: record["machine"]["isa"], reverse=True)
    named = None
    for isa, row in [(record["machine"]["isa"], row) for record in records for row in record["rows"]]:
        about = row["network"] + (", AVX2 alone" if isa == "avx2" else ""), row["batch"]
        numbers = f"{row['metric']:.3f}", _ms(row["ms"]), f"{row['times_torch']:.2g}", f"{row['bytes']:,}"
        lines.append(_line(*(("", "") if about == named else (about[0], str(about[1]))), row["kind"], *numbers))
        named = about
    return "\n".join(lines)


def flash() -> str:
    """Programs for MNIST at 16 x 16 on a Cortex-M4, by method: accuracy, flash, RAM, instructions."""
    rows = json.loads((ROOT / "benchmarks" / "results" / "flash_curve.json").read_text())["rows"]
    lines = [_line("weights", "accuracy of the program", "flash", "RAM", "instructions"), "|---|---|---|---|---|"]
    for row in sorted(rows, key=lambda row: row["kind"]):  # compressed, then trained
        numbers = f"{row['flash']:,}", f"{row['ram']:,}", f"{row['instructions'] / 1e6:.1f} million"
        lines.append(_line(row["method"], f"{row['accuracy']:.2%}", *numbers))
    return "\n".join(lines)


def sharded() -> str:
    """A layer of 10^7 inputs and outputs in one process, and its rows divided over two."""
    runs = json.loads((ROOT / "reliability" / "results" / "sharded.json").read_text())["runs"]
    headings = (
        "processes",
        "connections in each",
        "built in",
        "memory: while it is built",
        "held",
        "while it trains",
        "a step",
    )
    lines = [_line(*headings), "|---|" + "---|" * 6]
    for processes, rows in sorted(runs.items()):
        most = {key: max(row[key] for row in rows) for key in rows[0] if key != "losses"}
        gibibytes = (f"{most[key] / 1024:.1f} GiB" for key in ("built_peak_mib", "held_mib", "trained_peak_mib"))
        numbers = f"{most['connections'] / 1e6:.1f} million", f"{most['built_seconds']:.0f} s"
        lines.append(_line(processes, *numbers, *gibibytes, f"{most['step_seconds']:.1f} s"))
    return "\n".join(lines)


TABLES: dict[str, Callable[[], str]] = {
    "accuracies": accuracies,
    "architectures": architectures,
    "genes": genes,
    "crossovers": crossovers,
    "flash": flash,
    "gpt first steps": gpt_first_steps,
    "gpt memory": gpt_memory,
    **{f"gpt quality {data}": lambda data=data: gpt_quality(data) for data in TEXTS},
    "gpt speeds": gpt_speeds,
    "kernels": shares,
    "onnx runtime": onnx_runtime,
    "one-shot": one_shot,
    "one-shot bits": lambda: one_shot(bits=True),
    "inference": inference,
    "inference of others": others,
    "sharded": sharded,
    "shrink": shrunk,
    "networks": lambda: speeds(SPEEDS[:3]),
    "speeds": speeds,
    **{f"costs {name}": lambda name=name: costs(name) for name in SETS},
}


def filled(text: str) -> str:
    """The page with its tables written again from the records."""
    block = re.compile(r"(<!-- table: (.+?) -->\n).*?(<!-- end -->)", re.DOTALL)
    return block.sub(lambda m: f"{m[1]}{TABLES[m[2]]()}\n{m[3]}", text)


if __name__ == "__main__":
    for page in PAGES:
        path = ROOT / page
        path.write_text(filled(path.read_text()))
