"""The command line: ``main`` has the table of commands, every other file is one command."""
