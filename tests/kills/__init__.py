"""Trials that end processes of a command at random, and repeat the command."""
