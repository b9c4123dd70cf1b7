"""Serving from a bundle: torch-free programs, the ranking engine, the HTTP API."""
