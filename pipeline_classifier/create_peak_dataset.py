"""The old name of create_candidate_dataset.py, which does the work."""

import runpy
import sys
from pathlib import Path

if __name__ == "__main__":
    print("create_peak_dataset.py is now create_candidate_dataset.py", file=sys.stderr)
    runpy.run_path(str(Path(__file__).with_name("create_candidate_dataset.py")), run_name="__main__")
