"""What each command of the command line does: load, run, write, say."""
