"""`python -m vmloc_ros.cli`."""

from vmloc_ros.cli import main

if __name__ == "__main__":
    main()
