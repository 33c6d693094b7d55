"""What the commands do, one module per group; `cli` only parses and calls."""
