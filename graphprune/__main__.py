"""`python -m graphprune`, and `accelerate launch -m graphprune`: the command line."""

from graphprune.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
