"""TLS, mutual TLS, WebSocket and proxies, against a real mosquitto."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.errors import LinkRefused, UsageError
from agent.links.dialing import Endpoint, TlsFiles, open_socket
from agent.links.proxy import connect_through, parse_proxy
from tests.brokers import LocalBroker, free_port
from tests.certificates import make_certificates
from tests.links.driver import Driver

# Mosquitto 2.0 sends 4 KB each 0.1 s by WebSocket.
WEBSOCKET_LARGE = 12_000


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory, certificates: Path) -> Iterator[LocalBroker]:
    folder = tmp_path_factory.mktemp("broker")
    broker = LocalBroker(folder, websockets=True, tls=certificates).start()
    yield broker
    broker.stop()


@pytest.fixture(scope="module")
def strict_broker(
    tmp_path_factory: pytest.TempPathFactory, certificates: Path
) -> Iterator[LocalBroker]:
    folder = tmp_path_factory.mktemp("strict")
    broker = LocalBroker(folder, tls=certificates, mutual_tls=True).start()
    yield broker
    broker.stop()


async def round_trip(url: str, large: int = 300_000, **link: Any) -> None:
    """Large and small messages come back at both QoS, over one reconnect."""
    driver = Driver(url, link=link)
    async with driver.running():
        await driver.subscribe(("loop", 1))
        for payload in (b"", b"x", bytes(large)):
            for qos in (0, 1):
                driver.publish("loop", payload, qos=qos)
                message = await driver.next()
                assert (message.payload, message.qos) == (payload, qos)
        await driver.all_done(6)
        pipe = driver.link._pipe
        assert pipe is not None
        pipe.abort()
        driver.publish("loop", b"again", qos=1)
        assert (await driver.next()).payload == b"again"


async def failure(url: str, **link: Any) -> str:
    """Why a link does not connect."""
    driver = Driver(url, link=link)
    async with driver.running():
        await driver.until(lambda: driver.link.state.phase in {"waiting", "refused", "connected"})
        return driver.link.state.last_error or ""


# TLS


def test_tls(broker: LocalBroker, certificates: Path) -> None:
    asyncio.run(round_trip(broker.tls_url, tls=TlsFiles(ca=certificates / "ca.pem")))


def test_mutual_tls(strict_broker: LocalBroker, certificates: Path) -> None:
    files = TlsFiles(
        certificates / "ca.pem", certificates / "client.pem", certificates / "client.key"
    )
    asyncio.run(round_trip(strict_broker.tls_url, tls=files))


def test_a_broker_whose_certificate_nobody_vouches_for_is_not_spoken_to(
    broker: LocalBroker,
) -> None:
    why = asyncio.run(failure(broker.tls_url))
    assert "its certificate is not trusted" in why
    assert "check the ca file" in why


def test_a_certificate_for_another_name_is_not_taken(
    broker: LocalBroker, certificates: Path
) -> None:
    files = TlsFiles(ca=certificates / "ca.pem", server_name="elsewhere.example")
    why = asyncio.run(failure(broker.tls_url, tls=files))
    assert "elsewhere.example" in why


def test_a_missing_client_certificate_is_told(
    strict_broker: LocalBroker, certificates: Path
) -> None:
    files = TlsFiles(ca=certificates / "ca.pem")
    why = asyncio.run(failure(strict_broker.tls_url, tls=files))
    assert "certificate" in why.lower()


def test_tls_files_that_are_absent_or_do_not_fit_are_named(
    broker: LocalBroker, certificates: Path
) -> None:
    missing = TlsFiles(ca=certificates / "none.pem")
    assert "none.pem" in asyncio.run(failure(broker.tls_url, tls=missing))
    wrong = TlsFiles(
        certificates / "ca.pem", certificates / "client.pem", certificates / "server.key"
    )
    assert "do not fit together" in asyncio.run(failure(broker.tls_url, tls=wrong))


def test_tls_to_a_port_that_does_not_speak_it_fails_with_a_sentence(broker: LocalBroker) -> None:
    why = asyncio.run(failure(f"mqtts://127.0.0.1:{broker.port}"))
    assert why.startswith(f"cannot reach 127.0.0.1:{broker.port}: ")


def test_new_certificates_are_read_without_a_restart(
    broker: LocalBroker, certificates: Path, tmp_path: Path
) -> None:
    async def scenario() -> None:
        good = (certificates / "ca.pem").read_bytes()
        file = make_certificates(tmp_path) / "ca.pem"
        driver = Driver(broker.tls_url, link={"tls": TlsFiles(ca=file)})
        async with driver.running():
            await driver.phase("waiting")
            file.write_bytes(good)
            await driver.phase("connected")

    asyncio.run(scenario())


# WebSocket


def test_websocket(broker: LocalBroker) -> None:
    asyncio.run(round_trip(broker.ws_url, large=WEBSOCKET_LARGE))


def test_websocket_over_tls(broker: LocalBroker, certificates: Path) -> None:
    files = TlsFiles(ca=certificates / "ca.pem")
    asyncio.run(round_trip(broker.wss_url, large=WEBSOCKET_LARGE, tls=files))


async def web_server(answer: bytes) -> tuple[asyncio.Server, int]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    return server, server.sockets[0].getsockname()[1]


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "HTTP status 404"),
        (b"what?\r\n\r\n", "broke WebSocket"),
        (b"", "ended in the WebSocket handshake"),
    ],
)
def test_a_web_server_without_mqtt_is_told_apart(answer: bytes, says: str) -> None:
    async def scenario() -> None:
        server, port = await web_server(answer)
        assert says in await failure(f"ws://127.0.0.1:{port}/mqtt")
        server.close()

    asyncio.run(scenario())


# Proxies


@contextlib.asynccontextmanager
async def http_proxy(status: bytes = b"200 Connection established") -> AsyncIterator[str]:
    """A proxy that knows CONNECT and nothing else."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        method, target, _ = head.split(b" ", 2)
        assert method == b"CONNECT"
        writer.write(b"HTTP/1.1 " + status + b"\r\nVia: test\r\n\r\n")
        if not status.startswith(b"200"):
            writer.close()
            return
        host, _, port = target.decode().rpartition(":")
        back, out = await asyncio.open_connection(host.strip("[]"), int(port))
        pumps = {
            asyncio.ensure_future(pump(reader, out)),
            asyncio.ensure_future(pump(back, writer)),
        }
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in pumps:
                task.cancel()
            out.transport.abort()
            writer.transport.abort()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while piece := await reader.read(65_536):
                writer.write(piece)
                await writer.drain()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    server.close()


