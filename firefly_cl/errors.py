"""Errors that a user can do something about; each message says what to do next."""


class FireflyError(Exception):
    """Base of every error that firefly_cl raises on purpose."""


class ConfigurationError(FireflyError):
    """An option has a value that cannot work."""


class UnknownName(ConfigurationError):
    """A scenario, strategy, backbone or criterion of that name is not registered."""


class DataError(FireflyError):
    """Data are missing, damaged, or not of the shape or range expected."""


class UnsupportedOperation(FireflyError):
    """A model holds an operation that has no growth rule; the message names its node and line."""


class EditError(FireflyError):
    """A structural edit that cannot be made; the network is as it was."""


class BudgetTooSmall(EditError):
    """A growth budget that does not pay for one unit; the message says what the cheapest costs."""


class NothingToGrow(EditError):
    """A task without the own units that a growth criterion works on."""


class NothingToPrune(EditError):
    """A task that has no unit to lose."""


class NothingToSelect(EditError):
    """A task that reads no older unit."""


class SpaceFixed(EditError):
    """The space is a network input or a head and can neither grow nor shrink."""


class FileError(FireflyError):
    """A file is missing, damaged, unwritable, or of a newer schema."""


class Unreadable(FileError):
    """A file is there and cannot be read now (rights, a disk that fails): it may be whole."""

    @classmethod
    def of(cls, path: object, error: OSError) -> "Unreadable":
        """The error of reading `path`."""
        why = error.strerror or error
        return cls(f"cannot read {path} ({why}): check its permissions and its disk")


class FolderInUse(FileError):
    """Another process runs what is kept in the folder; the message names it."""


class DivergenceError(FireflyError):
    """A loss or an input became NaN or infinite."""


class ClusterError(FireflyError):
    """A cluster that cannot be reached, or cannot run what is asked for."""
