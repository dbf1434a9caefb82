"""`python -m app.up`: the old name of `python -m app.commands.up`, kept for one release."""

from app.commands.up import command

if __name__ == "__main__":
    command(prog_name="cynosure up")
