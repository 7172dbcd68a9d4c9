# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
from hf_unlearn.report.attacks import attack_section
from tests.support.reports import attacks


def test_section_of_attacks():
    table = attacks()
    section = attack_section(table.rows, table.curves, chance=0.25)
    row, cells = table.rows[0], section.table[0]
    assert len(section.table) == 16 and {len(cells) for cells in section.table} == {len(section.header)} == {10}
    assert cells[:4] == ["kfade", "benign", "0.001", "bio"]
    assert cells[4:6] == [f"{100 * row['original']:.1f}", f"{100 * row['unlearned']:.1f}"]
    assert cells[6] == f"{100 * row['relearned']:.1f} ({100 * row['recovery']:.0f} % back)"
    assert cells[8] == f"{100 * row['control']:.1f}"
    share = 100 * row["control_recovery_with_update"]
    assert cells[9] == f"{100 * row['control_with_update']:.1f} ({share:.0f} % back)"
    none = next(cells for cells in section.table if cells[0] == "none")
    assert "back" not in " ".join(none)  # nothing was lost that could come back
    assert "2 steps of 3 sequences (AdamW" in section.text and section.name == "relearn.png"
    assert [line.get_label() for line in section.figure.axes[0].lines].count("kfade") == 1
