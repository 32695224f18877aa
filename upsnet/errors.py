"""How a command ends: a user's mistake is one line and exit code 2, a defect of ours a traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable


def run_tool(main: Callable[[], None]) -> None:
    """Runs the body of a command-line tool; expected errors are printed as one line without a traceback."""
    try:
        main()
    except (OSError, ValueError, FloatingPointError, MemoryError) as error:
        text = str(error).strip()
        if text.startswith("Caught ") and "DataLoader worker" in text:  # torch wraps the worker's traceback in the text
            text = text.splitlines()[-1].partition(": ")[2]
        print(f"error: {' '.join(text.split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
