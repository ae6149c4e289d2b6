"""Every exception that tierstore raises, grouped by what a handler would do about it.

::

    TierstoreError
     ├─ UsageError              the call is wrong: fix the arguments                        exit 2
     │   ├─ InvalidName         a model, alias, tensor or path name is not allowed
     │   └─ ConfigError         a configuration key or value is not known
     ├─ SourceError             what was given to save cannot be stored as it is            exit 1
     │   ├─ InvalidSafetensors  the header breaks the safetensors rules
     │   ├─ UnsafeSource        a pickle, or a path that leaves its directory
     │   └─ SourceChanged       the file or array changed while it was being read
     ├─ NotFound                no such store, model, version, alias, tensor or blob        exit 5
     │   ├─ FileMissing         no such file of a version; a FileNotFoundError              exit 5
     │   └─ TensorMissing       no such tensor of a version; a KeyError                     exit 5
     ├─ Conflict                someone else got there first, or it already exists          exit 6
     │   └─ GateClosed          a rollout may not go on yet                                 exit 6
     ├─ Damaged                 stored bytes do not match their digest, checksum or form    exit 4
     ├─ UnsupportedFormat       written by a newer tierstore: upgrade this one              exit 1
     ├─ OtherHome               this home seems to be a copy: nothing is deleted in tiers   exit 1
     └─ BackendError            the storage itself failed                                   exit 1
         ├─ PermissionDenied    it refused our user or key; a PermissionError               exit 1
         ├─ OutOfSpace          quota or disk full                                          exit 7
         ├─ NotDurable          written, but a power loss may take it back                  exit 1
         ├─ Archived            it must be restored from an archive first                   exit 1
         └─ Unreachable         no answer after the retries; a ConnectionError              exit 8

A message says what happened, to which object, and what to do next. Nothing here is retried by the
caller except ``Unreachable``: stores retry before they raise it.

Some are also the exception that Python itself would raise, so that code which knows nothing of
tierstore handles them: see each class. Those that are an ``OSError`` have no ``errno``, and whoever
guards calls of the operating system with ``except OSError`` lets ours pass.
"""

from __future__ import annotations


class TierstoreError(Exception):
    """Base of every error raised by tierstore; ``exit_code`` is what the CLI exits with."""

    exit_code = 1


class UsageError(TierstoreError, ValueError):
    """The call itself is wrong."""

    exit_code = 2


class InvalidName(UsageError):
    """A model, alias, tensor, file or reference name is not allowed."""


class ConfigError(UsageError):
    """A configuration key or value is unknown or out of its range."""


class SourceError(TierstoreError):
    """A source given to ``save`` cannot be stored as it is."""


class InvalidSafetensors(SourceError, ValueError):
    """A safetensors header breaks the format's rules."""


class UnsafeSource(SourceError):
    """The source is a pickle, or a path that leaves its directory."""


class SourceChanged(SourceError):
    """A file or an array changed, or became shorter, while it was being saved."""


class NotFound(TierstoreError, LookupError):
    """There is no such store, model, version, alias, tensor or blob."""

    exit_code = 5

    def __str__(self) -> str:  # LookupError's own str() is the message; KeyError would quote it
        return Exception.__str__(self)


class FileMissing(NotFound, FileNotFoundError):
    """A version has no such file; raised where ``tierstore://`` URLs are read like paths."""


class TensorMissing(NotFound, KeyError):
    """A version has no tensor of this name; also a ``KeyError``, as of any mapping."""


class Conflict(TierstoreError):
    """The name is taken, or another writer got there first."""

    exit_code = 6


class GateClosed(Conflict):
    """A rollout's next step is not due, or a gate does not hold."""


class Damaged(TierstoreError):
    """Stored bytes do not match their digest, their checksum or the format."""

    exit_code = 4


class UnsupportedFormat(TierstoreError):
    """The object needs a feature that this version of tierstore does not have."""


class OtherHome(TierstoreError):
    """Another home of the store deletes in a tier, and this one is a copy of it, or was moved."""


class BackendError(TierstoreError):
    """The storage behind a blob store failed.

    Attributes:
        unanswered: What may have been written all the same: the entry of a log whose put ended so.
    """

    unanswered: object = None


class PermissionDenied(BackendError, PermissionError):
    """The storage refused our credentials or our user; also a ``PermissionError``."""


class OutOfSpace(BackendError):
    """A disk, quota or bucket is full."""

    exit_code = 7


class NotDurable(BackendError):
    """An object was written and can be read, but a power loss may take it back: a sync failed."""


class Archived(BackendError):
    """The object is in an archive class; ask for a readable copy with ``tierstore restore``."""


class Unreachable(BackendError, ConnectionError):
    """The storage did not answer; also a ``ConnectionError``."""

    exit_code = 8


OF_ONE = (Conflict, Damaged, NotFound, UnsupportedFormat)
"""What concerns one object or name alone: whoever looks at many goes on with the others."""
