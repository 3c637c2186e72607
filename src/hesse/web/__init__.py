"""The viewer: a local web server that shows the answers of influence runs, token by token."""

from hesse.web.app import create_app, serve

__all__ = ["create_app", "serve"]
