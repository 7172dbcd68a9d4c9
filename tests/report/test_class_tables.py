# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
import json
from pathlib import Path

import pytest

from hf_unlearn.errors import InputError
from hf_unlearn.report.class_tables import METRICS, class_sections, paper_figures
from tests.support.reports import CLASS_ROWS, class_row


RESULTS = Path(__file__).resolve().parents[2] / "benchmarks/results"


def test_one_table_a_metric_with_sizes_and_the_paper_beside_one_another():
    *tables, bars, probes = class_sections(CLASS_ROWS, paper_figures("ResNet-110, CIFAR-10"))
    assert [section.title for section in tables] == list(METRICS.values())
    text = "Mean ± standard deviation over 2 seeds; columns are images per class."
    assert tables[0].text == f"{text} The paper's columns are its ResNet-110, CIFAR-10."
    assert tables[0].header == ["method", "100", "500", "paper: 100", "paper: 200", "paper: 500"]
    assert tables[0].table[1] == ["Max Loss", "96.0 ± 1.0", "96.0 ± 1.0", "56.64", "49.17", "13.49"]
    assert tables[0].table[2][3:] == ["–", "–", "–"]  # the paper has no such line
    # Of the full model nothing is to be relearnt.
    assert [row[0] for row in tables[3].table] == ["Max Loss", "Fast-NTK, at w0", "Retrain"]
    assert tables[3].table[1][1:3] == ["8.0 ± 0.0", ">100"]
    assert bars.figure is not None and bars.name == "classes.png"
    assert probes.header[:4] == ["features", "D_r, 100", "D_f, 100", "hold-out of the class, 100"]
    assert probes.table == [["Pre-trained", *2 * ["95.0 ± 0.0", "94.0 ± 0.0", "93.0 ± 0.0"]]]
    assert len(class_sections([row for row in CLASS_ROWS if "probe" not in row["method"]])) == len(METRICS) + 1


def test_relearning_beyond_the_limit_is_shown_as_such():
    rows = [class_row("Retrain", 5, seed, 1.0, 0.0, 1.0, epochs) for seed, epochs in ((0, 7), (1, None))]
    assert class_sections(rows)[3].table == [["Retrain", ">100"]]
    first = class_sections(rows[:1])
    assert first[3].table == [["Retrain", "7.0"]] and first[0].text == "Columns are images per class."


def test_the_paper_has_figures_of_some_networks():
    assert paper_figures(None) is None
    with pytest.raises(InputError, match="no figures of 'VGG'; there are MobileNetV2"):
        paper_figures("VGG")


@pytest.mark.parametrize("name", ["digits", "cifar10_resnet20", "cifar10_resnet32", "cifar10_vit"])
def test_recorded_tables_come_from_their_rows(name):
    """The digits of the means that were written down beside the rows when they were measured."""
    record = json.loads((RESULTS / f"fast_ntk_{name}.json").read_text())
    sections = {section.title: section for section in class_sections(record["rows"])}
    checked = 0
    for entry in record["table"]:
        if entry["method"].startswith("probe"):
            continue
        for metric, title in METRICS.items():
            header, body = sections[title].header, {row[0]: row for row in sections[title].table}
            if metric == "relearning_epochs" and entry["method"] == "Full":
                continue
            text = body[entry["method"]][header.index(str(entry["per_class"]))]
            assert text == f"{entry[metric]:.1f} ± {entry[f'{metric}_std']:.1f}"
            checked += 1
    assert checked >= 4 * 4
