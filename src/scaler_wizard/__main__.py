"""Start the `scaler` command."""

from __future__ import annotations

import sys

from scaler_wizard.errors import ScalerError


def main() -> None:
    """Run a verb; a slip is two lines and an exit code, never a traceback."""
    from scaler_wizard.cli import app

    try:
        app(standalone_mode=True)
    except ScalerError as error:
        print(f"{error.wrong}\n  → {error.cure}", file=sys.stderr)  # noqa: T201
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        raise SystemExit(3) from None


if __name__ == "__main__":
    main()
