"""Two gloo processes, of which one is told to leave, stop together and go on together."""

import json
import signal
from pathlib import Path

from tests.distributed.interruption_runs import interrupt_and_go_on
from tests.processes import run_in_two_processes


def test_two_processes_stop_together_and_go_on(tmp_path: Path) -> None:
    run_in_two_processes(interrupt_and_go_on, tmp_path)
    reports = [json.loads((tmp_path / f"interrupted-{rank}.json").read_text()) for rank in range(2)]
    # Told in the second update by one process, both stop after the third.
    assert [report["stopped"] for report in reports] == [[3, 128 + signal.SIGTERM]] * 2
    assert all(report["same"] for report in reports)
    # Dropout is seeded by step and rank.
    assert len({draw for report in reports for draw in report["draws"]}) == 12
