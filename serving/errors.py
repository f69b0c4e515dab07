"""Every error that a client can get: its HTTP status, its code, and a message that says what to do.

The HTTP interface answers each as `{"error": {"code": ..., "message": ...}}`. Each is about one request or one image,
and affects no other.
"""

from __future__ import annotations

from serving.text import printable

# Characters of a message, which may repeat what a client sent or what a library said about it.
LONGEST = 1000

CLOSING = "the server is shutting down; try again in a few seconds"
OUR_FAULT = "the server failed on this request; its log says why"


class RequestError(Exception):
    """Why one request, or one image of it, was not answered."""

    status = 500
    code = "internal"
    # Seconds after which the client may try again; None if that would not help.
    retry_after: int | None = None
    # The model that was asked, for the metrics. Never the client's own text, which could be anything.
    model = "unknown"

    def __init__(self, message: str = "") -> None:
        """`message` is made one line of at most `LONGEST` characters, because it may hold a client's text."""
        message = printable(message)
        super().__init__(message if len(message) <= LONGEST else f"{message[: LONGEST - 3]}...")


class BadRequest(RequestError):
    status, code = 400, "bad_request"


class Unauthorized(RequestError):
    status, code = 401, "unauthorized"


class NotFound(RequestError):
    """The service has no such path."""

    status, code = 404, "not_found"


class UnknownModel(RequestError):
    status, code = 404, "unknown_model"


class MethodNotAllowed(RequestError):
    status, code = 405, "method_not_allowed"

    def __init__(self, message: str, allow: str) -> None:
        super().__init__(message)
        self.allow = allow


class SlowRequest(RequestError):
    """The request took too long to arrive."""

    status, code = 408, "request_timeout"


class TooLarge(RequestError):
    status, code = 413, "too_large"


class UnsupportedImage(RequestError):
    status, code = 415, "unsupported_image"


class DamagedImage(RequestError):
    status, code = 422, "damaged_image"


class LargeHead(RequestError):
    """The request's line and header fields are too long."""

    status, code = 431, "head_too_large"


class Overloaded(RequestError):
    status, code = 429, "overloaded"

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Closing(RequestError):
    status, code, retry_after = 503, "shutting_down", 5


class NotReady(RequestError):
    """The models are loading, or the server is shutting down. Only `/readyz` answers this."""

    status, code = 503, "not_ready"


class TooManyConnections(RequestError):
    status, code, retry_after = 503, "too_many_connections", 5


class DeadlinePassed(RequestError):
    status, code = 504, "deadline_passed"


class Unloadable(RequestError):
    """The store has the model, but no engine here can run it. What was loaded before stays loaded."""

    status, code = 409, "unloadable_model"


class InferenceFailed(RequestError):
    """The engine failed, or Podium has a defect; the log has the traceback."""
