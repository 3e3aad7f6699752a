"""`python -m fcos` is `fcos`."""

from fcos.cli import main

if __name__ == "__main__":
    main(prog_name="fcos")
