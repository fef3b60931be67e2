"""Tests that only a GPU can run: collected where there is one, run by ``make gpu``."""

from __future__ import annotations

import torch

collect_ignore_glob = [] if torch.cuda.is_available() else ["test_*.py"]
