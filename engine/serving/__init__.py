"""`segue serve`: one engine behind HTTP. `create_app` gives an ASGI application for a service of your own."""

from segue.errors import install

try:
    from segue.serving.app import create_app
except ModuleNotFoundError as error:
    missing = str(error.name).partition(".")[0]
    said = f"{missing} is not installed, which serving needs: {install(missing, 'serve')}"
    raise ModuleNotFoundError(said, name=error.name) from error

__all__ = ["create_app"]
