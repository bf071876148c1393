"""The process that holds one loaded model: no network, no writable path, no secret."""
