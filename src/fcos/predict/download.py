"""A picture from an address of the web."""

from __future__ import annotations

import http.client
import time
import urllib.error
import urllib.request

from fcos.errors import DatasetError

MAX_BYTES = 64 * 2**20  # of one picture file
SILENCE_S = 15.0  # without a byte
MAX_S = 120.0  # in all
PART = 2**16


def download(
    address: str, *, max_bytes: int = MAX_BYTES, silence_s: float = SILENCE_S, max_s: float = MAX_S
) -> bytes:
    """The content at an http or https address.

    Raises:
        DatasetError: there is no connection or no such thing, or it is too large or too slow.
    """
    # A name of our own: some servers refuse urllib's.
    request = urllib.request.Request(address, headers={"User-Agent": "fcos"})
    end = time.monotonic() + max_s
    content = bytearray()
    try:
        with urllib.request.urlopen(request, timeout=silence_s) as answer:
            while part := answer.read1(PART):
                content += part
                if len(content) > max_bytes:
                    raise DatasetError(
                        f"the file is larger than {max_bytes / 2**20:.0f} MB",
                        where=address,
                        fix="download it yourself and give the file",
                    )
                if time.monotonic() > end:
                    raise TimeoutError(f"not complete after {max_s:.0f} s")
            # http.client ends a body that stops short without an error when it is read in parts.
            if answer.length:
                raise ConnectionError("the connection ended in the middle of the file")
    except urllib.error.HTTPError as error:
        error.close()
        raise DatasetError(
            f"the server answers {error.code} {error.reason}", where=address, fix="correct the address"
        ) from error
    except DatasetError:
        raise
    # The name is not found, refused, timed out; the answer is no HTTP; the address is none.
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)  # urllib wraps what the system says
        raise DatasetError(
            f"cannot be downloaded: {getattr(reason, 'strerror', None) or reason}",
            where=address,
            fix="is this machine online, and the address right? Or download it elsewhere and give the file",
        ) from error
    return bytes(content)
