"""Connections: thin asyncio skins, one file each, over the protocols of `agent.wire`."""
