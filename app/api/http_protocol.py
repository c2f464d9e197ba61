"""uvicorn's HTTP protocol with a bound on the request line and headers, which it does not have itself."""

from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEADER_BYTES: Final = 64 * 1024
_BODY: Final = (
    b'{"type":"urn:octopus:problem:invalid_request","title":"Request Header Fields Too Large","status":431,'
    b'"detail":"The request line and headers are larger than 64 KiB.","instance":"/","code":"invalid_request",'
    b'"request_id":null}'
)
_ANSWER: Final = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: application/problem+json\r\n"
    b"content-length: %d\r\nconnection: close\r\n\r\n%s"
) % (len(_BODY), _BODY)


class BoundedHttpProtocol(HttpToolsProtocol):
    """Counts what arrives before the headers of a request are complete, and answers 431 when it is too much."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._is_in_headers = True
        self._header_bytes = 0

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        super().data_received(data)
        if self._is_in_headers:
            self._header_bytes += len(data)
            if self._header_bytes > MAX_HEADER_BYTES and not self.transport.is_closing():
                self.transport.write(_ANSWER)
                self.transport.close()

    def on_message_begin(self) -> None:
        self._is_in_headers, self._header_bytes = True, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._is_in_headers = False
        super().on_headers_complete()
