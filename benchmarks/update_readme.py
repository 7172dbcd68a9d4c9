# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Put measured tables and pictures into README.md: `python benchmarks/update_readme.py` after `make demo` and `make bench`.

Reads outputs/demo/results.json and the files in benchmarks/results; writes between the markers of README.md and copies the
Pareto picture to docs/images/. Nothing in those places is typed by hand.
"""

import json
import re
import shutil
from pathlib import Path

from hf_unlearn.evaluation.report import format_table
from hf_unlearn.evaluation.results import results_of


ROOT = Path(__file__).resolve().parents[1]


def fill(text: str, name: str, content: str) -> str:
    """`text` with what stands between the markers `name` replaced."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if not pattern.search(text):
        raise SystemExit(f"README.md has no markers {begin} ... {end}")
    return pattern.sub(lambda _: f"{begin}\n{content}\n{end}", text)


def demo_section() -> str:
    rows = json.loads((ROOT / "outputs/demo/results.json").read_text())
    images = ROOT / "docs/images"
    images.mkdir(parents=True, exist_ok=True)
    shutil.copy(ROOT / "outputs/demo/pareto.png", images / "demo_pareto.png")
    return f"{results_of(rows).summarise(rows)}\n\n![forget quality against what is kept](docs/images/demo_pareto.png)\n\n{format_table(rows)}"


def tofu_section(path: Path) -> str:
    record = json.loads(path.read_text())
    return f"`{record['command']}`\n\n{results_of(record['rows']).summarise(record['rows'])}\n\n{format_table(record['rows'])}"


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
    readme = ROOT / "README.md"
    text = fill(readme.read_text(), "demo", demo_section())
    results = ROOT / "benchmarks/results"
    if (tofu := results / "tofu_tiny.json").is_file():
        text = fill(text, "tofu", tofu_section(tofu))
    if (bench := results / "curvature.json").is_file():
        text = fill(text, "bench", bench_section(bench))
    readme.write_text(text)


if __name__ == "__main__":
    main()
