"""One request to a server over HTTP, bounded in time from the first packet to the last byte, and in bytes.

    connection = connect(base_url, key)
    response = fetch(connection, "/chat/completions", {"model": "m"}, timeout_s=60, max_bytes=2**20, stop=threading.Event())
    response.status, response.headers, response.body                     # without fields: GET

No redirect is followed, since it would carry the key to another host. A server on this machine is reached without a proxy;
for others the environment's proxy is used, and named in errors. A lookup of a host's name lasts as long as the system lets it.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import ipaddress
import json
import os
import ssl
import threading
import urllib.request
import zlib
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

_POLL_S = 0.05


class EndpointError(ValueError):
    """A server that cannot be used: its address, what it said, what to do."""


class NoReply(ValueError):
    """A request that brought no whole reply; another attempt may. wait_s: at least so long before it. remedy: what to do in the
    end, if there is more to say than that the server must keep up."""

    def __init__(self, reason: str, *, wait_s: float = 0.0, remedy: str = "") -> None:
        super().__init__(reason)
        self.wait_s, self.remedy = wait_s, remedy


@dataclass(frozen=True, slots=True)
class Connection:
    """How to reach a server. route: for errors, the proxy and the variable it is from; empty without one."""

    base_url: str
    key: str | None = field(repr=False)
    proxy: httpx.Proxy | None = field(repr=False)
    route: str
    tls: ssl.SSLContext = field(repr=False)


@dataclass(frozen=True, slots=True)
class Response:
    """body: decompressed."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def connect(base_url: str, key: str | None) -> Connection:
    """Nothing is sent. EndpointError: an address or a proxy that cannot be used."""
    try:
        url = httpx.URL(base_url)
    except httpx.InvalidURL as error:
        raise EndpointError(f"lm.base_url={base_url} is no address ({error}); give the server's.") from error
    try:
        tls = httpx.create_ssl_context()
    except OSError as error:  # ssl.SSLError is one
        raise EndpointError(
            f"the certificates named by $SSL_CERT_FILE or $SSL_CERT_DIR cannot be used ({error}); correct or unset it."
        ) from error
    found = None if is_local(url.host) else _environment_proxy(url)
    if found is None:
        return Connection(base_url.rstrip("/"), key, None, "", tls)
    proxy, variable = _usable_proxy(*found, tls), found[1]
    port = f":{proxy.url.port}" if proxy.url.port else ""
    route = f" (through the proxy {proxy.url.scheme}://{proxy.url.host}{port} of ${variable})"  # without its password
    return Connection(base_url.rstrip("/"), key, proxy, route, tls)


def is_local(host: str) -> bool:
    """Whether it is this machine."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def _environment_proxy(url: httpx.URL) -> tuple[str, str] | None:
    """The proxy for an address and the variable that names it."""
    proxies = urllib.request.getproxies()
    scheme = next((scheme for scheme in (url.scheme, "all") if proxies.get(scheme)), None)
    if scheme is None or urllib.request.proxy_bypass(url.netloc.decode()):
        return None
    name = f"{scheme}_proxy"
    return proxies[scheme], name if os.environ.get(name) else name.upper()


def _usable_proxy(address: str, variable: str, tls: ssl.SSLContext) -> httpx.Proxy:
    remedy = (
        f"correct or unset it, or name the server in NO_PROXY if it needs no proxy (the address of ${variable} is not shown)."
    )
    try:
        proxy = httpx.Proxy(address if "://" in address else f"http://{address}")
    except (ValueError, httpx.InvalidURL) as error:
        raise EndpointError(f"the proxy in ${variable} is no address that can be used; {remedy}") from error
    if proxy.url.scheme.startswith("socks") and importlib.util.find_spec("socksio") is None:
        raise EndpointError(
            f"the proxy in ${variable} is a SOCKS proxy, which needs the package socksio; pip install socksio, unset "
            f"${variable}, or name the server in NO_PROXY."
        )
    if proxy.url.scheme == "https":
        proxy.ssl_context = tls
    return proxy


def fetch(
    connection: Connection,
    path: str,
    fields: Mapping[str, Any] | None = None,
    *,
    timeout_s: float,
    max_bytes: int,
    stop: threading.Event,
) -> Response:
    """The server's answer to one request, whatever its status. Not for a thread that runs an event loop. NoReply: none within
    timeout_s or max_bytes, or stop was set meanwhile."""
    try:
        return asyncio.run(_bounded(_exchange(connection, path, fields, max_bytes), timeout_s, stop))
    except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError, UnicodeError) as error:
        raise NoReply(f"no connection: {_root_of(error)}") from error


async def _bounded(exchange: Coroutine[Any, Any, Response], timeout_s: float, stop: threading.Event) -> Response:
    task = asyncio.ensure_future(exchange)
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    try:
        while not task.done():
            left = deadline - loop.time()
            if left <= 0:
                raise NoReply(f"no answer within lm.timeout_s={timeout_s:g}")
            if stop.is_set():
                raise NoReply("given up")
            await asyncio.wait({task}, timeout=min(left, _POLL_S))
        return task.result()
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, httpx.HTTPError, NoReply):
            await task


async def _exchange(connection: Connection, path: str, fields: Mapping[str, Any] | None, max_bytes: int) -> Response:
    headers = {"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": "arclab"}
    if connection.key is not None:
        headers["Authorization"] = f"Bearer {connection.key}"
    content = None
    if fields is not None:
        headers["Content-Type"], content = "application/json", json.dumps(fields).encode()
    client = httpx.AsyncClient(
        verify=connection.tls, proxy=connection.proxy, trust_env=False, timeout=None, follow_redirects=False
    )
    method = "GET" if fields is None else "POST"
    async with client, client.stream(method, connection.base_url + path, headers=headers, content=content) as response:
        raw = bytearray()
        async for piece in response.aiter_raw():
            raw += piece
            if len(raw) > max_bytes:
                raise _too_large(max_bytes)
        encoding = response.headers.get("content-encoding", "identity").strip().lower()
        return Response(response.status_code, response.headers, _decompressed(bytes(raw), encoding, max_bytes))


def _decompressed(raw: bytes, encoding: str, max_bytes: int) -> bytes:
    """Some servers compress although they were asked not to. Never more than max_bytes in memory, whatever raw unfolds to."""
    if encoding in ("identity", ""):
        return raw
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise NoReply(f"an answer compressed as {encoding[:40]}, which was not asked for")
    try:
        body = zlib.decompressobj(zlib.MAX_WBITS | 32).decompress(raw, max_bytes + 1)
    except zlib.error as error:
        raise NoReply(f"an answer that is no {encoding}: {error}") from error
    if len(body) > max_bytes:
        raise _too_large(max_bytes)
    return body


def _too_large(max_bytes: int) -> NoReply:
    return NoReply(f"an answer of more than {max_bytes} bytes, which no reply of sampling.max_new_tokens needs")


def _root_of(error: BaseException) -> str:
    """The first cause in a chain of errors, on one line."""
    while True:
        inner = error.__cause__ or error.__context__
        if isinstance(error, BaseExceptionGroup) and error.exceptions:
            inner = error.exceptions[0]
        if inner is None or isinstance(inner, asyncio.CancelledError):
            said = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
            return " ".join(said.split())[:300] or type(error).__name__
        error = inner
