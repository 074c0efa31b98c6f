"""A table of methods, tasks, expert sets and seeds: run, chosen on validation, tested, reported."""
