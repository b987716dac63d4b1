"""What each subcommand of bench.cli does: arguments in, calls to the harness, text out."""
