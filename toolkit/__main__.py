"""The `toolkit` command, also as `python -m toolkit`: a Ctrl-C that comes while it still loads ends it in one word."""

import sys


def main() -> None:
    """Run the command; from its first line on, it has its own way to end (`toolkit.cli.ending`)."""
    try:
        from toolkit.cli import ending

        ending.main()
    except KeyboardInterrupt:
        sys.stderr.write("stopped\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
