"""`python -m app.keys`: the old name of `python -m app.commands.keys`, kept for one release."""

from app.commands.keys import main

if __name__ == "__main__":
    main()
