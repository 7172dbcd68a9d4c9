# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Measured tables and pictures of docs/results.md: `python benchmarks/update_readme.py` after what makes them.

Reads the files in benchmarks/results, writes between the markers of docs/results.md, and draws the pictures of
docs/images/ from the same rows. With `--check` nothing is written: exit code 1 when a section
is not what its file says. Nothing in those places is typed by hand.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

from hf_unlearn.report.plots import pareto
from hf_unlearn.report.tables import format_table, markdown_table, table_cells
from hf_unlearn.report.vocabulary import vocabulary_of


ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/results"
# Record: what its frontier is called in docs/images.
PICTURES = {"demo": "demo_pareto.png", "wmdp_miniature": "wmdp_pareto.png"}


def fill(text: str, name: str, content: str) -> str:
    """`text` with what stands between the markers `name` replaced."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if not pattern.search(text):
        raise SystemExit(f"docs/results.md has no markers {begin} ... {end}")
    return pattern.sub(lambda _: f"{begin}\n{content}\n{end}", text)


def read(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def demo_section() -> str:
    rows = read("demo")["rows"]
    picture = "![forget quality against what is kept](images/demo_pareto.png)"
    return f"{vocabulary_of(rows).summarise(rows)}\n\n{picture}\n\n{format_table(rows)}"


def table_section(name: str) -> str:
    record = read(name)
    rows = record["rows"]
    return f"`{record['command']}`\n\n{vocabulary_of(rows).summarise(rows)}\n\n{format_table(rows)}"


def wmdp_section() -> str:
    picture = "![domain accuracy against what is kept](images/wmdp_pareto.png)"
    return f"{table_section('wmdp_miniature')}\n\n{picture}"


def sharding_section() -> str:
    record = read("sharding")
    times = [f"{kind} {row['ratio_of_minima']:.2f}x" for kind, row in record["time"].items()]
    memory = [f"{kind} {row['peak_factor_bytes']['largest_over_share']:.2f}" for kind, row in record["memory"].items()]
    return (
        f"`{record['command']}`: a fit by two processes of one thread takes {', '.join(times)} the time of one; with "
        f"four, the fullest process holds {', '.join(memory)} times a quarter of the factors."
    )


NETWORKS = {
    "fast_ntk_digits": "ResNet-8, digits",
    "fast_ntk_cifar10_resnet20": "ResNet-20, CIFAR-10",
    "fast_ntk_cifar10_resnet32": "ResNet-32, CIFAR-10",
    "fast_ntk_cifar10_vit": "small ViT with prompts, CIFAR-10",
}


def forgetting_section() -> str:
    """One line a network, method and number of images: mean and standard deviation over seeds."""
    header, body, commands = [], [], []
    for name, network in NETWORKS.items():
        record = read(name)
        commands.append(f"`{record['command']}`")
        heads, lines = table_cells(record["rows"])
        # Time differs with the machine and stands in the record alone.
        method, size, *metrics = heads[:-1]
        header = ["network", size, method, *metrics]
        for line, (method, size, *cells) in lines:
            first = [network, size] if line.method == "Full" else ["", ""]
            body.append([*first, method, *cells[:-1]])
    return f"{', '.join(commands)}\n\n{markdown_table(header, body, 'lrl')}"


def ntk_section() -> str:
    record = read("ntk")
    found, sentences = record["summary"], []
    if "jacobian_time" in found:
        sentences.append(
            f"Per-sample Jacobians take {found['jacobian_time']:.2f}x the time and {found['jacobian_memory']:.2f}x "
            "the memory of `vmap(jacrev)` (64 images)."
        )
    if rows := record.get("scale"):
        counts = [f"{row['images']:,}" for row in rows]
        seconds = [f"{value:.1f}" for value in found["seconds_per_1000_images"]]
        memory = [f"{value:.0f}" for value in found["peak_megabytes"]]
        dual = next((row for row in rows if row["dual_kernel_bytes"] > 15e9), rows[-1])
        sentences.append(
            f"Over {', '.join(counts)} images the primal Gram takes {', '.join(seconds)} CPU seconds a thousand and "
            f"{', '.join(memory)} MB; the dual kernel of {dual['images']:,} images would have "
            f"{dual['dual_kernel_bytes'] / 1e9:.0f} GB."
        )
    if row := record.get("request"):
        first = row["first_request"]
        percent = lambda share: f"{100 * share:.1f} %"
        scores = lambda row: f"(D_r {percent(row['accuracy']['retain'])}, D_f {percent(row['accuracy']['forget'])})"
        sampled = [
            f"{some['over_retraining']:.2f}x with `retain_samples={some['retain_samples']}, "
            f"forget_contrasts={some['forget_contrasts']}` {scores(some)}"
            for some in row["sampled"]
        ]
        sentences.append(
            f"A request on {row['images']:,} images, {first['forget_rows']} of them to forget, costs "
            f"{found['request_over_retraining']:.2f}x retraining to the same accuracy "
            f"{'; '.join([scores(first), *sampled])}. The solve is {percent(found['solve_share'])} of it. A "
            f"second request on the same model costs {found['second_request_over_first']:.2f}x the first."
        )
    commands = dict.fromkeys(run["command"] for run in record["runs"].values())
    return f"{', '.join(f'`{command}`' for command in commands)}: " + " ".join(sentences)


def bench_section() -> str:
    record = read("curvature")
    header = ["random Llama, one thread", "K-FAC / kronfluence", "K-FAC / curvlinops"]
    header += ["EK-FAC correction / kronfluence", "peak memory"]
    body = []
    for case in record["cases"].values():
        ratios, size = case["ratios"], case["settings"]
        pairs = (
            "K-FAC / kronfluence covariance",
            "K-FAC / curvlinops K-FAC",
            "EK-FAC correction / kronfluence lambda",
        )
        times = [f"{ratios[f'hf_unlearn {pair}']['time_median']:.2f}x" for pair in pairs]
        peak = max(ratios[f"hf_unlearn {pair}"]["peak"] for pair in pairs)
        body.append([f"vocabulary {size['vocab_size']}", *times, f"at most {peak:.2f}x"])
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    table = markdown_table(header, body, "lllll")
    return f"Time per token of a curvature fit (`{record['command']}`; {versions}):\n\n{table}"


def conversions_section() -> str:
    record = read("conversions")
    found = record["summary"]
    built = found["as_in_memory"] + found["converted"] + found["wrong"]
    return (
        f"`{record['command']}`: of {built} classes of transformers that default configs build ({found['not_built']} "
        f"they do not), {built - found['wrong']} have every weight found on disk. {found['converted']} of these have "
        f"other names or layouts there than in memory: all of their {found['groups']:,} groups of fused or split "
        f"weights come back in their shapes, and the {found['filled']} of {found['kinds']} kinds of group below 1 GB "
        "that were filled with random bytes come back as they were."
    )


SECTIONS: dict[str, Callable[[], str]] = {
    "demo": demo_section,
    "tofu": lambda: table_section("tofu_tiny"),
    "wmdp": wmdp_section,
    "spe": lambda: table_section("spe_glue_small"),
    "bench": bench_section,
    "sharding": sharding_section,
    "ntk_bench": ntk_section,
    "ntk": forgetting_section,
    "conversions": conversions_section,
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Write the measured sections of docs/results.md.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 when a section differs")
    options = parser.parse_args(arguments)
    page = ROOT / "docs/results.md"
    text = page.read_text(encoding="utf-8")
    filled = {name: fill(text, name, section()) for name, section in SECTIONS.items()}
    stale = [name for name, changed in filled.items() if changed != text]
    if options.check:
        for name in stale:
            print(f"docs/results.md, {name}: not what benchmarks/results says; run python benchmarks/update_readme.py")
        return 1 if stale else 0
    for name in stale:
        text = fill(text, name, SECTIONS[name]())
    page.write_text(text, encoding="utf-8")
    for record, picture in PICTURES.items():
        rows = read(record)["rows"]
        pareto(rows, [], vocabulary_of(rows)).savefig(ROOT / "docs/images" / picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
