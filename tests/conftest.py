import os
from pathlib import Path

import pytest

from tests.command import Snet, run_in


@pytest.fixture
def snet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Snet:
    """`snet` in an empty folder and a clean environment, in this process: code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("SNET_")]:
        monkeypatch.delenv(name)
    return run_in(capsys)
