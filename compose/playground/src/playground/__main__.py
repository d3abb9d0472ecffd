"""`python -m playground`: the same as `tidegate playground`."""

from playground.commands import playground

if __name__ == "__main__":
    playground()
