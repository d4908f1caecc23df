"""The conformance suite, with phitui's own converter."""

from __future__ import annotations

import pytest

pytest.importorskip("phitui_convert")
from phitui.testing.conformance import Conformance


class TestPhi(Conformance):
    """All of it."""
