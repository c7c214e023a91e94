"""The exceptions that Hybrid raises on purpose. Nothing else should reach a user."""


class HybridError(Exception):
    """Base class of all errors raised by Hybrid."""


class InvalidCurveError(HybridError, ValueError):
    """The data cannot be used as a curve: the message names the row or value and the remedy."""


class InvalidArgumentError(HybridError, ValueError):
    """An argument of a call is outside what it may be."""


class UnknownNameError(HybridError, KeyError):
    """No prior, law, engine or example of that name; the message lists those that exist."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class EngineUnavailableError(HybridError, RuntimeError):
    """The engine cannot serve this prior, or what it needs is not installed."""


class TrainingError(HybridError, ArithmeticError):
    """Training broke down; what was reached before is kept."""


class FileFormatError(HybridError, ValueError):
    """A file is damaged, of another format, or was written for another prior."""


class ReportError(HybridError, RuntimeError):
    """A report could not be made; the message says which of its cells failed, and how."""
