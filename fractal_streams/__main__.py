"""The `fractal-streams` command."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; exit code 2 and one line on standard error for what the user can mend."""
    from fractal_streams.errors import MissingExtraError

    try:
        from fractal_streams.cli_train import app
    except MissingExtraError as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(2) from None
    app()


if __name__ == "__main__":
    main()
