"""The explorer: a static page over the HTTP API."""
