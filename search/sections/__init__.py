"""Sections of the configuration, a file for each subject."""
