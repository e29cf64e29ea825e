"""The version of paretopress; part of every evaluation's identity."""

VERSION = "0.1.0"
