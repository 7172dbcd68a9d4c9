# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""The plan of the house: which rooms there are, and which stand above which."""

# A room is a folder, or a module beside them; from the ground up.
FLOORS = (
    {"errors", "objectives", "peft_types", "version"},
    {"__init__"},
    {"runtime", "models"},
    {"curvature", "data", "deltas", "optim", "requests", "structure", "tuners"},
    {"evaluation", "ntk", "report"},
    {"methods"},
    {"miniature", "trainer"},
    {"experiments"},
    {"cli"},
    {"__main__"},
)
