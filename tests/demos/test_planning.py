"""The planning demo from end to end, far too short to learn anything."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_demo_writes_what_it_says(tmp_path):
    command = [sys.executable, "-m", "trainers.demos.planning", "--share", "0.02", "--output_dir", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")])}
    shown = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
    # Another process has loaded the release and found the same plan.
    assert "LatentWorldModel plans the same 20 steps to 4 goals" in shown
    for name in ("GC-IDM", "GCBC", "prediction loss only", "untrained encoder", "random actions", "straight line"):
        assert name in shown
    results = json.loads((tmp_path / "release" / "results.json").read_text())
    assert len({entry["name"] for entry in results["baselines"]}) == 6
    for picture in results["pictures"]:
        assert (tmp_path / "release" / picture["file"]).is_file()
    reported = json.loads((tmp_path / "table.json").read_text())["reports"]
    for report in reported.values():
        low, high = report["success_at_end_interval"]
        assert low <= report["success_at_end"] <= high
