"""The exception tree.

::

    ParetopressError
    ├── InputError                 what the user gave is wrong (exit code 2)
    │   ├── ConfigError            a configuration value or key
    │   ├── PolicyError            a policy: unknown technique, layer or hyper-parameter
    │   ├── ModelError             a network that cannot be built, loaded, traced or exported
    │   ├── DataError              a data set that is missing, empty or corrupt
    │   └── RunDirectoryError      a run directory that cannot be used for what was asked
    └── WorkError                  the work failed (exit code 1)
        ├── CandidateError         one candidate failed; recorded with its reason, the search goes on
        ├── SearchError            the search as a whole cannot go on
        ├── FormatError            a file of ours that is truncated or damaged
        └── VerificationError      a measured figure disagrees with the reported one

Every message says what was expected, what came, and what to do.
"""

from __future__ import annotations


class ParetopressError(Exception):
    """Base of every error that paretopress raises on purpose."""


class InputError(ParetopressError):
    """What the user gave is wrong."""


class ConfigError(InputError):
    """A configuration value or key is wrong."""


class PolicyError(InputError):
    """A policy names an unknown technique, layer or hyper-parameter, or cannot be carried out on the network."""


class ModelError(InputError):
    """A network cannot be built, loaded, traced or exported."""


class DataError(InputError):
    """A data set is missing, empty or corrupt."""


class RunDirectoryError(InputError):
    """A run directory cannot be used for what was asked."""


class WorkError(ParetopressError):
    """The work failed although the input was accepted."""


class CandidateError(WorkError):
    """One candidate could not be carried out or measured; deterministic, so never retried."""


class SearchError(WorkError):
    """The search as a whole cannot go on."""


class FormatError(WorkError):
    """A file in one of our formats is truncated or damaged."""


class VerificationError(WorkError):
    """A measured figure disagrees with the reported one."""
