"""A request that is not answered, in the form in which OpenAI's API says so and its clients read it."""

from __future__ import annotations

from typing import Any

from beni.errors import BeniError

KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "invalid_request_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
    431: "invalid_request_error",
}
"""Status -> type of the error; all others are ``server_error``."""


class Refused(BeniError):
    """A request that cannot be answered.

    Attributes:
        status: of HTTP.
        message: for the one who asked; holds neither a key nor the content of an image.
        code: for programs.
        param: the part of the request that is meant; None for none.
        wait: seconds after which another attempt may succeed; None where it would not.
    """

    def __init__(
        self, status: int, message: str, code: str, param: str | None = None, wait: float | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param, self.wait = status, str(self), code, param, wait

    def body(self) -> dict[str, Any]:
        """What the answer holds."""
        kind = KINDS.get(self.status, "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        """What stands in its head beside the usual."""
        headers = {} if self.wait is None else {"Retry-After": str(max(1, round(self.wait)))}
        return headers | ({"WWW-Authenticate": "Bearer"} if self.status == 401 else {})
