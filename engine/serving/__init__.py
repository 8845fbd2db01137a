"""`segue serve`: one engine behind HTTP. `create_app` gives an ASGI application for a service of your own."""

from segue.errors import install

try:
    from segue.serving.app import create_app
except ModuleNotFoundError as error:
    said = f"{error.name} is not installed, which serving needs: {install(error.name, 'serve')}"
    raise ModuleNotFoundError(said, name=error.name) from error

__all__ = ["create_app"]
