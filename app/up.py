"""`python -m app.up`: the old name of `python -m app.commands.up`, kept for one release."""

from app.commands.up import main

if __name__ == "__main__":
    main()
