"""What the demo's programs hear of the machine's settings."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

DEPLOY = Path(__file__).parents[2] / "deploy"
PROGRAM = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(DEPLOY)!r})
from demo.children import Children
print(Children(Path("/demo")).output_of(["env"]), end="")
"""


def test_the_demo_s_programs_get_no_setting_of_the_machine_by_variable_or_file() -> None:
    foreign = {"HCC_SSL": "true", "HCC_CONFIG_FILE": "/etc/hcc/web.toml", "CONSUL_HTTP_ADDR": "a:1", "CONNECT_X": "y"}
    line = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(line, env=os.environ | foreign, capture_output=True, text=True, timeout=30, check=True)

    told = dict(each.split("=", 1) for each in done.stdout.splitlines() if "=" in each)
    found = {name: value for name, value in told.items() if name.startswith(("HCC_", "CONSUL_", "CONNECT_"))}
    assert found == {"HCC_DEMO": "/demo", "HCC_CONFIG_FILE": "/dev/null"}
    assert told["PATH"] == os.environ["PATH"]
