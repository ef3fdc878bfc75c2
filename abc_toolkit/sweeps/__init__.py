"""Many runs: a file that names them, an engine that does them, and summaries over their seeds."""
