"""CONTRIBUTING's example method is copied by newcomers, so it must be right."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest
import torch


def test_the_example_divergence_obeys_its_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (source,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    path = tmp_path / "hellinger.py"
    path.write_text(source, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    hellinger = importlib.import_module("hellinger").Hellinger()
    teacher, student = torch.randn(2, 16, 8, generator=torch.Generator().manual_seed(7)).log_softmax(dim=-1)
    assert torch.allclose(hellinger(teacher, teacher), torch.zeros(16), atol=1e-6)
    assert bool((hellinger(teacher, student) > 0).all())
    plain = 1 - (teacher.exp() * student.exp()).sqrt().sum(dim=-1)
    torch.testing.assert_close(hellinger(teacher, student), plain)
    # At most 1, also where the student gives all to one token.
    extreme = torch.full((16, 8), -1e4)
    extreme[:, 0] = 0.0
    assert bool((hellinger(teacher, extreme) <= 1).all())
