"""`python -m vitdeploy` runs the command line."""

from vitdeploy.cli import run

if __name__ == "__main__":
    run()
