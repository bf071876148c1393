"""The embedded broker's process: `python -m agent.demo.embedded PORT`."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import Iterator
from typing import Any

from amqtt.broker import Broker


class _Subscriptions(dict[str, list[Any]]):
    """By filter; may change while a task that waits is going through them.

    amqtt's own must not: a client that connects while another subscribes was never served.
    """

    def __iter__(self) -> Iterator[str]:
        return iter(list(self.keys()))


class _Broker(Broker):  # type: ignore[misc]
    """amqtt, which hands retained messages only to those who subscribed to their topics.

    Its own gives all that is retained for anybody to everybody who connects.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)
        self._subscriptions = _Subscriptions()

    async def _publish_retained_messages_for_subscription(
        self, subscription: tuple[str, int], session: Any
    ) -> None:
        subscribed = self._subscriptions.get(subscription[0], ())
        if any(other.client_id == session.client_id for other, _ in subscribed):
            await super()._publish_retained_messages_for_subscription(subscription, session)


async def serve(port: int) -> None:
    """Run amqtt on the loopback until SIGTERM."""
    logging.disable(logging.CRITICAL)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    broker = _Broker(
        {
            "listeners": {"default": {"type": "tcp", "bind": f"127.0.0.1:{port}"}},
            "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {}},
        }
    )
    await broker.start()
    await stop.wait()
    await broker.shutdown()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
