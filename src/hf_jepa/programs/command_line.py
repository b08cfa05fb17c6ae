"""How a program ends on the command line: what the user can mend is one line, not a traceback."""

import sys
from collections.abc import Callable

from huggingface_hub.errors import StrictDataclassError


def run_program(main: Callable[[list[str]], None]) -> None:
    """Runs `main` on the command line's arguments; an error that the user can mend is printed as one line, exit 1."""
    try:
        main(sys.argv[1:])
    except (ValueError, OSError, ImportError, StrictDataclassError) as error:
        sys.exit(f"error: {error}")
    except RuntimeError as error:
        # Spoilt data, a loss that is NaN, an upload that failed: errors of this package name their way out.
        if not type(error).__module__.startswith("hf_jepa."):
            raise
        sys.exit(f"error: {error}")
