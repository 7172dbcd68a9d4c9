# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""A comparison as files a person reads: tables, pictures, pages and cards, from rows alone."""
