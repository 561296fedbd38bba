"""Compiler passes: channel analysis and slimming. Nothing here knows of training."""
