"""`python -m scalade`, and the console script. Ctrl-C ends it with status 130 and no trace, while it imports, too."""


def main() -> None:
    try:
        from .cli.app import main as command

        command()
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
