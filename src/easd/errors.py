"""Errors a user can mend. Each message names the value, the limit and the way out."""


class EasdError(Exception):
    """Base of every error caused by input rather than by a defect of this library."""


class RuleError(EasdError, ValueError):
    """An unknown rule, an unknown field, or a field outside its range."""


class ConfigError(EasdError, ValueError):
    """A setting of a run that cannot be honoured."""


class ModelError(EasdError):
    """Model files that are missing, corrupt, mismatched, or of a kind that cannot be served."""


class InputError(EasdError, ValueError):
    """A prompt that cannot be decoded: empty, or longer than the context window."""


class NumericsError(EasdError, ArithmeticError):
    """A model returned NaN, or a row of logits that leaves no token to choose."""


class TraceError(EasdError):
    """A trace folder that cannot be written or read."""


class EndpointError(EasdError):
    """A server that cannot be reached, refuses a request, or does not answer as it should."""