@pytest.mark.parametrize("kind", ["url", "tls_url", "ws_url"])
def test_all_transports_pass_an_http_proxy(
    broker: LocalBroker, certificates: Path, kind: str
) -> None:
    async def scenario() -> None:
        async with http_proxy() as proxy:
            files = TlsFiles(ca=certificates / "ca.pem")
            large = WEBSOCKET_LARGE if kind == "ws_url" else 300_000
            await round_trip(getattr(broker, kind), large, proxy=proxy, tls=files)

    asyncio.run(scenario())


def test_a_proxy_that_does_not_let_us_through_is_named() -> None:
    async def scenario() -> None:
        async with http_proxy(b"403 Forbidden") as proxy:
            with pytest.raises(LinkRefused, match="HTTP 403"):
                await connect_through(proxy, "broker.example", 8883)
            assert "does not connect us" in await failure("mqtt://broker.example", proxy=proxy)
        absent = f"http://127.0.0.1:{free_port()}"
        assert "cannot reach proxy" in await failure("mqtt://broker.example", proxy=absent)

    asyncio.run(scenario())


@pytest.mark.parametrize("url", ["proxy:3128", "socks5://a:1", "http://a", "http://u:p@a:1"])
def test_a_proxy_url_that_is_not_one_is_refused(url: str) -> None:
    with pytest.raises(UsageError):
        parse_proxy(url)


# Names and addresses


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("mqtt://a", Endpoint("a", 1883, False, False, "/mqtt")),
        ("mqtts://a", Endpoint("a", 8883, True, False, "/mqtt")),
        ("ws://a:1/x?y=z", Endpoint("a", 1, False, True, "/x?y=z")),
        ("wss://[::1]", Endpoint("::1", 443, True, True, "/mqtt")),
    ],
)
def test_urls_are_read(url: str, expected: Endpoint) -> None:
    assert Endpoint.parse(url) == expected


def test_a_name_that_does_not_exist_is_told() -> None:
    assert "cannot reach" in asyncio.run(failure("mqtt://no-such-host.invalid"))
    assert "not a host name" in asyncio.run(failure(f"mqtt://{'a' * 70}.example"))


def test_an_address_that_refuses_does_not_hide_one_that_answers(
    broker: LocalBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        real = loop.getaddrinfo

        async def two(host: str, port: int, **more: Any) -> Any:
            return await real("127.0.0.9", free_port(), **more) + await real(
                "127.0.0.1", port, **more
            )

        monkeypatch.setattr(loop, "getaddrinfo", two)
        (await open_socket("two-addresses.example", broker.port)).close()

    asyncio.run(scenario())
