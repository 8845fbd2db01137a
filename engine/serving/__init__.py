"""`segue serve`: one engine behind HTTP. `create_app` gives an ASGI application for a service of your own."""

from segue.serving.app import create_app

__all__ = ["create_app"]
