"""The two applications under the names that the bundle's pyproject.toml gives."""

from fedsprig_client.app import app as client_app
from fedsprig_server.app import app as server_app

__all__ = ["client_app", "server_app"]
