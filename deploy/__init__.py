"""Deploy: the command line, the fleet loop, run directories and records."""
