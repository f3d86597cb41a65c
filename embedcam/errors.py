"""The errors of embedcam; each message names the thing, what was expected, and the fix."""


class EmbedcamError(Exception):
    """Base of all errors that a user can fix; the command line prints one as a line and exits with 1."""


class DataError(EmbedcamError):
    """An image, a mask, a folder or a data set that cannot be used."""


class UnreadableError(DataError):
    """None of the images can be read."""


class NetworkError(EmbedcamError):
    """A network or a weights file that cannot be used."""


class LayerError(NetworkError):
    """A layer that does not exist, was not run, or has no spatial output."""


class DatabaseError(EmbedcamError):
    """A weight database that is damaged, foreign, newer, or made for another network."""


class TargetError(EmbedcamError):
    """A target that cannot be explained: missing, constant, or of the wrong shape."""


class OutputError(EmbedcamError):
    """A file or folder that cannot be written."""


class MissingDependencyError(EmbedcamError):
    """An optional library that the called part needs."""
