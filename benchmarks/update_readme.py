# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Put measured tables and pictures into README.md: `python benchmarks/update_readme.py` after what makes them.

Reads outputs/demo, outputs/kfade_wmdp and the files in benchmarks/results; writes between the markers of README.md and copies
pictures to docs/images/. What is not there stays as it is. Nothing in those places is typed by hand.
"""

import json
import re
import shutil
from pathlib import Path

from hf_unlearn.report.class_tables import PROBE, cell
from hf_unlearn.report.formats import MISSING
from hf_unlearn.report.page import format_table
from hf_unlearn.report.vocabulary import results_of


ROOT = Path(__file__).resolve().parents[1]


def fill(text: str, name: str, content: str) -> str:
    """`text` with what stands between the markers `name` replaced."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if not pattern.search(text):
        raise SystemExit(f"README.md has no markers {begin} ... {end}")
    return pattern.sub(lambda _: f"{begin}\n{content}\n{end}", text)


def demo_section(folder: Path) -> str:
    rows = json.loads((folder / "results.json").read_text())
    shutil.copy(folder / "pareto.png", ROOT / "docs/images/demo_pareto.png")
    return f"{results_of(rows).summarise(rows)}\n\n![forget quality against what is kept](docs/images/demo_pareto.png)\n\n{format_table(rows)}"


def table_section(path: Path) -> str:
    record = json.loads(path.read_text())
    return f"`{record['command']}`\n\n{results_of(record['rows']).summarise(record['rows'])}\n\n{format_table(record['rows'])}"


def wmdp_section(path: Path) -> str:
    shutil.copy(ROOT / "outputs/kfade_wmdp/pareto.png", ROOT / "docs/images/wmdp_pareto.png")
    return f"{table_section(path)}\n\n![domain accuracy against what is kept](docs/images/wmdp_pareto.png)"


def sharding_section(path: Path) -> str:
    record = json.loads(path.read_text())
    times = [f"{kind} {row['ratio_of_minima']:.2f}x" for kind, row in record["time"].items()]
    memory = [f"{kind} {row['peak_factor_bytes']['largest_over_share']:.2f}" for kind, row in record["memory"].items()]
    return (
        f"`{record['command']}`: a fit by two processes of one thread takes {', '.join(times)} the time of one; with four, the "
        f"fullest process holds {', '.join(memory)} times a quarter of the factors."
    )


NETWORKS = {
    "fast_ntk_digits": "ResNet-8, digits",
    "fast_ntk_cifar10_resnet20": "ResNet-20, CIFAR-10",
    "fast_ntk_cifar10_resnet32": "ResNet-32, CIFAR-10",
    "fast_ntk_cifar10_vit": "small ViT with prompts, CIFAR-10",
}


def forgetting_section(results: Path) -> str | None:
    """One line a network, method and number of images: mean and standard deviation over seeds."""
    lines = ["| network | images per class | method | D_r (%) | D_f (%) | hold-out (%) | epochs to relearn D_f |"]
    lines.append("|---|---:|---|---:|---:|---:|---:|")
    commands = []
    for name, network in NETWORKS.items():
        if not (path := results / f"{name}.json").is_file():
            continue
        record = json.loads(path.read_text())
        commands.append(f"`{record['command']}`")
        for entry in record["table"]:
            if entry["method"].startswith(PROBE):
                continue
            numbers = [cell(entry, metric) for metric in ("retain", "forget", "holdout", "relearning_epochs")]
            if entry["method"] == "Full":
                numbers[-1] = MISSING
            first = [network, str(entry["per_class"])] if entry["method"] == "Full" else ["", ""]
            lines.append(f"| {' | '.join([*first, entry['method'], *numbers])} |")
    return "\n\n".join([", ".join(commands), "\n".join(lines)]) if commands else None


def ntk_section(path: Path) -> str:
    record = json.loads(path.read_text())
    found, sentences = record["summary"], []
    if "jacobian_time" in found:
        sentences.append(
            f"Per-sample Jacobians take {found['jacobian_time']:.2f}x the time and {found['jacobian_memory']:.2f}x the memory of "
            "`vmap(jacrev)` (64 images)."
        )
    if rows := record.get("scale"):
        counts = [f"{row['images']:,}" for row in rows]
        seconds = [f"{value:.1f}" for value in found["seconds_per_1000_images"]]
        memory = [f"{value:.0f}" for value in found["peak_megabytes"]]
        dual = next((row for row in rows if row["dual_kernel_bytes"] > 15e9), rows[-1])
        sentences.append(
            f"Over {', '.join(counts)} images the primal Gram takes {', '.join(seconds)} CPU seconds a thousand and {', '.join(memory)} MB; the "
            f"dual kernel of {dual['images']:,} images would have {dual['dual_kernel_bytes'] / 1e9:.0f} GB."
        )
    if row := record.get("request"):
        first = row["first_request"]
        percent = lambda share: f"{100 * share:.1f} %"
        scores = lambda row: f"(D_r {percent(row['accuracy']['retain'])}, D_f {percent(row['accuracy']['forget'])})"
        sampled = [
            f"{some['over_retraining']:.2f}x with `retain_samples={some['retain_samples']}, forget_contrasts={some['forget_contrasts']}` {scores(some)}"
            for some in row["sampled"]
        ]
        sentences.append(
            f"A request on {row['images']:,} images, {first['forget_rows']} of them to forget, costs {found['request_over_retraining']:.2f}x retraining to the same accuracy "
            f"{'; '.join([scores(first), *sampled])}. The solve is "
            f"{percent(found['solve_share'])} of it. A second request on the same model costs {found['second_request_over_first']:.2f}x the first."
        )
    commands = dict.fromkeys(run["command"] for run in record["runs"].values())
    return f"{', '.join(f'`{command}`' for command in commands)}: " + " ".join(sentences)


def bench_section(path: Path) -> str:
    record = json.loads(path.read_text())
    lines = [
        "| random Llama, one thread | K-FAC / kronfluence | K-FAC / curvlinops | EK-FAC correction / kronfluence | peak memory |"
    ]
    lines.append("|---|---|---|---|---|")
    for case in record["cases"].values():
        ratios, size = case["ratios"], case["settings"]
        pairs = (
            "K-FAC / kronfluence covariance",
            "K-FAC / curvlinops K-FAC",
            "EK-FAC correction / kronfluence lambda",
        )
        times = [f"{ratios[f'hf_unlearn {pair}']['time_median']:.2f}x" for pair in pairs]
        peak = max(ratios[f"hf_unlearn {pair}"]["peak"] for pair in pairs)
        lines.append(f"| vocabulary {size['vocab_size']} | {' | '.join(times)} | at most {peak:.2f}x |")
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    return "\n".join([f"Time per token of a curvature fit (`{record['command']}`; {versions}):", "", *lines])


def main():
    readme, results = ROOT / "README.md", ROOT / "benchmarks/results"
    text = readme.read_text()
    if (demo := ROOT / "outputs/demo").is_dir():
        text = fill(text, "demo", demo_section(demo))
    sections = {
        "tofu": ("tofu_tiny.json", table_section),
        "wmdp": ("wmdp_miniature.json", wmdp_section),
        "bench": ("curvature.json", bench_section),
        "sharding": ("sharding.json", sharding_section),
        "ntk_bench": ("ntk.json", ntk_section),
    }
    for name, (file, section) in sections.items():
        if (results / file).is_file():
            text = fill(text, name, section(results / file))
    if forgetting := forgetting_section(results):
        text = fill(text, "ntk", forgetting)
    readme.write_text(text)


if __name__ == "__main__":
    main()
